"""Two matrix products as Hopper kernels, in Pallas for Mosaic GPU.

The results of each product are reduced in registers: logits to the logarithm of
their sum of exponentials, a gate and its value to one number. One block of
threads per multiprocessor goes over tiles of [2 x ROWS, COLUMNS]. One warpgroup
loads (TMA) into a ring of SLOTS buffers, and two multiply (wgmma), each its own
ROWS of a tile. Inputs are bfloat16, sums float32.
"""

import dataclasses
import functools
import inspect
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxtyping import Array, BFloat16, Float

ROWS, COLUMNS, DEPTH = 128, 128, 64  # of a tile, a warpgroup, a step
SLOTS = 4  # As many as fit into shared memory, with COLUMNS of output.
WARPGROUPS = 2  # that multiply
# This many tiles along the rows go over all columns together, so that the parts
# of both operands that they read stay in the L2 cache.
ROW_TILES = 8
LOG2E = math.log2(math.e)
# Rows of 128 bytes, swizzled, as TMA and wgmma need them.
TRANSFORMS = (
  plgpu.TilingTransform((8, DEPTH)),
  plgpu.SwizzleTransform(128),
)
# JAX 0.11 renamed the argument.
_OUT_TYPE = (
  'out_type'
  if 'out_type' in inspect.signature(plgpu.kernel).parameters
  else 'out_shape'
)


def supports(rows: int, width: int, columns: int) -> bool:
  """Whether `gated` takes [rows, width] and [width, columns]."""
  return not (
    rows % (WARPGROUPS * ROWS) or width % DEPTH or columns % (COLUMNS // 2)
  )


def logsumexp(
  hidden: BFloat16[Array, 'N D'], table: BFloat16[Array, 'V D']
) -> Float[Array, 'N']:
  """log(sum(exp(hidden @ table.T))) of each row, float32; no logit is written.

  Args:
    hidden: N a multiple of 256, D of 64.
    table: Any V; XLA computes columns beyond a multiple of 128.
  """
  whole = table.shape[0] // COLUMNS * COLUMNS
  parts = []
  if whole:
    parts.append(_kernel_logsumexp(hidden, table[:whole]))
  if whole < table.shape[0]:
    rest = jnp.einsum(
      'ND,VD->NV', hidden, table[whole:], preferred_element_type=jnp.float32
    )
    parts.append(jax.nn.logsumexp(rest, axis=1))
  return functools.reduce(jnp.logaddexp, parts)


def _kernel_logsumexp(
  hidden: BFloat16[Array, 'N D'], table: BFloat16[Array, 'V D']
) -> Float[Array, 'N']:

  def reduce(tiles: Any, scratch: Any, out: Any, row: Any, column: Any) -> None:
    [tile] = tiles
    top = tile.max(axis=1) * LOG2E
    shifted = tile * LOG2E - lax.broadcast_in_dim(top, tile.shape, [0])
    total = jnp.exp2(shifted).sum(axis=1)
    plgpu.wait_smem_to_gmem(0, wait_read_only=True)
    scratch[...] = top / LOG2E + jnp.log(total)
    plgpu.commit_smem()
    plgpu.copy_smem_to_gmem(scratch, out.at[column, pl.ds(row * ROWS, ROWS)])

  partial = _product(
    hidden,
    [table],
    table_major=True,
    out=jax.ShapeDtypeStruct(
      (table.shape[0] // COLUMNS, hidden.shape[0]), jnp.float32
    ),
    scratch=plgpu.SMEM((WARPGROUPS, ROWS), jnp.float32),
    epilogue=reduce,
  )
  return jax.nn.logsumexp(partial, axis=0)


def gated(
  x: BFloat16[Array, 'N D'],
  gate: BFloat16[Array, 'D F'],
  up: BFloat16[Array, 'D F'],
) -> BFloat16[Array, 'N F']:
  """silu(x @ gate) * (x @ up), rounded once.

  Args:
    x: N a multiple of 256, D of 64.
    gate: F a multiple of 64.
    up: As `gate`.
  """
  half = COLUMNS // 2

  def multiply(
    tiles: Any, scratch: Any, out: Any, row: Any, column: Any
  ) -> None:
    opening, value = tiles
    result = opening / (1 + jnp.exp2(opening * -LOG2E)) * value
    plgpu.wait_smem_to_gmem(0, wait_read_only=True)
    scratch[...] = result.astype(x.dtype)
    plgpu.commit_smem()
    plgpu.copy_smem_to_gmem(
      scratch,
      out.at[pl.ds(row * ROWS, ROWS), pl.ds(column * half, half)],
    )

  return _product(
    x,
    [gate, up],
    table_major=False,
    out=jax.ShapeDtypeStruct((x.shape[0], gate.shape[1]), x.dtype),
    scratch=plgpu.SMEM(
      (WARPGROUPS, ROWS, half), x.dtype, transforms=TRANSFORMS
    ),
    epilogue=multiply,
  )


@dataclasses.dataclass(frozen=True)
class _Product:
  """left @ rights in tiles; calls `epilogue` on each tile in registers.

  left is [N, D]; rights are [D, F] each, or [F, D] if table_major.
  """

  table_major: bool
  right_columns: int  # columns of a tile from each right
  steps: int  # of DEPTH
  row_tiles: int
  columns: int  # tiles side by side
  processors: int
  # Called with a tile [ROWS, right_columns] float32 for each right, the warpgroup's
  # scratch, the output, and the tiles' numbers in row and column.
  epilogue: Callable[..., None]

  def place(self, tile: Any) -> tuple[Any, Any]:
    """Row and column of a tile, in groups of ROW_TILES."""
    # lax.div, here and below: // needs the sign, which JAX 0.8 kernels lack.
    group = lax.div(tile, ROW_TILES * self.columns)
    within = tile - group * (ROW_TILES * self.columns)
    height = jnp.minimum(ROW_TILES, self.row_tiles - group * ROW_TILES)
    column = lax.div(within, height)
    return group * ROW_TILES + within - column * height, column

  def __call__(
    self,
    left: Array,
    rights: Sequence[Array],
    out: jax.ShapeDtypeStruct,
    scratch: Any,
  ) -> Array:
    """Returns the output of the epilogues; each warpgroup has its `scratch`."""

    def kernel(left_ref: Any, *refs: Any) -> None:
      *right_refs, out_ref = refs
      right = (
        (self.right_columns, DEPTH)
        if self.table_major
        else (DEPTH, self.right_columns)
      )
      pl.run_scoped(
        functools.partial(self._block, left_ref, right_refs, out_ref),
        plgpu.SMEM(
          (SLOTS, WARPGROUPS * ROWS, DEPTH), left.dtype, transforms=TRANSFORMS
        ),
        plgpu.SMEM(
          (SLOTS, len(rights), *right), left.dtype, transforms=TRANSFORMS
        ),
        plgpu.Barrier(num_arrivals=1 + len(rights), num_barriers=SLOTS),
        plgpu.Barrier(num_arrivals=WARPGROUPS, num_barriers=SLOTS),
        scratch,
        collective_axes='warpgroup',
      )

    output: dict[str, Any] = {_OUT_TYPE: out}
    return plgpu.kernel(
      kernel,
      grid=(self.processors,),
      grid_names=('block',),
      num_threads=WARPGROUPS + 1,
      thread_name='warpgroup',
      compiler_params=plgpu.CompilerParams(approx_math=True),
      **output,
    )(left, *rights)

  def _block(
    self,
    left_ref: Any,
    right_refs: Any,
    out_ref: Any,
    left_ring: Any,
    right_ring: Any,
    full: Any,
    free: Any,
    scratch: Any,
  ) -> None:
    """The tiles of one block: one warpgroup loads, and two multiply."""
    group, block = lax.axis_index('warpgroup'), lax.axis_index('block')
    tiles = self.row_tiles * self.columns
    mine = lax.div(tiles - block + self.processors - 1, self.processors)

    def multiply(index: Any, _: None) -> None:
      row, column = self.place(block + index * self.processors)
      sums = pl.run_scoped(
        functools.partial(
          self._accumulate,
          index * self.steps,
          left_ring.at[:, pl.ds(group * ROWS, ROWS)],
          right_ring,
          full,
          free,
        ),
        *[
          plgpu.ACC(  # pyright: ignore[reportPrivateImportUsage]
            (ROWS, self.right_columns), jnp.float32
          )
          for _ in right_refs
        ],
      )
      row = WARPGROUPS * row + group
      self.epilogue(sums, scratch.at[group], out_ref, row, column)

    load = functools.partial(
      self._load, block, left_ref, right_refs, left_ring, right_ring, full, free
    )

    @pl.when(group < WARPGROUPS)
    def _() -> None:
      plgpu.set_max_registers(232, action='increase')
      lax.fori_loop(0, mine, multiply, None)
      plgpu.wait_smem_to_gmem(0)

    @pl.when(group == WARPGROUPS)
    def _() -> None:
      plgpu.set_max_registers(40, action='decrease')
      lax.fori_loop(0, mine * self.steps, load, None)

  def _load(
    self,
    block: Any,
    left_ref: Any,
    right_refs: Any,
    left_ring: Any,
    right_ring: Any,
    full: Any,
    free: Any,
    step: Any,
    _: None,
  ) -> None:
    """Loads the operands of one step into a slot."""
    row, column = self.place(
      block + lax.div(step, self.steps) * self.processors
    )
    slot = lax.rem(step, SLOTS)
    depth = pl.ds(lax.rem(step, self.steps) * DEPTH, DEPTH)

    @pl.when(step >= SLOTS)
    def _() -> None:
      plgpu.barrier_wait(free.at[slot])

    height = WARPGROUPS * ROWS
    plgpu.copy_gmem_to_smem(
      left_ref.at[pl.ds(row * height, height), depth],
      left_ring.at[slot],
      full.at[slot],
    )
    wanted = pl.ds(column * self.right_columns, self.right_columns)
    for number, right in enumerate(right_refs):
      place = (wanted, depth) if self.table_major else (depth, wanted)
      plgpu.copy_gmem_to_smem(
        right.at[place], right_ring.at[slot, number], full.at[slot]
      )

  def _accumulate(
    self,
    first: Any,
    left_ring: Any,
    right_ring: Any,
    full: Any,
    free: Any,
    *sums: Any,
  ) -> Any:
    """The tiles of one warpgroup, summed over the slots from the first on."""

    def step(index: Any, _: None) -> None:
      slot = lax.rem(first + index, SLOTS)
      plgpu.barrier_wait(full.at[slot])
      for number, sum_ in enumerate(sums):
        right = right_ring.at[slot, number]
        plgpu.wgmma(
          sum_,
          left_ring.at[slot],
          right.transpose((1, 0)) if self.table_major else right,
        )
      plgpu.wgmma_wait(len(sums))

      @pl.when(index > 0)
      def _() -> None:  # The product before this one no longer needs its slot.
        plgpu.barrier_arrive(free.at[lax.rem(first + index - 1, SLOTS)])

    lax.fori_loop(0, self.steps, step, None)
    plgpu.wgmma_wait(0)
    plgpu.barrier_arrive(free.at[lax.rem(first + self.steps - 1, SLOTS)])
    return [sum_[...] for sum_ in sums]


def _product(
  left: Array,
  rights: Sequence[Array],
  *,
  table_major: bool,
  out: jax.ShapeDtypeStruct,
  scratch: Any,
  epilogue: Callable[..., None],
) -> Array:
  """Sizes a `_Product` to its arrays, and runs it."""
  rows, width = left.shape
  right_columns = COLUMNS // len(rights)
  on_gpu = jax.default_backend() == 'gpu'
  product = _Product(
    table_major=table_major,
    right_columns=right_columns,
    steps=width // DEPTH,
    row_tiles=rows // (WARPGROUPS * ROWS),
    columns=rights[0].shape[0 if table_major else 1] // right_columns,
    # Any number is correct; one per multiprocessor is fast.
    processors=jax.devices()[0].core_count if on_gpu else 132,
    epilogue=epilogue,
  )
  return product(left, rights, out, scratch)
