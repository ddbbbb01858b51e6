import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from random_store import RandomStore

from infoprune_jax.config.experiment import MeshConfig
from infoprune_jax.config.model import REMAT, LayerKind
from infoprune_jax.model import (
  layers,
  mesh as mesh_lib,
  network,
  partitioning,
)

VOCAB = RandomStore.vocab_size


@pytest.fixture(scope='module')
def mesh():
  config = MeshConfig(data=1, fsdp=1, tensor=1)
  return mesh_lib.make_mesh(config, jax.devices()[:1])


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
      lambda batch: network.batch_statistics(small.model, params, batch)['nll']
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
    for segment in range(
      plan.sequence_offsets[row], plan.sequence_offsets[row + 1]
    ):
      document, length = plan.document[segment], int(plan.length[segment])
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


def mean_loss(model, params):
  """Of one row, to differentiate."""
  batch = jax.tree.map(jnp.asarray, one_row())
  weights = batch['decoder_loss_weights']
  mean = weights / weights.sum()
  return network.batch_loss(model, params, batch, mean, z_loss=0.0)[0]


def loss_and_gradients(model, mesh):
  """Of one row, under parameters that `model` decides the shape of."""
  with partitioning.use_mesh(mesh):
    params = network.init_params(model, VOCAB, jax.random.key(0))
    return jax.jit(jax.value_and_grad(lambda params: mean_loss(model, params)))(
      params
    )


@pytest.fixture(scope='module')
def computed(small, mesh):
  return loss_and_gradients(small.model, mesh)


@pytest.mark.parametrize(
  'edit',
  [
    {'scan_unroll': 1},
    {'remat': 'minimal'},
    {'remat': 'save_qkv_proj'},
    {'remat': 'full'},
    {'loss_chunk_tokens': 1},
    {'loss_chunk_tokens': 10**6},
  ],
)
def test_how_it_is_computed_does_not_change_what(small, mesh, computed, edit):
  other = dataclasses.replace(small.model, **edit)
  assert other != small.model
  found, found_grads = loss_and_gradients(other, mesh)
  np.testing.assert_allclose(found, computed[0], rtol=1e-6)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6),
    found_grads,
    computed[1],
  )


def products(jaxpr) -> int:
  """Matrix products in a program and in what it calls, each counted once."""
  count = 0
  for equation in jaxpr.eqns:
    count += equation.primitive.name == 'dot_general'
    for value in equation.params.values():
      inner = getattr(value, 'jaxpr', value)
      if hasattr(inner, 'eqns'):
        count += products(inner)
  return count


def test_each_policy_computes_more_again_than_the_one_before(small, mesh):
  params = network.param_shapes(small.model, VOCAB)
  counts = []
  for policy in REMAT:
    model = dataclasses.replace(small.model, remat=policy)
    gradient = jax.grad(lambda p, m=model: mean_loss(m, p))
    with partitioning.use_mesh(mesh):
      counts.append(products(jax.make_jaxpr(gradient)(params).jaxpr))
  assert counts == sorted(set(counts)), dict(zip(REMAT, counts, strict=True))


def test_normed_queries_and_keys_have_one_length(small, mesh):
  """However long the projections make them."""
  batch = jax.tree.map(jnp.asarray, one_row())
  for qk_norm in (True, False):
    model = dataclasses.replace(small.model, qk_norm=qk_norm)
    with partitioning.use_mesh(mesh):
      params = network.init_params(model, VOCAB, jax.random.key(0))
      nll = jax.jit(
        lambda p, m=model: network.batch_statistics(m, p, batch)['nll']
      )
      expected = nll(params)
      attention = params['layers']['attention']
      for name in ('query', 'key'):
        attention[name] = 50.0 * attention[name]
      found = nll(params)
    assert np.allclose(found, expected, atol=1e-3) == qk_norm
    if qk_norm:
      assert attention['query_norm']['scale'].shape == (2, model.head_dim)
      axes = network.param_axes(model, VOCAB)['layers']['attention']
      assert axes['key_norm']['scale'] == ('layers', 'head_dim')


FAMILIES = [
  {'norm': 'layer', 'attention_bias': 'all', 'mlp_bias': True},
  {'norm_placement': 'post', 'qk_norm': True, 'qk_norm_scope': 'all'},
  {'norm_placement': 'both', 'activation': 'geglu', 'embed_scale': 4.0},
  {'parallel_residual': True, 'activation': 'gelu_exact', 'mlp_bias': True},
  {
    'num_layers': 5,
    'attention_bias': 'qkv',
    'attention_softcap': 5.0,
    'max_positions': 64,
    'layer_pattern': (
      LayerKind(window=4),
      LayerKind(rope_theta=0.0),
    ),
  },
]


@pytest.mark.parametrize('edit', FAMILIES)
def test_other_families_are_causal_and_packed_as_well(small, mesh, edit):
  """Logits are held to another library's in tests of imported models."""
  model = dataclasses.replace(small.model, **edit)
  store = RandomStore([20, 30, 14])
  batch = store.packed(64).batch(np.array([0]), 1)
  first = int(store.packed(64).plan.length[0])
  changed = {name: values.copy() for name, values in batch.items()}
  changed['decoder_input_tokens'][0, first - 3] += 1
  with partitioning.use_mesh(mesh):
    params = network.init_params(model, VOCAB, jax.random.key(0))
    params = jax.tree.map(
      lambda x: x + 0.1 * jax.random.normal(jax.random.key(1), x.shape), params
    )
    nll = jax.jit(
      lambda batch: network.batch_statistics(model, params, batch)['nll']
    )
    before, after = nll(batch)[0], nll(changed)[0]
  np.testing.assert_array_equal(before[: first - 3], after[: first - 3])
  np.testing.assert_array_equal(before[first:], after[first:])
  assert np.all(before[first - 3 : first] != after[first - 3 : first])


@pytest.mark.parametrize('edit', FAMILIES)
def test_every_parameter_of_other_families_has_a_gradient(small, mesh, edit):
  model = dataclasses.replace(small.model, **edit)
  _, gradients = loss_and_gradients(model, mesh)
  for path, leaf in jax.tree_util.tree_leaves_with_path(gradients):
    # A key's bias adds as much to all logits of a query.
    if path[-1].key != 'key_bias' or model.layer_kinds[0].rope_theta:
      assert np.any(np.asarray(leaf) != 0), jax.tree_util.keystr(path)


@pytest.mark.parametrize('num_layers', [1, 2, 5, 6])
def test_layers_take_kinds_in_turns(small, mesh, num_layers):
  """A pattern of two kinds equals the same kinds named one by one."""
  kinds = (LayerKind(window=3), LayerKind(rope_theta=100.0))
  pattern = kinds[:num_layers]
  every = tuple(pattern[i % len(pattern)] for i in range(num_layers))
  found = []
  for chosen in (pattern, every):
    model = dataclasses.replace(
      small.model, num_layers=num_layers, layer_pattern=chosen, scan_unroll=1
    )
    found.append(loss_and_gradients(model, mesh))
  np.testing.assert_allclose(found[0][0], found[1][0], rtol=1e-6)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6),
    found[0][1],
    found[1][1],
  )


def test_a_window_of_one_token_sees_no_other(small, mesh):
  model = dataclasses.replace(small.model, layer_pattern=(LayerKind(window=1),))
  batch = one_row()
  changed = {name: values.copy() for name, values in batch.items()}
  changed['decoder_input_tokens'][0, 5] += 1
  with partitioning.use_mesh(mesh):
    params = network.init_params(model, VOCAB, jax.random.key(0))
    nll = jax.jit(
      lambda batch: network.batch_statistics(model, params, batch)['nll']
    )
    differs = np.asarray(nll(batch) != nll(changed))[0]
  assert np.flatnonzero(differs).tolist() == [5]


def test_gelu_has_no_gate(small, mesh):
  model = dataclasses.replace(small.model, activation='gelu')
  with nnx.use_eager_sharding(False):
    mlp = layers.MLP(model, rngs=nnx.Rngs(0))
  x = jax.random.normal(jax.random.key(0), (2, 3, model.embed_dim))
  inner = np.asarray(x, np.float64) @ np.asarray(mlp.up[...], np.float64)
  slope = np.sqrt(2 / np.pi) * (inner + 0.044715 * inner**3)
  expected = 0.5 * inner * (1 + np.tanh(slope)) @ np.asarray(mlp.down[...])
  np.testing.assert_allclose(mlp(x), expected, atol=1e-5)
  names = network.param_shapes(model, VOCAB)['layers']['mlp'].keys()
  assert names == {'up', 'down'}


def test_a_cap_bounds_the_loss_of_any_token(small, mesh):
  batch = jax.tree.map(jnp.asarray, one_row())
  capped = dataclasses.replace(small.model, logit_softcap=0.01)
  with partitioning.use_mesh(mesh):
    params = network.init_params(small.model, VOCAB, jax.random.key(0))
    # Logits far beyond the cap.
    params['embedding'] = 100.0 * params['embedding']
    free = network.batch_statistics(small.model, params, batch)['nll']
    found = network.batch_statistics(capped, params, batch)['nll']
  assert np.ptp(free) > 1.0
  np.testing.assert_allclose(found, np.log(VOCAB), atol=0.0201)
  assert np.any(found != found[0, 0])


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
    expected = network.batch_statistics(small.model, params, batch)['nll']
    found = network.batch_statistics(half, params, batch)['nll']
  assert found.dtype == jnp.float32
  np.testing.assert_allclose(found, expected, atol=0.05)
  assert np.any(found != expected)
