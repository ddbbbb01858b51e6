import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import pallas as pl

from infoprune_jax.config import MeshConfig
from infoprune_jax.model import partitioning
from infoprune_jax.model.losses import token_nll

BATCH, LENGTH, WIDTH, VOCAB = 4, 60, 128, 2048


@pytest.fixture(scope='module')
def inputs():
  rng = np.random.default_rng(0)
  hidden = rng.normal(size=(BATCH, LENGTH, WIDTH)).astype(np.float32)
  head = rng.normal(size=(WIDTH, VOCAB)).astype(np.float32) * 0.3
  targets = rng.integers(0, VOCAB, (BATCH, LENGTH)).astype(np.int32)
  return hidden, head, targets


@pytest.fixture(scope='module')
def oracle(inputs):
  """The definition, in float64."""
  hidden, head, targets = inputs
  logits = hidden.astype(np.float64) @ head.astype(np.float64)
  top = logits.max(-1, keepdims=True)
  log_sum = np.log(np.exp(logits - top).sum(-1)) + top[..., 0]
  return log_sum - np.take_along_axis(logits, targets[..., None], -1)[..., 0]


@pytest.mark.parametrize('tile', [1, 7, 48, BATCH * LENGTH, 10**6])
def test_equals_the_definition(inputs, oracle, tile):
  nll = np.asarray(token_nll(*map(jnp.asarray, inputs), tile=tile)[0])
  assert nll.dtype == np.float32
  np.testing.assert_allclose(nll, oracle, rtol=0, atol=2e-5)
  # A document of 240 tokens.
  relative = nll.astype(np.float64).sum() / oracle.sum() - 1
  assert abs(relative) < 1e-6


def test_log_z_is_the_denominators(inputs, oracle):
  hidden, head, targets = map(jnp.asarray, inputs)
  _, log_z = token_nll(hidden, head, targets, tile=48)
  logits = inputs[0].astype(np.float64) @ inputs[1].astype(np.float64)
  np.testing.assert_allclose(
    log_z, np.log(np.exp(logits).sum(-1)), rtol=0, atol=2e-5
  )

  def whole(hidden, head):
    logits = jnp.einsum('BTD,DV->BTV', hidden, head, precision='highest')
    return (jax.nn.logsumexp(logits, axis=-1) ** 2).mean()

  def tiled(hidden, head):
    found = token_nll(hidden, head, targets, tile=48)[1]
    return (found**2).mean()

  expected = jax.grad(whole, (0, 1))(hidden, head)
  for a, b in zip(jax.grad(tiled, (0, 1))(hidden, head), expected, strict=True):
    np.testing.assert_allclose(a, b, atol=1e-5)


def test_a_cap_is_put_on_every_logit(inputs):
  hidden, head, targets = map(jnp.asarray, inputs)
  cap = 3.0

  def whole(hidden, head):
    logits = jnp.einsum('BTD,DV->BTV', hidden, head, precision='highest')
    logp = jax.nn.log_softmax(cap * jnp.tanh(logits / cap))
    return -jnp.take_along_axis(logp, targets[..., None], -1)[..., 0]

  def tiled(hidden, head):
    return token_nll(hidden, head, targets, tile=48, softcap=cap)[0]

  np.testing.assert_allclose(
    tiled(hidden, head), whole(hidden, head), rtol=0, atol=2e-5
  )
  expected, found = (
    jax.grad(lambda *a, f=f: f(*a).mean(), (0, 1))(hidden, head)
    for f in (whole, tiled)
  )
  for a, b in zip(found, expected, strict=True):
    np.testing.assert_allclose(a, b, atol=1e-6)


def test_a_kernel_that_cannot_cap_is_not_run(inputs):
  with pytest.raises(ValueError, match='cannot cap logits at 3.0'):
    token_nll(*map(jnp.asarray, inputs), tile=48, kernels='hopper', softcap=3.0)


def test_gradients_equal_those_of_whole_logits(inputs):
  hidden, head, targets = map(jnp.asarray, inputs)

  def whole(hidden, head):
    logits = jnp.einsum('BTD,DV->BTV', hidden, head, precision='highest')
    logp = jax.nn.log_softmax(logits)
    return -jnp.take_along_axis(logp, targets[..., None], -1).mean()

  def tiled(hidden, head):
    return token_nll(hidden, head, targets, tile=48)[0].mean()

  expected = jax.grad(whole, (0, 1))(hidden, head)
  found = jax.grad(tiled, (0, 1))(hidden, head)
  for a, b in zip(found, expected, strict=True):
    np.testing.assert_allclose(a, b, atol=1e-6)


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


@pytest.mark.parametrize('backward', [False, True])
def test_logits_are_never_held_whole(inputs, backward):
  hidden, head, targets = map(jnp.asarray, inputs)
  tile = 48

  def loss(hidden, head):
    return token_nll(hidden, head, targets, tile=tile)[0].sum()

  function = jax.grad(loss, (0, 1)) if backward else loss
  size = largest(jax.make_jaxpr(function)(hidden, head).jaxpr)
  assert size <= max(tile * VOCAB, head.size)
  assert size < BATCH * LENGTH * VOCAB


@pytest.mark.parametrize('sizes', [(1, 1, 8), (2, 2, 2)])
def test_a_vocabulary_spread_over_devices(inputs, oracle, sizes):
  """Each device reduces its own share: no logits and no table travel."""
  data, fsdp, tensor = sizes
  mesh = partitioning.make_mesh(MeshConfig(data=data, fsdp=fsdp, tensor=tensor))
  axes = [
    ('batch', 'length', 'activation_embed'),
    ('embed', 'vocab'),
    ('batch', 'length'),
  ]
  arrays = [
    jax.device_put(array, partitioning.sharding(mesh, names))
    for array, names in zip(inputs, axes, strict=True)
  ]

  def loss(hidden, head, targets):
    nll, log_z = token_nll(hidden, head, targets, tile=48)
    return nll.mean() + (log_z**2).mean(), nll

  with partitioning.use_mesh(mesh):
    program = jax.jit(jax.grad(loss, (0, 1), has_aux=True)).lower(*arrays)
    (by_hidden, by_head), nll = program.compile()(*arrays)
    forward = jax.jit(lambda *a: loss(*a)[1]).lower(*arrays).compile()
  np.testing.assert_allclose(nll, oracle, atol=2e-5)
  alone = jax.grad(lambda *a: loss(*a)[0], (0, 1))(*map(jnp.asarray, inputs))
  for found, expected in zip((by_hidden, by_head), alone, strict=True):
    np.testing.assert_allclose(found, expected, atol=1e-6)
  # A head that is spread by its width comes together once, and its gradient
  # goes apart again: it is never reduced whole.
  text = program.compile().as_text()
  assert ('all-to-all' in text) == (fsdp > 1)
  text = forward.as_text()
  if fsdp == 1:
    assert 'all-gather' not in text
  assert 'all-reduce' in text


@pytest.mark.parametrize('sizes', [(1, 1, 1), (2, 2, 2)])
def test_the_kernel_of_a_tpu_gives_what_tiles_give(monkeypatch, inputs, sizes):
  """Shares of the vocabulary are no whole blocks; as Pallas interprets it."""
  monkeypatch.setattr(
    pl, 'pallas_call', functools.partial(pl.pallas_call, interpret=True)
  )
  data, fsdp, tensor = sizes
  mesh = partitioning.make_mesh(
    MeshConfig(data=data, fsdp=fsdp, tensor=tensor),
    jax.devices()[: data * fsdp * tensor],
  )
  hidden, head, targets = inputs
  arrays = (
    jnp.asarray(hidden, jnp.bfloat16),
    jnp.asarray(head[:, :1900], jnp.bfloat16),
    jnp.asarray(targets % 1900),
  )
  expected = token_nll(*arrays, tile=48)
  with partitioning.use_mesh(mesh):
    found = jax.jit(lambda *arrays: token_nll(*arrays, tile=48, kernels='tpu'))(
      *arrays
    )
  np.testing.assert_allclose(found, expected, atol=2e-5)


def test_every_product_is_of_one_dtype(inputs):
  """A product of float32 by bfloat16 would run at float32's speed."""
  hidden, head, targets = inputs
  half = [jnp.asarray(x, jnp.bfloat16) for x in (hidden, head)]

  def loss(hidden, head):
    return token_nll(hidden, head, jnp.asarray(targets), tile=48)[0].mean()

  text = jax.jit(jax.grad(loss, (0, 1))).lower(*half).as_text()
  products = re.findall(
    r'dot_general.*: \(tensor<\S*x(\w+)>, tensor<\S*x(\w+)>', text
  )
  assert len(products) == 4  # Forward, again, and two of the backward pass.
  assert set(products) == {('bf16', 'bf16')}
