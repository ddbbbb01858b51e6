"""Kernels for Hopper GPUs: compiled anywhere up to PTX, run where there is one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from infoprune_jax.model.kernels import hopper

ROWS, WIDTH, VOCAB, INNER = 512, 128, 1000, 192


def on_hopper() -> bool:
  device = jax.devices()[0]
  return getattr(device, 'compute_capability', '') == '9.0'


needs_hopper = pytest.mark.skipif(
  not on_hopper(), reason='needs an H100 or H200'
)


def normal(seed: int, *shape: int) -> jax.Array:
  values = np.random.default_rng(seed).normal(size=shape)
  return jnp.asarray(values, jnp.bfloat16)


@pytest.mark.parametrize(
  'function, shapes',
  [
    (hopper.logsumexp, [(ROWS, WIDTH), (VOCAB, WIDTH)]),
    (hopper.gated, [(ROWS, WIDTH), (WIDTH, INNER), (WIDTH, INNER)]),
  ],
)
def test_lowers_for_a_gpu_from_anywhere(function, shapes):
  """This JAX still has all that the kernels are made of."""
  arguments = [jax.ShapeDtypeStruct(shape, jnp.bfloat16) for shape in shapes]
  lowered = jax.jit(function).trace(*arguments)
  text = lowered.lower(lowering_platforms=('cuda',)).as_text()
  assert 'mosaic_gpu' in text


@pytest.mark.parametrize(
  'rows, width, columns, supported',
  [
    (512, 128, 192, True),
    (384, 128, 192, False),
    (512, 96, 192, False),
    (512, 128, 100, False),
  ],
)
def test_supports_whole_tiles(rows, width, columns, supported):
  assert hopper.supports(rows, width, columns) == supported


@needs_hopper
@pytest.mark.parametrize('rows', [256, ROWS, 40 * 256])
@pytest.mark.parametrize('vocab', [100, 128, VOCAB, 2**15 + 8])
def test_logsumexp_is_that_of_float32_logits(rows, vocab):
  hidden, table = normal(0, rows, WIDTH), normal(1, vocab, WIDTH)
  logits = jnp.matmul(
    hidden.astype(jnp.float32),
    table.astype(jnp.float32).T,
    precision='highest',
  )
  expected = jax.nn.logsumexp(logits, axis=1)
  found = jax.jit(hopper.logsumexp)(hidden, table)
  np.testing.assert_allclose(found, expected, atol=1e-4)


@needs_hopper
@pytest.mark.parametrize('rows', [256, 40 * 256])
def test_gated_rounds_once(rows):
  x, gate, up = (
    normal(0, rows, WIDTH),
    normal(1, WIDTH, INNER),
    normal(2, WIDTH, INNER),
  )
  wide = [a.astype(jnp.float32) for a in (x, gate, up)]
  opening, value = (
    jnp.matmul(wide[0], right, precision='highest') for right in wide[1:]
  )
  expected = jax.nn.silu(opening) * value
  found = jax.jit(hopper.gated)(x, gate, up).astype(jnp.float32)
  # Half a unit in the last of bfloat16's eight places.
  np.testing.assert_allclose(found, expected, rtol=2**-8, atol=1e-3)
