"""A sum and its RMSNorm in one pass over memory, in Pallas for Triton."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu
from jaxtyping import Array, BFloat16, Float

COLUMNS = 256  # of a step of a block, which is a row


def add_and_norm(
  x: BFloat16[Array, 'N D'],
  delta: BFloat16[Array, 'N D'],
  scale: Float[Array, 'D'],
  epsilon: float,
) -> tuple[BFloat16[Array, 'N D'], BFloat16[Array, 'N D']]:
  """The sum x + delta, and that over its root mean square (in float32), scaled.

  Args:
    x: D a multiple of 256.
    delta: Of the same shape.
    scale: float32.
    epsilon: Added to the mean square.
  """
  rows, width = x.shape
  block = pl.BlockSpec((1, width), lambda index: (index, 0))
  whole = pl.BlockSpec((width,), lambda index: (0,))
  shape = jax.ShapeDtypeStruct(x.shape, x.dtype)
  total, normed = pl.pallas_call(
    functools.partial(_kernel, epsilon=epsilon),
    grid=(rows,),
    in_specs=[block, block, whole],
    out_specs=[block, block],
    out_shape=[shape, shape],
    compiler_params=plgpu.CompilerParams(num_warps=1, num_stages=1),
    name='add_and_norm',
  )(x, delta, scale)
  return total, normed


def _kernel(
  x_ref: Any,
  delta_ref: Any,
  scale_ref: Any,
  total_ref: Any,
  normed_ref: Any,
  *,
  epsilon: float,
) -> None:
  width = x_ref.shape[1]
  steps = [pl.ds(first, COLUMNS) for first in range(0, width, COLUMNS)]
  totals, squares = [], jnp.zeros((1,), jnp.float32)
  for step in steps:
    total = x_ref[:, step] + delta_ref[:, step]
    total_ref[:, step] = total
    totals.append(total.astype(jnp.float32))
    squares += jnp.sum(totals[-1] * totals[-1], axis=1)
  factor = lax.rsqrt(squares / width + epsilon)[:, None]
  for step, total in zip(steps, totals, strict=True):
    normed = total * factor * scale_ref[step][None, :]
    normed_ref[:, step] = normed.astype(normed_ref.dtype)
