import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas.ops.tpu import splash_attention as splash

from infoprune_jax.config.experiment import MeshConfig
from infoprune_jax.model import (
  attention,
  mesh as mesh_lib,
  partitioning,
)

PLAIN_8, PLAIN_64, PLAIN_128 = (
  attention.Logits(dim**-0.5) for dim in (8, 64, 128)
)
FORMS = (
  PLAIN_8,
  attention.Logits(0.25, softcap=1.0),
  attention.Logits(0.25, window=9),
  attention.Logits(0.25, softcap=1.0, window=70),
)


def oracle(query, key, value, segments, form):
  """One query at a time, in float64."""
  batch, length, heads, _ = query.shape
  group = heads // key.shape[2]
  out = np.zeros(query.shape)
  for b in range(batch):
    for head in range(heads):
      k, v = key[b, :, head // group], value[b, :, head // group]
      for t in range(length):
        seen = np.arange(t + 1)[segments[b, : t + 1] == segments[b, t]]
        seen = seen[t - seen < (form.window or length)]
        logits = form.scale * k[seen].astype(np.float64) @ query[b, t, head]
        if form.softcap:
          logits = form.softcap * np.tanh(logits / form.softcap)
        weights = np.exp(logits - logits.max())
        out[b, t, head] = weights @ v[seen] / weights.sum()
  return out


@pytest.mark.parametrize('length', [1, 5, 64, 65, 150])
@pytest.mark.parametrize(
  'kv_heads, form', [(1, PLAIN_8), (4, PLAIN_8), *((2, f) for f in FORMS)]
)
def test_equals_the_definition(length, kv_heads, form):
  rng = np.random.default_rng(length)
  query = rng.normal(size=(2, length, 4, 8)).astype(np.float32)
  key = rng.normal(size=(2, length, kv_heads, 8)).astype(np.float32)
  value = rng.normal(size=(2, length, kv_heads, 8)).astype(np.float32)
  segments = np.sort(rng.integers(0, 4, (2, length)), axis=1)[:, ::-1].copy()
  found = attention.attention(
    *map(jnp.asarray, (query, key, value)),
    attention.segments(jnp.asarray(segments), 'xla', 0),
    'xla',
    form,
  )
  np.testing.assert_allclose(
    found, oracle(query, key, value, segments, form), atol=2e-5
  )


def plain(query, key, value, ids, form):
  """The definition in JAX, which differentiates it."""
  key, value = (
    jnp.repeat(x, query.shape[2] // x.shape[2], axis=2) for x in (key, value)
  )
  logits = jnp.einsum('BTNH,BSNH->BNTS', query, key, precision='highest')
  length = ids.shape[1]
  seen = (ids[:, :, None] == ids[:, None]) & np.tri(length, dtype=bool)
  seen &= ~np.tri(length, k=-(form.window or length), dtype=bool)
  logits = logits * form.scale
  if form.softcap:
    logits = form.softcap * jnp.tanh(logits / form.softcap)
  logits = jnp.where(seen[:, None], logits, -jnp.inf)
  weights = jax.nn.softmax(logits, axis=-1)
  return jnp.einsum('BNTS,BSNH->BTNH', weights, value, precision='highest')


def by_blocks(query, key, value, ids, form=PLAIN_8):
  segments = attention.segments(ids, 'xla', 0)
  return attention.attention(query, key, value, segments, 'xla', form)


@pytest.mark.parametrize('length', [5, 64, 150])
@pytest.mark.parametrize(
  'kv_heads, form', [(1, PLAIN_8), (4, PLAIN_8), *((2, f) for f in FORMS)]
)
def test_the_gradient_is_that_of_the_definition(length, kv_heads, form):
  rng = np.random.default_rng(length)
  arrays = [
    jnp.asarray(rng.normal(size=(2, length, heads, 8)), jnp.float32)
    for heads in (4, kv_heads, kv_heads)
  ]
  ids = np.sort(rng.integers(0, 4, (2, length)), axis=1)[:, ::-1]
  ids = jnp.asarray(ids.copy())
  out, expected_backward = jax.vjp(lambda *a: plain(*a, ids, form), *arrays)
  _, backward = jax.vjp(lambda *a: by_blocks(*a, ids, form), *arrays)
  grad = jnp.asarray(rng.normal(size=out.shape), jnp.float32)
  for found, expected in zip(
    backward(grad), expected_backward(grad), strict=True
  ):
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_every_product_is_of_one_dtype():
  """A product of float32 by bfloat16 would run at float32's speed."""
  rng = np.random.default_rng(0)
  whole = [
    jnp.asarray(rng.normal(size=(2, 100, heads, 8)), jnp.float32)
    for heads in (4, 2, 2)
  ]
  half = [x.astype(jnp.bfloat16) for x in whole]
  ids = jnp.ones((2, 100), jnp.int32)

  def gradients(*arrays):
    out, backward = jax.vjp(lambda *a: by_blocks(*a, ids), *arrays)
    return out, *backward(out)

  text = jax.jit(gradients).lower(*half).as_text()
  products = re.findall(
    r'dot_general.*: \(tensor<\S*x(\w+)>, tensor<\S*x(\w+)>', text
  )
  # Two blocks; forward two, and backward four: weights are kept.
  assert products == 12 * [('bf16', 'bf16')]
  for found, expected in zip(gradients(*half), gradients(*whole), strict=True):
    assert found.dtype == jnp.bfloat16
    np.testing.assert_allclose(
      found.astype(jnp.float32), expected, atol=0.03 * np.abs(expected).max()
    )


@pytest.mark.parametrize(
  'sequence, tensor, form',
  [(2, 2, PLAIN_8), (8, 1, PLAIN_8), (2, 2, FORMS[-1])],
)
def test_rows_spread_over_devices(sequence, tensor, form):
  """Shares of 160 and 40 tokens: of three blocks, and of one."""
  rng = np.random.default_rng(sequence)
  shape = (1, 320, 4, 8)
  query = rng.normal(size=shape).astype(np.float32)
  key, value = rng.normal(size=(2, 1, 320, 2, 8)).astype(np.float32)
  ids = np.sort(rng.integers(0, 4, shape[:2]), axis=1)[:, ::-1].copy()
  config = MeshConfig(data=1, fsdp=1, sequence=sequence, tensor=tensor)
  mesh = mesh_lib.make_mesh(config, jax.devices()[: sequence * tensor])

  def mixed(query, key, value):
    segments = attention.segments(jnp.asarray(ids), 'xla', 0)
    found = attention.attention(query, key, value, segments, 'xla', form)
    return (found**2).sum(), found

  grad = functools.partial(jax.grad, argnums=(0, 1, 2), has_aux=True)
  expected, _ = grad(mixed)(query, key, value)
  with partitioning.use_mesh(mesh):
    program = jax.jit(grad(lambda *args: mixed(*args)))
    program = program.lower(query, key, value).compile()
  grads, found = program(query, key, value)
  exact = oracle(query, key, value, ids, form)
  np.testing.assert_allclose(found, exact, atol=2e-5)
  for one, other in zip(grads, expected, strict=True):
    np.testing.assert_allclose(one, other, atol=2e-5)


def interpret(monkeypatch):
  monkeypatch.setattr(
    splash,
    'make_splash_mha',
    functools.partial(splash.make_splash_mha, interpret=True),
  )


def packed(length, kv_heads, dim):
  """Within a block one ends and another begins; padding is there, too."""
  rng = np.random.default_rng(length)
  inputs = [
    jnp.asarray(rng.normal(size=(2, length, heads, dim)), jnp.float32)
    for heads in (4, kv_heads, kv_heads)
  ]
  ids = np.sort(rng.integers(1, 6, (2, length)), axis=1)
  ids[1, -length // 5 :] = 0
  return inputs, attention.segments(jnp.asarray(ids), 'splash', 0)


@pytest.mark.parametrize(
  'length, kv_heads, dim, form',
  [
    (128, 4, 128, PLAIN_128),
    (640, 2, 64, PLAIN_64),
    (768, 1, 64, PLAIN_64),
    (640, 2, 64, attention.Logits(0.1, softcap=1.0, window=200)),
    (640, 2, 64, attention.Logits(0.1, window=1)),
  ],
)
def test_splash_equals_xla(monkeypatch, length, kv_heads, dim, form):
  """As the interpreter of Pallas runs it: one block, five, three."""
  interpret(monkeypatch)
  inputs, segments = packed(length, kv_heads, dim)
  found, expected = (
    attention.attention(*inputs, segments, backend, form)
    for backend in ('splash', 'xla')
  )
  np.testing.assert_allclose(found, expected, atol=5e-6)


@pytest.mark.parametrize(
  'form', [PLAIN_64, attention.Logits(0.1, softcap=1.0, window=40)]
)
def test_the_gradient_of_splash_equals_that_of_xla(monkeypatch, form):
  """Two blocks by two, of which one is skipped."""
  interpret(monkeypatch)
  monkeypatch.setattr(attention, 'SPLASH_BLOCKS', (128,))
  inputs, segments = packed(256, 2, 64)
  direction = np.random.default_rng(0).normal(size=inputs[0].shape)

  def pulled(backend):
    _, pull = jax.vjp(
      lambda *x: attention.attention(*x, segments, backend, form), *inputs
    )
    return pull(jnp.asarray(direction, jnp.float32))

  for found, expected in zip(pulled('splash'), pulled('xla'), strict=True):
    np.testing.assert_allclose(found, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
  'sequence, tensor, form',
  [
    (2, 2, PLAIN_64),
    (4, 1, PLAIN_64),
    (2, 1, attention.Logits(0.1, softcap=1.0, window=150)),
  ],
)
def test_splash_of_rows_over_devices(monkeypatch, sequence, tensor, form):
  """Each share skips its own future, and its part of a key's gradient adds up."""
  interpret(monkeypatch)
  monkeypatch.setattr(attention, 'SPLASH_BLOCKS', (128,))
  inputs, segments = packed(512, 2, 64)
  direction = jnp.asarray(
    np.random.default_rng(0).normal(size=inputs[0].shape), jnp.float32
  )
  config = MeshConfig(data=1, fsdp=1, sequence=sequence, tensor=tensor)
  mesh = mesh_lib.make_mesh(config, jax.devices()[: sequence * tensor])

  def mixed(backend, *inputs):
    found, pull = jax.vjp(
      lambda *x: attention.attention(*x, segments, backend, form), *inputs
    )
    return found, pull(direction)

  expected = mixed('xla', *inputs)
  with partitioning.use_mesh(mesh):
    found = jax.jit(functools.partial(mixed, 'splash'))(*inputs)
  for one, other in zip(
    jax.tree.leaves(found), jax.tree.leaves(expected), strict=True
  ):
    np.testing.assert_allclose(one, other, atol=1e-5, rtol=1e-5)
