"""Rows of an embedding table, by token or position."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from infoprune_jax.model import collectives, partitioning

TOKENS = ('batch', 'length')


def look_up(
  table: Float[Array, 'R D'], ids: Int[Array, 'B T'], row_axis: str
) -> Float[Array, 'B T D']:
  """The row of each id.

  A device holds some rows and columns of the table. It looks up the ids of all
  devices that hold the other columns, and sends each its own; devices with other
  rows add theirs. XLA's own partitioning gathers the whole batch on each device
  if both rows and columns are spread.

  Args:
    table: The table, in the dtype of the computation.
    ids: Rows.
    row_axis: The logical axis of the rows: 'vocab' or 'positions'.
  """
  missing = -table.shape[0] % partitioning.num_shards(row_axis)
  table = jnp.pad(table, ((0, missing), (0, 0))) if missing else table

  def local(table: Array, ids: Array) -> Array:
    ids = collectives.gather_axis(ids, 'embed', axis=0)
    if partitioning.num_shards(row_axis) == 1:
      rows = table[ids]
    else:
      ids = ids - table.shape[0] * collectives.axis_index(row_axis)
      own = (ids >= 0) & (ids < table.shape[0])
      rows = jnp.where(own[..., None], table[jnp.where(own, ids, 0)], 0)
    rows = collectives.exchange_axis(rows, 'embed', split=0, join=2)
    return collectives.reduce_axis(jax.lax.psum, rows, row_axis)

  return partitioning.per_device(
    local, ((row_axis, 'embed'), TOKENS), (*TOKENS, 'activation_embed')
  )(table, ids)
