"""Attention on GPUs: cuDNN's table of segments, and JAX's kernel."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.cudnn import fused_attention_stablehlo as fused

from infoprune_jax.config.experiment import MeshConfig
from infoprune_jax.model import (
  attention,
  backends,
  mesh as mesh_lib,
  partitioning,
)
from infoprune_jax.model.kernels import gpu_attention

needs_packed_cudnn = pytest.mark.skipif(
  backends.compute_capability(jax.devices()[0]) < backends.CUDNN_CAPABILITY,
  reason='needs an NVIDIA GPU of compute capability 9.0 or later',
)
SCALE = attention.Logits(0.125)


def packed_ids(rng, sequences, length, most):
  """Segments from 1 on, as few as one and as many as `most`; then padding."""
  ids = np.zeros((sequences, length), np.int32)
  for line in ids:
    cuts = rng.choice(length, rng.integers(0, most), replace=False)
    line[:] = 1 + np.searchsorted(np.sort(cuts), np.arange(length), 'right')
    if rng.random() < 0.5:
      line[length - rng.integers(1, length // 2) :] = 0
  return ids


def starts_of(ids):
  """Where segments begin in the joined sequences."""
  begins = np.diff(ids, axis=1, prepend=-1) != 0
  return np.flatnonzero(begins.reshape(-1))


def joined(lengths, offsets, length):
  """The list that JAX gives to cuDNN: length and start of each segment."""
  query = jnp.zeros((len(lengths), length, 1, 1))
  sizes, _, starts, _ = fused._fix_seqlen_offsets(
    lengths, lengths, offsets, offsets, query, query
  )
  return np.ravel(sizes), np.ravel(starts)


@pytest.mark.parametrize('segments', [1, 2, 7, 8, 1000])
@pytest.mark.parametrize('growth', [2, 4])
def test_a_limit_has_room(segments, growth):
  limit = gpu_attention.segment_limit(segments, growth)
  assert segments <= limit and (limit == 2 or limit < growth * segments)


def test_a_mean_limit_has_room_for_every_segment():
  """A limit far below the maximum gives cuDNN the same list of segments."""
  rng = np.random.default_rng(0)
  for _ in range(2):
    ids = packed_ids(rng, 8, 64, 40)
    batch = {'decoder_segment_ids': jnp.asarray(ids), 'x': jnp.asarray(ids)}
    ordered = gpu_attention.fewest_segments_first(batch)['x']
    limit = gpu_attention.mean_segments(ids)
    lengths, offsets, fits = gpu_attention.segment_table(ordered, limit)
    assert fits.all() and limit < 40
    sizes, starts = joined(lengths, offsets, 64)
    expected = starts_of(np.asarray(ordered))
    count = len(expected)
    np.testing.assert_array_equal(starts[:count], expected)
    np.testing.assert_array_equal(
      sizes[:count], np.diff(expected, append=8 * 64)
    )
    assert not sizes[count:].any() and (starts[count:] == 8 * 64).all()


def test_a_table_without_room_says_so():
  ids = jnp.asarray([[1, 2, 3, 4], [1, 1, 1, 1]])
  assert not gpu_attention.segment_table(ids, 2)[2].any()  # Line 1 begins late.
  assert gpu_attention.segment_table(ids[::-1], 3)[2].all()
  assert not gpu_attention.segment_table(ids[::-1], 2)[2].any()


def test_cudnn_gets_every_token_in_one_segment():
  ids = jnp.array([[1, 1, 2, 3, 3, 3], [1, 1, 1, 1, 0, 0], [0] * 6])
  lengths, offsets, fits = attention.segments(ids, 'cudnn', 5).table
  sizes, starts = joined(lengths, offsets, 6)
  assert fits.all()
  assert sizes.tolist() == [2, 1, 3, 4, 2, 6, *[0] * 9]
  assert starts.tolist()[:7] == [0, 2, 3, 6, 10, 12, 18]


def test_each_device_sorts_its_own_sequences():
  ids = np.array([[1, 2, 3], [1, 1, 2], [1, 2, 3], [1, 1, 1]])
  batch = {
    'decoder_segment_ids': jnp.asarray(ids),
    'x': jnp.arange(12).reshape(4, 3),
  }
  mesh = mesh_lib.make_mesh(
    MeshConfig(data=2, fsdp=1, tensor=1), jax.devices()[:2]
  )
  with partitioning.use_mesh(mesh):
    found = jax.jit(gpu_attention.fewest_segments_first)(batch)
  assert (np.asarray(found['x'])[:, 0] // 3).tolist() == [1, 0, 3, 2]


def arrays(length, kv_heads, dtype=jnp.float32):
  rng = np.random.default_rng(length)
  ids = packed_ids(rng, 2, length, 6)
  inputs = [
    jnp.asarray(rng.normal(size=(2, length, heads, 64)), dtype)
    for heads in (4, kv_heads, kv_heads)
  ]
  direction = jnp.asarray(rng.normal(size=inputs[0].shape), dtype)
  return inputs, jnp.asarray(ids), direction


def pulled(backend, limit, inputs, ids, direction):
  """The output and its gradients."""
  segments = attention.segments(ids, backend, limit)
  out, pull = jax.vjp(
    lambda *x: attention.attention(*x, segments, backend, SCALE), *inputs
  )
  return [np.asarray(x, np.float32) for x in (out, *pull(direction))]


def lowered(backend, kv_heads):
  """The text of a gradient for a GPU; what it computes is another test's."""
  inputs, ids, _ = arrays(100, kv_heads, jnp.bfloat16)
  segments = attention.segments(ids, backend, 8)

  def total(*x):
    mixed = attention.attention(*x, segments, backend, SCALE)
    return mixed.astype(jnp.float32).sum()

  program = jax.jit(jax.grad(total, (0, 1, 2))).trace(*inputs)
  return program.lower(lowering_platforms=('cuda',)).as_text()


@pytest.mark.parametrize('version, kv_heads', [((0, 10, 2), 4), ((9, 0), 2)])
def test_cudnn_gets_as_many_key_heads_as_are_right(
  monkeypatch, version, kv_heads
):
  """An older JAX reads the wrong keys if there are fewer than queries."""
  monkeypatch.setattr(fused, 'check_cudnn_version', lambda: 91200)
  monkeypatch.setattr(fused, 'check_compute_capability', lambda _: True)
  monkeypatch.setattr(jax, '__version_info__', version)
  text = lowered('cudnn', 2)
  assert '__cudnn$fmhaSoftmaxBackward' in text
  [call] = [x for x in text.splitlines() if 'fmhaSoftmaxBackward' in x]
  shapes = call.split(': (')[1]
  assert shapes.count('tensor<2x100x4x64xbf16>') >= 2
  assert ('tensor<2x100x2x64xbf16>' in shapes) == (kv_heads == 2)


def test_pallas_is_lowered_for_a_gpu():
  assert lowered('pallas', 2).count('@__gpu$xla.gpu.triton') == 3


def test_pallas_equals_xla(monkeypatch):
  """As the interpreter of Pallas runs it: two blocks, shared keys, gradients."""
  module = gpu_attention.pallas_attention()
  monkeypatch.setattr(
    module, 'mha', functools.partial(module.mha, interpret=True)
  )
  inputs = arrays(70, 2)
  found, expected = (pulled(name, 0, *inputs) for name in ('pallas', 'xla'))
  for one, other in zip(found, expected, strict=True):
    np.testing.assert_allclose(one, other, atol=2e-5)


@needs_packed_cudnn
@pytest.mark.parametrize('backend, limit', [('cudnn', 8), ('pallas', 0)])
@pytest.mark.parametrize('kv_heads', [2, 4])
def test_a_gpu_computes_what_xla_does(backend, limit, kv_heads):
  inputs = arrays(256, kv_heads, jnp.bfloat16)
  found = pulled(backend, limit, *inputs)
  expected = pulled('xla', 0, *inputs)
  for one, other in zip(found, expected, strict=True):
    assert np.abs(one - other).max() < 0.02 * np.abs(other).max()
