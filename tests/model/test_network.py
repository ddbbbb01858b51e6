import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_store import RandomStore

from infoprune_jax.config import MeshConfig
from infoprune_jax.model import network, partitioning

VOCAB = RandomStore.vocab_size


@pytest.fixture(scope='module')
def mesh():
  config = MeshConfig(data=1, fsdp=1, tensor=1)
  return partitioning.make_mesh(config, jax.devices()[:1])


@pytest.fixture(scope='module')
def nll(small, mesh):
  """(batch of numpy arrays) -> [B, T] numpy, with fixed parameters."""
  with partitioning.use_mesh(mesh):
    params = network.init_params(small.model, VOCAB, jax.random.key(0))
    # Norms away from one, so that a test sees them.
    params = jax.tree.map(
      lambda x: x + 0.1 * jax.random.normal(jax.random.key(1), x.shape), params
    )
    function = jax.jit(
      lambda batch: network.batch_nll(small.model, params, batch)
    )

  def call(batch):
    with partitioning.use_mesh(mesh):
      return np.asarray(function(jax.tree.map(jnp.asarray, batch)))

  return call


def one_row(length: int = 48) -> dict[str, np.ndarray]:
  return RandomStore([length]).packed(length).batch(np.array([0]), 1)


def test_a_token_does_not_see_what_follows(nll):
  batch = one_row()
  before = nll(batch)
  for position in (1, 20, 47):
    changed = {name: values.copy() for name, values in batch.items()}
    changed['decoder_input_tokens'][0, position] += 1
    after = nll(changed)
    np.testing.assert_array_equal(before[0, :position], after[0, :position])
    assert before[0, position] != after[0, position]


def test_a_token_sees_what_precedes(nll):
  batch = one_row()
  changed = {name: values.copy() for name, values in batch.items()}
  changed['decoder_input_tokens'][0, 3] += 1
  assert np.all(nll(batch)[0, 3:] != nll(changed)[0, 3:])


def test_packed_equals_unpacked(nll):
  lengths = [30, 7, 64, 1, 12, 40, 9, 22, 3, 51]
  store = RandomStore(lengths)
  rows = store.packed(64)
  packed = nll(rows.batch(np.arange(len(rows)), len(lengths)))
  alone = [
    store.packed(64, only=[d]).batch([0], 1) for d in range(len(lengths))
  ]
  unpacked = nll(
    {name: np.concatenate([row[name] for row in alone]) for name in alone[0]}
  )
  plan = rows.plan
  for row in range(len(rows)):
    left = 0
    for piece in range(plan.row_offsets[row], plan.row_offsets[row + 1]):
      document, length = plan.document[piece], int(plan.length[piece])
      assert length == lengths[document]
      np.testing.assert_allclose(
        packed[row, left : left + length],
        unpacked[document, :length],
        rtol=0,
        atol=2e-5,
      )
      left += length


def test_segments_do_not_see_each_other(nll):
  rows = RandomStore([20, 30, 14]).packed(64)
  batch = rows.batch(np.array([0]), 1)
  first = int(rows.plan.length[0])
  changed = {name: values.copy() for name, values in batch.items()}
  changed['decoder_input_tokens'][0, :first] += 1
  before, after = nll(batch), nll(changed)
  np.testing.assert_array_equal(before[0, first:], after[0, first:])
  assert np.all(before[0, :first] != after[0, :first])


@pytest.mark.parametrize(
  'edit',
  [
    {'scan_unroll': 1},
    {'remat': True},
    {'loss_tile': 1},
    {'loss_tile': 10**6},
  ],
)
def test_how_it_is_computed_does_not_change_what(small, mesh, edit):
  batch = jax.tree.map(jnp.asarray, one_row())
  other = dataclasses.replace(small.model, **edit)
  assert other != small.model
  with partitioning.use_mesh(mesh):
    params = network.init_params(small.model, VOCAB, jax.random.key(0))

    def loss(model):
      return jax.value_and_grad(
        lambda p: network.batch_nll(model, p, batch).mean()
      )(params)

    (expected, expected_grads), (found, found_grads) = (
      loss(small.model),
      loss(other),
    )
  np.testing.assert_allclose(found, expected, rtol=1e-6)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6),
    found_grads,
    expected_grads,
  )


def test_untied_head_is_a_parameter_of_its_own(small):
  untied = dataclasses.replace(small.model, tie_embeddings=False)
  axes = network.param_axes(untied, VOCAB)
  assert axes['head'] == ('embed', 'vocab')
  assert 'head' not in network.param_axes(small.model, VOCAB)


def test_bfloat16_stays_near_float32(small, mesh):
  batch = jax.tree.map(jnp.asarray, one_row())
  half = dataclasses.replace(small.model, dtype='bfloat16')
  with partitioning.use_mesh(mesh):
    params = network.init_params(small.model, VOCAB, jax.random.key(0))
    expected = network.batch_nll(small.model, params, batch)
    found = network.batch_nll(half, params, batch)
  assert found.dtype == jnp.float32
  np.testing.assert_allclose(found, expected, atol=0.05)
  assert np.any(found != expected)
