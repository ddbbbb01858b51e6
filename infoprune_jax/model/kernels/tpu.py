"""The loss's matrix product as a TPU kernel, in Pallas for Mosaic.

A block of tokens stays in a core's vector memory while the table is streamed
through it. The logits of a block are reduced there, and never reach HBM. Inputs
are bfloat16, sums float32.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, BFloat16, Float

LANES, SUBLANES = 128, 16  # of a tile of bfloat16
# Tokens per read of the table. A v6e, which needs the most, computes 560 FLOPs
# in the time of reading a byte; a byte of the table gives one FLOP per token.
ROWS = 1024
# A block of the table has as many columns as fit these bytes: on a v5e a step
# then takes about 14,000 cycles, far more than starting one.
TABLE_BYTES, MAX_COLUMNS = 2 * 2**20, 1024
COLUMNS = 512  # of a block whose logits are reduced at once
# A v5p has 64 MiB, a v5e or v6e 128 MiB. At MAX_WIDTH the blocks of tokens and
# table take 36 MiB: each exists twice, because the next is read while the other
# is used. Logits and their sums take a few MiB more.
VMEM_BYTES = 56 * 2**20
MAX_WIDTH = 8192
LOWEST = float(jnp.finfo(jnp.float32).min)


def supports(width: int) -> bool:
  """Whether `logsumexp` takes a hidden state of this width."""
  return width % LANES == 0 and width <= MAX_WIDTH


def logsumexp(
  hidden: BFloat16[Array, 'N D'], table: BFloat16[Array, 'V D']
) -> Float[Array, 'N']:
  """log(sum(exp(hidden @ table.T))) of each row, float32; no logit is written.

  Args:
    hidden: Any N; D a multiple of 128, up to 8192.
    table: Any V.
  """
  rows, width = hidden.shape
  vocab = table.shape[0]
  height = min(ROWS, _round_up(rows, SUBLANES))
  block = TABLE_BYTES // (width * table.dtype.itemsize)
  block = min(block // LANES * LANES, MAX_COLUMNS, _round_up(vocab, LANES))
  log_sum = pl.pallas_call(
    functools.partial(_reduce, vocab=vocab),
    out_shape=jax.ShapeDtypeStruct((rows, 1), jnp.float32),
    grid=(pl.cdiv(rows, height), pl.cdiv(vocab, block)),
    in_specs=[
      pl.BlockSpec((height, width), lambda row, column: (row, 0)),
      pl.BlockSpec((block, width), lambda row, column: (column, 0)),
    ],
    out_specs=pl.BlockSpec((height, 1), lambda row, column: (row, 0)),
    scratch_shapes=[pltpu.VMEM((height, LANES), jnp.float32)] * 2,
    compiler_params=pltpu.CompilerParams(
      dimension_semantics=('parallel', 'arbitrary'),
      vmem_limit_bytes=VMEM_BYTES,
    ),
    cost_estimate=pl.CostEstimate(
      flops=2 * rows * vocab * width,
      transcendentals=rows * vocab,
      bytes_accessed=pl.cdiv(rows, height) * table.nbytes + hidden.nbytes,
    ),
    name='logsumexp',
  )(hidden, table)
  return log_sum[:, 0]


def _round_up(size: int, multiple: int) -> int:
  return pl.cdiv(size, multiple) * multiple


def _reduce(
  hidden_ref: Any,
  table_ref: Any,
  out_ref: Any,
  top_ref: Any,
  total_ref: Any,
  *,
  vocab: int,
) -> None:
  """Adds one block of the table; the last block also writes the result.

  Until then each lane has its own maximum and sum, so that no step reduces
  across lanes.
  """
  column, block = pl.program_id(1), table_ref.shape[0]
  last = pl.cdiv(vocab, block) - 1

  @pl.when(column == 0)
  def _() -> None:
    # Finite, for lanes whose columns are all beyond the vocabulary.
    top_ref[...] = jnp.full_like(top_ref, LOWEST)
    total_ref[...] = jnp.zeros_like(total_ref)

  @pl.when(column < last)
  def _() -> None:
    _add(hidden_ref, table_ref, top_ref, total_ref, block)

  @pl.when(column == last)
  def _() -> None:
    _add(hidden_ref, table_ref, top_ref, total_ref, vocab - last * block)
    top = top_ref[...].max(axis=1, keepdims=True)
    total = total_ref[...] * jnp.exp(top_ref[...] - top)
    out_ref[...] = top + jnp.log(total.sum(axis=1, keepdims=True))


def _add(
  hidden_ref: Any, table_ref: Any, top_ref: Any, total_ref: Any, columns: int
) -> None:
  """Adds the first columns of a block to each lane's maximum and sum."""
  for first in range(0, columns, COLUMNS):
    size = min(COLUMNS, _round_up(columns - first, LANES))
    logits = lax.dot_general(
      hidden_ref[...],
      table_ref[first : first + size],
      (((1,), (1,)), ((), ())),
      preferred_element_type=jnp.float32,
    )
    tiles = []
    for start in range(0, size, LANES):
      tile = logits[:, start : start + LANES]
      beyond = first + start + LANES - columns
      if beyond > 0:  # Values beyond the table are undefined.
        lane = lax.broadcasted_iota(jnp.int32, tile.shape, 1)
        tile = jnp.where(lane < LANES - beyond, tile, -jnp.inf)
      tiles.append(tile)
    old = top_ref[...]
    top = functools.reduce(jnp.maximum, tiles, old)
    total = total_ref[...] * jnp.exp(old - top)
    total_ref[...] = sum((jnp.exp(tile - top) for tile in tiles), total)
    top_ref[...] = top
