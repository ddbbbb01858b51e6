import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.cudnn import fused_attention_stablehlo as cudnn
from jax.experimental.pallas.ops.tpu import splash_attention as splash

from infoprune_jax.config.experiment import MeshConfig
from infoprune_jax.model import (
  attention,
  backends,
  mesh as mesh_lib,
  partitioning,
)

needs_packed_cudnn = pytest.mark.skipif(
  backends.compute_capability(jax.devices()[0]) < backends.CUDNN_CAPABILITY,
  reason='needs an NVIDIA GPU of compute capability 9.0 or later',
)


def oracle(query, key, value, segments):
  """One query at a time, in float64."""
  batch, length, heads, dim = query.shape
  group = heads // key.shape[2]
  out = np.zeros(query.shape)
  for b in range(batch):
    for head in range(heads):
      k, v = key[b, :, head // group], value[b, :, head // group]
      for t in range(length):
        seen = np.arange(t + 1)[segments[b, : t + 1] == segments[b, t]]
        logits = k[seen].astype(np.float64) @ query[b, t, head] / dim**0.5
        weights = np.exp(logits - logits.max())
        out[b, t, head] = weights @ v[seen] / weights.sum()
  return out


@pytest.mark.parametrize('length', [1, 5, 64, 65, 150])
@pytest.mark.parametrize('kv_heads', [1, 2, 4])
def test_equals_the_definition(length, kv_heads):
  rng = np.random.default_rng(length)
  query = rng.normal(size=(2, length, 4, 8)).astype(np.float32)
  key = rng.normal(size=(2, length, kv_heads, 8)).astype(np.float32)
  value = rng.normal(size=(2, length, kv_heads, 8)).astype(np.float32)
  segments = np.sort(rng.integers(0, 4, (2, length)), axis=1)[:, ::-1].copy()
  found = attention.attention(
    *map(jnp.asarray, (query, key, value)),
    attention.segments(jnp.asarray(segments), 'xla', 0),
    'xla',
  )
  np.testing.assert_allclose(
    found, oracle(query, key, value, segments), atol=2e-5
  )


def plain(query, key, value, ids):
  """The definition in JAX, which differentiates it."""
  key, value = (
    jnp.repeat(x, query.shape[2] // x.shape[2], axis=2) for x in (key, value)
  )
  logits = jnp.einsum('BTNH,BSNH->BNTS', query, key, precision='highest')
  seen = (ids[:, :, None] == ids[:, None]) & np.tri(ids.shape[1], dtype=bool)
  logits = jnp.where(seen[:, None], logits / query.shape[3] ** 0.5, -jnp.inf)
  weights = jax.nn.softmax(logits, axis=-1)
  return jnp.einsum('BNTS,BSNH->BTNH', weights, value, precision='highest')


def by_blocks(query, key, value, ids):
  segments = attention.segments(ids, 'xla', 0)
  return attention.attention(query, key, value, segments, 'xla')


@pytest.mark.parametrize('length', [5, 64, 150])
@pytest.mark.parametrize('kv_heads', [1, 2, 4])
def test_the_gradient_is_that_of_the_definition(length, kv_heads):
  rng = np.random.default_rng(length)
  arrays = [
    jnp.asarray(rng.normal(size=(2, length, heads, 8)), jnp.float32)
    for heads in (4, kv_heads, kv_heads)
  ]
  ids = np.sort(rng.integers(0, 4, (2, length)), axis=1)[:, ::-1]
  ids = jnp.asarray(ids.copy())
  out, expected_backward = jax.vjp(lambda *a: plain(*a, ids), *arrays)
  _, backward = jax.vjp(lambda *a: by_blocks(*a, ids), *arrays)
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


@pytest.mark.parametrize('sequence, tensor', [(2, 2), (8, 1)])
def test_rows_spread_over_devices(sequence, tensor):
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
    found = attention.attention(query, key, value, segments, 'xla')
    return (found**2).sum(), found

  grad = functools.partial(jax.grad, argnums=(0, 1, 2), has_aux=True)
  expected, _ = grad(mixed)(query, key, value)
  with partitioning.use_mesh(mesh):
    program = jax.jit(grad(lambda *args: mixed(*args)))
    program = program.lower(query, key, value).compile()
  grads, found = program(query, key, value)
  np.testing.assert_allclose(found, oracle(query, key, value, ids), atol=2e-5)
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
  'length, kv_heads, dim', [(128, 4, 128), (640, 2, 64), (768, 1, 64)]
)
def test_splash_equals_xla(monkeypatch, length, kv_heads, dim):
  """As the interpreter of Pallas runs it: one block, five, three."""
  interpret(monkeypatch)
  inputs, segments = packed(length, kv_heads, dim)
  found, expected = (
    attention.attention(*inputs, segments, backend)
    for backend in ('splash', 'xla')
  )
  np.testing.assert_allclose(found, expected, atol=5e-6)


def test_the_gradient_of_splash_equals_that_of_xla(monkeypatch):
  """Two blocks by two, of which one is skipped."""
  interpret(monkeypatch)
  monkeypatch.setattr(attention, 'SPLASH_BLOCKS', (128,))
  inputs, segments = packed(256, 2, 64)
  direction = np.random.default_rng(0).normal(size=inputs[0].shape)

  def pulled(backend):
    _, pull = jax.vjp(
      lambda *x: attention.attention(*x, segments, backend), *inputs
    )
    return pull(jnp.asarray(direction, jnp.float32))

  for found, expected in zip(pulled('splash'), pulled('xla'), strict=True):
    np.testing.assert_allclose(found, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize('segments', [1, 2, 7, 8, 1000])
def test_a_limit_has_room_for_segments_and_padding(segments):
  limit = attention.segment_limit(segments)
  assert segments + 1 <= limit < 4 * (segments + 1)


def test_cudnn_has_a_gradient_of_packed_rows(monkeypatch):
  """Lowered for a GPU; what it computes there is another test's."""
  monkeypatch.setattr(cudnn, 'check_cudnn_version', lambda: 91200)
  monkeypatch.setattr(cudnn, 'check_compute_capability', lambda _: True)
  ids = jnp.asarray(np.sort(np.arange(256).reshape(2, 128) % 7 + 1))
  segments = attention.segments(ids, 'cudnn', 8)
  x = jnp.ones((2, 128, 4, 64), jnp.bfloat16)

  def total(*x):
    return attention.attention(*x, segments, 'cudnn').astype(jnp.float32).sum()

  text = (
    jax.jit(jax.grad(total, (0, 1, 2)))
    .trace(x, x, x)
    .lower(lowering_platforms=('cuda',))
    .as_text()
  )
  assert '__cudnn$fmhaSoftmaxBackward' in text


def test_cudnn_gets_every_token_in_one_segment():
  ids = jnp.array([[1, 1, 2, 3, 3, 3], [1, 1, 1, 1, 0, 0], [0] * 6])
  found = attention.segments(ids, 'cudnn', 5)
  assert found.lengths.tolist() == [
    [2, 1, 3, -1, -1],
    [4, 2, -1, -1, -1],
    [6, -1, -1, -1, -1],
  ]
  assert found.offsets.tolist() == [
    [0, 2, 3, -1, -1, -1],
    [0, 4, -1, -1, -1, -1],
    [0, -1, -1, -1, -1, -1],
  ]


@needs_packed_cudnn
@pytest.mark.parametrize('max_segments', [8, 32])
@pytest.mark.parametrize('kv_heads', [2, 4])
def test_cudnn_equals_the_definition(max_segments, kv_heads):
  rng = np.random.default_rng(0)
  query = rng.normal(size=(2, 256, 4, 64)).astype(np.float32)
  key = rng.normal(size=(2, 256, kv_heads, 64)).astype(np.float32)
  value = rng.normal(size=(2, 256, kv_heads, 64)).astype(np.float32)
  ids = np.sort(rng.integers(1, 7, (2, 256)), axis=1)
  ids[1, 200:] = 0
  half = [jnp.asarray(x, jnp.bfloat16) for x in (query, key, value)]
  found = attention.attention(
    *half, attention.segments(jnp.asarray(ids), 'cudnn', max_segments), 'cudnn'
  )
  exact = oracle(*[np.asarray(x, np.float32) for x in half], ids)
  np.testing.assert_allclose(np.asarray(found, np.float32), exact, atol=2e-2)


@needs_packed_cudnn
@pytest.mark.parametrize('max_segments', [8, 32])
@pytest.mark.parametrize('kv_heads', [2, 4])
def test_the_gradient_of_cudnn_equals_that_of_xla(max_segments, kv_heads):
  rng = np.random.default_rng(0)
  half = [
    jnp.asarray(rng.normal(size=(2, 256, heads, 64)), jnp.bfloat16)
    for heads in (4, kv_heads, kv_heads)
  ]
  ids = np.sort(rng.integers(1, 7, (2, 256)), axis=1)
  ids[1, 200:] = 0
  direction = jnp.asarray(rng.normal(size=half[0].shape), jnp.bfloat16)

  def pulled(backend):
    segments = attention.segments(jnp.asarray(ids), backend, max_segments)
    _, pull = jax.vjp(
      lambda *x: attention.attention(*x, segments, backend), *half
    )
    return [np.asarray(x, np.float32) for x in pull(direction)]

  for found, expected in zip(pulled('cudnn'), pulled('xla'), strict=True):
    assert np.abs(found - expected).max() < 0.02 * np.abs(expected).max()


@pytest.mark.parametrize('sequence, tensor', [(2, 2), (4, 1)])
def test_splash_of_rows_over_devices(monkeypatch, sequence, tensor):
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
      lambda *x: attention.attention(*x, segments, backend), *inputs
    )
    return found, pull(direction)

  expected = mixed('xla', *inputs)
  with partitioning.use_mesh(mesh):
    found = jax.jit(functools.partial(mixed, 'splash'))(*inputs)
  for one, other in zip(
    jax.tree.leaves(found), jax.tree.leaves(expected), strict=True
  ):
    np.testing.assert_allclose(one, other, atol=1e-5, rtol=1e-5)
