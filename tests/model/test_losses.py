import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import pallas as pl

from infoprune_jax.config.experiment import MeshConfig
from infoprune_jax.model import (
  head_columns,
  losses,
  mesh as mesh_lib,
  partitioning,
)
from infoprune_jax.model.losses import token_statistics, weighted_nll

# A vocabulary that is no multiple of 128; 8 devices divide it.
BATCH, LENGTH, WIDTH, VOCAB = 4, 60, 128, 1800


def token_nll(*arrays, **options):
  return token_statistics(*arrays, **options)['nll']


@pytest.fixture(scope='module')
def inputs():
  rng = np.random.default_rng(0)
  hidden = rng.normal(size=(BATCH, LENGTH, WIDTH)).astype(np.float32)
  head = rng.normal(size=(WIDTH, VOCAB)).astype(np.float32) * 0.3
  targets = rng.integers(0, VOCAB, (BATCH, LENGTH)).astype(np.int32)
  return hidden, head, targets


@pytest.fixture(scope='module')
def oracle(inputs):
  return definition(*inputs)


def definition(hidden, head, targets):
  """The NLL of each token, in float64."""
  logits = hidden.astype(np.float64) @ head.astype(np.float64)
  top = logits.max(-1, keepdims=True)
  log_sum = np.log(np.exp(logits - top).sum(-1)) + top[..., 0]
  return log_sum - np.take_along_axis(logits, targets[..., None], -1)[..., 0]


@pytest.fixture(scope='module')
def weights():
  """Uneven, of padding none, as a batch's are: over all tokens about 1."""
  rng = np.random.default_rng(1)
  found = rng.random((BATCH, LENGTH)).astype(np.float32)
  found[:, -7:] = 0.0
  return jnp.asarray(found / found.sum())


def by_definition(hidden, head, targets, weights, z_loss=0.0, softcap=0.0):
  """`weighted_nll`'s sum from whole logits."""
  logits = jnp.einsum('BTD,DV->BTV', hidden, head, precision='highest')
  if softcap:
    logits = softcap * jnp.tanh(logits / softcap)
  log_z = jax.nn.logsumexp(logits, axis=-1)
  nll = log_z - jnp.take_along_axis(logits, targets[..., None], -1)[..., 0]
  return jnp.sum(weights * (nll + z_loss * log_z**2))


@pytest.mark.parametrize('tile', [7, 48, 113, BATCH * LENGTH, 10**6])
def test_equals_the_definition(inputs, oracle, weights, tile):
  arrays = [*map(jnp.asarray, inputs)]
  nll = np.asarray(token_nll(*arrays, tile=tile))
  assert nll.dtype == np.float32
  np.testing.assert_allclose(nll, oracle, rtol=0, atol=2e-5)
  # A document of 240 tokens.
  relative = nll.astype(np.float64).sum() / oracle.sum() - 1
  assert abs(relative) < 1e-6
  total, in_training, _ = weighted_nll(*arrays, weights, z_loss=0.0, tile=tile)
  np.testing.assert_allclose(in_training, oracle, rtol=0, atol=2e-5)
  np.testing.assert_allclose(total, np.sum(weights * oracle), rtol=1e-5)


def test_log_z_is_the_denominators(inputs, weights):
  arrays = [*map(jnp.asarray, inputs)]
  _, _, log_z = weighted_nll(*arrays, weights, z_loss=0.0, tile=48)
  logits = inputs[0].astype(np.float64) @ inputs[1].astype(np.float64)
  np.testing.assert_allclose(
    log_z, np.log(np.exp(logits).sum(-1)), rtol=0, atol=2e-5
  )


def test_a_cap_is_put_on_every_logit(inputs, weights):
  arrays = [*map(jnp.asarray, inputs)]
  nll = token_nll(*arrays, tile=48, softcap=3.0)
  expected = by_definition(*arrays, weights, softcap=3.0)
  np.testing.assert_allclose(jnp.sum(weights * nll), expected, rtol=1e-5)
  assert abs(jnp.sum(weights * token_nll(*arrays, tile=48)) - expected) > 0.1


def test_a_kernel_that_cannot_cap_is_not_run(inputs):
  with pytest.raises(ValueError, match='cannot cap logits at 3.0'):
    token_nll(
      *map(jnp.asarray, inputs), tile=48, loss_kernel='hopper', softcap=3.0
    )


@pytest.mark.parametrize(
  'options', [{}, {'z_loss': 0.1}, {'z_loss': 0.1, 'softcap': 3.0}], ids=str
)
def test_gradients_equal_those_of_whole_logits(inputs, weights, options):
  hidden, head, targets = map(jnp.asarray, inputs)

  def whole(hidden, head):
    return 3.0 * by_definition(hidden, head, targets, weights, **options)

  def tiled(hidden, head):
    all_options = {'z_loss': 0.0, 'tile': 48, **options}
    return 3.0 * weighted_nll(hidden, head, targets, weights, **all_options)[0]

  expected, value = jax.value_and_grad(whole, (0, 1))(hidden, head)[::-1]
  found, found_value = jax.value_and_grad(tiled, (0, 1))(hidden, head)[::-1]
  np.testing.assert_allclose(found_value, value, rtol=1e-5)
  for a, b in zip(found, expected, strict=True):
    np.testing.assert_allclose(a, b, atol=1e-6)


def test_added_columns_change_nothing(inputs, weights, monkeypatch):
  hidden, head, targets = map(jnp.asarray, inputs)
  options = {'z_loss': 0.1, 'tile': 48, 'softcap': 3.0}

  def both(hidden, head):
    total, nll, _ = weighted_nll(hidden, head, targets, weights, **options)
    return total, nll

  gradient = jax.grad(both, (0, 1), has_aux=True)
  (padded_hidden, padded_head), padded_nll = gradient(hidden, head)
  monkeypatch.setattr(head_columns, 'alignment', lambda: 1)
  (hidden_grad, head_grad), nll = gradient(hidden, head)
  np.testing.assert_allclose(padded_nll, nll, rtol=1e-6)
  np.testing.assert_allclose(padded_hidden, hidden_grad, atol=1e-8)
  np.testing.assert_allclose(padded_head, head_grad, atol=1e-8)


@pytest.mark.parametrize('softcap', [0.0, 3.0])
def test_added_columns_have_a_gradient_of_zero(inputs, weights, softcap):
  """Whatever they hold, as a step of an optimizer might have left it."""
  hidden, head, targets = map(jnp.asarray, inputs)
  padded, targets, valid = head_columns.local_shard(
    head, targets, VOCAB, aligned=True
  )
  assert padded.shape[1] == 1920 and not np.any(padded[:, VOCAB:])
  padded = padded.at[:, VOCAB:].set(1.0)
  grad = jax.grad(
    lambda head: losses._weighted(
      hidden, head, targets, valid, weights, 0.1, 48, softcap
    )[0]
  )(padded)
  assert not np.any(grad[:, VOCAB:])
  assert np.all(np.any(grad[:, :VOCAB], axis=0))


def test_tiles_hold_at_most_what_is_asked_for():
  for tokens in (1, 2, 240, 1021, 8192):
    for tile in (1, 48, 1000, 2048, 10**6):
      tiles, size = losses._tile_shape(tokens, tile)
      assert size <= tile and tokens <= tiles * size < tokens + size
      assert tiles <= 2 * -(-tokens // tile)


def test_only_the_sum_has_a_gradient(inputs, weights):
  """What is logged of tokens is constant: it cannot leak into training."""
  hidden, head, targets = map(jnp.asarray, inputs)

  def logged(hidden):
    found = weighted_nll(hidden, head, targets, weights, z_loss=0.1, tile=48)
    return found[1].sum() + found[2].sum()

  assert not np.any(jax.grad(logged)(hidden))


def largest(jaxpr) -> int:
  """The size of the largest array in a program and what it calls."""
  sizes = [0]
  for equation in jaxpr.eqns:
    sizes += [v.aval.size for v in equation.outvars if hasattr(v.aval, 'size')]
    for value in equation.params.values():
      inner = getattr(value, 'jaxpr', value)
      if hasattr(inner, 'eqns'):
        sizes.append(largest(inner))
  return max(sizes)


@pytest.mark.parametrize('training', [False, True])
def test_logits_are_never_held_whole(inputs, weights, training):
  hidden, head, targets = map(jnp.asarray, inputs)
  tile = 48

  def nll(hidden, head):
    return token_nll(hidden, head, targets, tile=tile)

  def loss(hidden, head):
    return weighted_nll(hidden, head, targets, weights, z_loss=0.1, tile=tile)[
      0
    ]

  function = jax.grad(loss, (0, 1)) if training else nll
  size = largest(jax.make_jaxpr(function)(hidden, head).jaxpr)
  assert size <= max(tile, WIDTH) * 1920  # Columns of the padded head.
  assert size < BATCH * LENGTH * VOCAB


@pytest.mark.parametrize(
  'sizes, vocab',
  [
    ((1, 1, 8), VOCAB),
    ((2, 2, 2), VOCAB),
    ((1, 1, 8), 1795),
    ((2, 2, 2), 1795),
  ],
)
def test_a_vocabulary_spread_over_devices(inputs, weights, sizes, vocab):
  """Each device reduces its own share: no logits and no table travel."""
  data, fsdp, tensor = sizes
  hidden, head, targets = inputs
  mesh = mesh_lib.make_mesh(MeshConfig(data=data, fsdp=fsdp, tensor=tensor))
  axes = [
    ('batch', 'length', 'activation_embed'),
    ('embed', 'vocab'),
    ('batch', 'length'),
    ('batch', 'length'),
  ]
  inputs = hidden, head[:, :vocab], targets % vocab
  whole = [*map(jnp.asarray, inputs), weights]
  arrays = [
    jax.device_put(
      array,
      partitioning.sharding(mesh, mesh.divided_axes(names, array.shape)),
    )
    for array, names in zip(whole, axes, strict=True)
  ]

  def loss(*arrays):
    total, nll, log_z = weighted_nll(*arrays, z_loss=0.1, tile=48)
    return 3.0 * total, (nll, log_z)

  with partitioning.use_mesh(mesh):
    program = jax.jit(jax.grad(loss, (0, 1), has_aux=True)).lower(*arrays)
    by_array, aux = program.compile()(*arrays)
    score = functools.partial(token_nll, tile=48)
    forward = jax.jit(score).lower(*arrays[:3]).compile()
  np.testing.assert_allclose(
    forward(*arrays[:3]), definition(*inputs), atol=2e-5
  )
  expected, expected_aux = jax.grad(loss, (0, 1), has_aux=True)(*whole)
  for found, alone in zip(by_array, expected, strict=True):
    np.testing.assert_allclose(found, alone, atol=1e-6)
  for found, alone in zip(aux, expected_aux, strict=True):
    np.testing.assert_allclose(found, alone, atol=2e-5)
  # A head that is spread by its width comes together once, and its gradient
  # goes apart again: it is never reduced whole.
  text = program.compile().as_text()
  assert ('all-to-all' in text) == (fsdp > 1)
  text = forward.as_text()
  if fsdp == 1:
    assert 'all-gather' not in text
  assert 'all-reduce' in text


@pytest.mark.parametrize(
  'sizes, vocab', [((1, 1, 1), VOCAB), ((2, 2, 2), VOCAB), ((2, 1, 4), 1797)]
)
def test_the_kernel_of_a_tpu_gives_what_tiles_give(
  monkeypatch, inputs, sizes, vocab
):
  """Shares of the vocabulary are no whole blocks; as Pallas interprets it."""
  monkeypatch.setattr(
    pl, 'pallas_call', functools.partial(pl.pallas_call, interpret=True)
  )
  data, fsdp, tensor = sizes
  mesh = mesh_lib.make_mesh(
    MeshConfig(data=data, fsdp=fsdp, tensor=tensor),
    jax.devices()[: data * fsdp * tensor],
  )
  hidden, head, targets = inputs
  arrays = (
    jnp.asarray(hidden, jnp.bfloat16),
    jnp.asarray(head[:, :vocab], jnp.bfloat16),
    jnp.asarray(targets % vocab),
  )
  expected = token_nll(*arrays, tile=48)
  with partitioning.use_mesh(mesh):
    found = jax.jit(
      lambda *arrays: token_nll(*arrays, tile=48, loss_kernel='tpu')
    )(*arrays)
  np.testing.assert_allclose(found, expected, atol=2e-5)


def test_every_product_is_of_one_dtype(inputs, weights):
  """A product of float32 by bfloat16 would run at float32's speed."""
  hidden, head, targets = inputs
  half = [jnp.asarray(x, jnp.bfloat16) for x in (hidden, head)]

  def loss(hidden, head):
    return weighted_nll(
      hidden, head, jnp.asarray(targets), weights, z_loss=0.0, tile=48
    )[0]

  text = jax.jit(jax.grad(loss, (0, 1))).lower(*half).as_text()
  products = re.findall(
    r'dot_general.*: \(tensor<\S*x(\w+)>, tensor<\S*x(\w+)>', text
  )
  assert len(products) == 3  # Logits are never computed again.
  assert set(products) == {('bf16', 'bf16')}
