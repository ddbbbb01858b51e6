"""The kernel for TPUs, as the interpreter of Pallas runs it; no TPU needed.

The interpreter fills what a kernel reads beyond an array, or has not written,
with NaN. `tests/score/test_tpu.py` compiles the kernel for TPUs.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from jax.experimental.pallas import tpu as pltpu

from infoprune_jax.model.kernels import tpu


@pytest.fixture(scope='module', autouse=True)
def small_blocks():
  """Several blocks of tokens, of the table and of columns, in little time."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(tpu, 'ROWS', 32)
    patch.setattr(tpu, 'MAX_COLUMNS', 384)
    patch.setattr(tpu, 'COLUMNS', 256)
    yield


def normal(seed: int, *shape: int) -> jax.Array:
  values = np.random.default_rng(seed).normal(size=shape)
  return jnp.asarray(values, jnp.bfloat16)


def run(hidden: jax.Array, table: jax.Array) -> np.ndarray:
  with pltpu.force_tpu_interpret_mode():
    # A function of its own: blocks are no part of what JAX caches by.
    return np.asarray(jax.jit(lambda *a: tpu.logsumexp(*a))(hidden, table))


def definition(hidden: jax.Array, table: jax.Array) -> np.ndarray:
  """In float64, from the same bfloat16."""
  logits = np.asarray(hidden, np.float64) @ np.asarray(table, np.float64).T
  top = logits.max(axis=1)
  return top + np.log(np.exp(logits - top[:, None]).sum(axis=1))


@settings(max_examples=6, deadline=None, derandomize=True)
@given(
  rows=st.integers(1, 100),
  vocab=st.integers(1, 1000),
  width=st.sampled_from([128, 384]),
  scale=st.sampled_from([0.01, 1.0, 1e4]),
)
def test_is_that_of_float32_logits(rows, vocab, width, scale):
  """Whatever the blocks leave over, and however large logits are."""
  hidden, table = normal(0, rows, width) * scale, normal(1, vocab, width)
  expected = definition(hidden, table)
  found = run(hidden, table)
  assert found.shape == (rows,)
  assert found.dtype == np.float32
  np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize('vocab', [1, 768, 769, 1023])
def test_the_last_block_ends_with_the_vocabulary(vocab):
  hidden, table = normal(0, 40, 128), normal(1, vocab, 128)
  np.testing.assert_allclose(
    run(hidden, table), definition(hidden, table), rtol=1e-6, atol=1e-5
  )


def test_what_is_not_a_number_stays_in_its_row():
  hidden = normal(0, 40, 128).at[3].set(jnp.nan)
  assert np.flatnonzero(np.isnan(run(hidden, normal(1, 1000, 128)))) == [3]


@pytest.mark.parametrize('vocab', [1000, 50257])
def test_lowers_for_a_tpu_from_anywhere(vocab):
  """This JAX still has all that the kernel is made of."""
  arguments = [
    jax.ShapeDtypeStruct(shape, jnp.bfloat16)
    for shape in ((1000, 768), (vocab, 768))
  ]
  lowered = jax.jit(tpu.logsumexp).trace(*arguments)
  text = lowered.lower(lowering_platforms=('tpu',)).as_text()
  assert 'tpu_custom_call' in text


@pytest.mark.parametrize(
  'width, supported',
  [(128, True), (768, True), (8192, True), (96, False), (8320, False)],
)
def test_supports_whole_lanes_that_fit(width, supported):
  assert tpu.supports(width) == supported
