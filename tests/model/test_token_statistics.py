import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from infoprune_jax.config.experiment import MeshConfig
from infoprune_jax.config.scoring import TOKEN_STATISTICS
from infoprune_jax.model import losses, mesh as mesh_lib, partitioning
from infoprune_jax.model.token_statistics import STATISTICS

# A vocabulary that fills no shard, and is divided by 4 devices but not by 8.
BATCH, LENGTH, WIDTH, VOCAB = 4, 60, 32, 500
NAMES = ('nll', *TOKEN_STATISTICS)


def token_statistics(*arrays, **options):
  return losses.token_statistics(*map(jnp.asarray, arrays), **options)


def definition(logits, targets):
  """Each statistic of [N, V] float64 logits, from whole probabilities."""
  exp = np.exp(logits - logits.max(-1, keepdims=True))
  p = exp / exp.sum(-1, keepdims=True)
  onehot = np.eye(logits.shape[1])[targets]
  with np.errstate(divide='ignore', invalid='ignore'):
    entropy = -np.nansum(np.where(p > 0, p * np.log(p), 0.0), -1)
  return {
    'nll': -np.log((p * onehot).sum(-1)),
    'entropy': entropy,
    'greedy': (logits.argmax(-1) == targets).astype(float),
    'error_norm': np.linalg.norm(p - onehot, axis=-1),
  }


@pytest.fixture(scope='module')
def inputs():
  rng = np.random.default_rng(0)
  hidden = rng.normal(size=(BATCH, LENGTH, WIDTH)).astype(np.float32)
  head = rng.normal(size=(WIDTH, VOCAB)).astype(np.float32) * 0.5
  targets = rng.integers(0, VOCAB, (BATCH, LENGTH)).astype(np.int32)
  # Half of the targets are the argmax.
  best = (hidden @ head).argmax(-1).astype(np.int32)
  targets = np.where(rng.random(targets.shape) < 0.5, best, targets)
  return hidden, head, targets


@pytest.fixture(scope='module')
def expected(inputs):
  return of_inputs(*inputs)


def of_inputs(hidden, head, targets, softcap=0.0):
  logits = hidden.astype(np.float64) @ head.astype(np.float64)
  if softcap:
    logits = softcap * np.tanh(logits / softcap)
  found = definition(logits.reshape(-1, VOCAB), targets.reshape(-1))
  return {name: x.reshape(targets.shape) for name, x in found.items()}


def check(found, expected, atol=2e-5):
  assert found.keys() == expected.keys()
  for name, values in found.items():
    assert values.dtype == jnp.float32
    np.testing.assert_allclose(
      values, expected[name], rtol=0, atol=atol, err_msg=name
    )


def test_the_names_are_those_of_the_config():
  assert tuple(STATISTICS) == TOKEN_STATISTICS


@pytest.mark.parametrize('tile', [1, 48, 10**6])
def test_equal_the_definition(inputs, expected, tile):
  assert 0.4 < expected['greedy'].mean() < 0.6
  check(token_statistics(*inputs, names=NAMES, tile=tile), expected)


def test_a_softcap_is_put_on_logits_first(inputs):
  found = token_statistics(*inputs, names=NAMES, tile=48, softcap=2.0)
  check(found, of_inputs(*inputs, softcap=2.0))


@pytest.mark.parametrize('name', TOKEN_STATISTICS)
def test_nll_is_the_same_whatever_else_is_asked(inputs, name):
  alone = token_statistics(*inputs, tile=48)
  found = token_statistics(*inputs, names=('nll', name), tile=48)
  assert list(found) == ['nll', name]
  np.testing.assert_array_equal(found['nll'], alone['nll'])


@pytest.mark.parametrize('sizes', [(1, 1, 8), (2, 2, 2), (4, 1, 2)])
def test_a_vocabulary_spread_over_devices(inputs, expected, sizes):
  data, fsdp, tensor = sizes
  mesh = mesh_lib.make_mesh(MeshConfig(data=data, fsdp=fsdp, tensor=tensor))
  with partitioning.use_mesh(mesh):
    found = jax.jit(functools.partial(token_statistics, names=NAMES, tile=48))(
      *inputs
    )
  check(found, expected)


def test_bfloat16_inputs_have_float32_statistics(inputs):
  hidden, head, targets = inputs
  half = [jnp.asarray(x, jnp.bfloat16) for x in (hidden, head)]
  rounded = [np.asarray(x, np.float32) for x in half]
  found = token_statistics(*half, targets, names=NAMES, tile=48)
  check(found, of_inputs(*rounded, targets), atol=1e-4)


@pytest.mark.parametrize('tensor', [1, 4])
def test_of_equal_logits_the_lowest_id_is_the_argmax(tensor):
  """Within a shard of the vocabulary, and between shards."""
  head = np.zeros((1, 16), np.float32)
  head[0, [3, 7, 14]] = 1.0
  hidden = np.ones((1, 4, 1), np.float32)
  targets = np.array([[3, 7, 14, 0]], np.int32)
  mesh = mesh_lib.make_mesh(
    MeshConfig(data=1, fsdp=1, tensor=tensor), jax.devices()[:tensor]
  )
  with partitioning.use_mesh(mesh):
    found = jax.jit(
      functools.partial(token_statistics, names=('greedy',), tile=4)
    )(hidden, head, targets)
  assert found['greedy'].tolist() == [[1.0, 0.0, 0.0, 0.0]]


@pytest.mark.parametrize('tensor', [1, 4])
def test_a_certain_prediction_loses_no_precision(tensor):
  """Where 1 - p is about 1e-6, and where p of other shards is 0."""
  head = np.zeros((1, 16), np.float32)
  head[0, 5] = 14.0
  head[0, 12:] = -200.0
  hidden, targets = np.ones((1, 1, 1), np.float32), np.full((1, 1), 5, np.int32)
  mesh = mesh_lib.make_mesh(
    MeshConfig(data=1, fsdp=1, tensor=tensor), jax.devices()[:tensor]
  )
  with partitioning.use_mesh(mesh):
    found = jax.jit(functools.partial(token_statistics, names=NAMES, tile=1))(
      hidden, head, targets
    )
  expected = definition(head.astype(np.float64), np.array([5]))
  for name in ('error_norm', 'entropy'):
    np.testing.assert_allclose(
      found[name][0], expected[name], rtol=0.05, err_msg=name
    )
    assert found[name][0, 0] > 0


def test_kernels_that_compute_nll_alone_are_not_run(inputs):
  with pytest.raises(ValueError, match="'hopper' cannot compute .*entropy"):
    token_statistics(
      *inputs, names=('nll', 'entropy'), tile=48, loss_kernel='hopper'
    )
