"""Collectives between devices, within `partitioning.per_device`.

An axis that is not spread needs none, nor does anything outside of `use_mesh`:
the functions then return their argument.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from infoprune_jax.model.partitioning import current_mesh


def axis_index(logical_axis: str) -> jax.Array | int:
  """The index of this device's shard of a logical axis."""
  mesh = current_mesh()
  if mesh is None or not mesh.axes(logical_axis):
    return 0
  return jax.lax.axis_index(mesh.axes(logical_axis))


def reduce_axis(
  reduce: Callable[..., jax.Array], x: jax.Array, logical_axis: str
) -> jax.Array:
  """`jax.lax.psum` or `pmax` over a logical axis."""
  mesh = current_mesh()
  if mesh is None or not mesh.axes(logical_axis):
    return x
  return reduce(x, mesh.axes(logical_axis))


def gather_axis(x: jax.Array, logical_axis: str, axis: int) -> jax.Array:
  """The arrays of all shards of a logical axis, joined.

  For arrays without a gradient; see `all_gather_axis` for others.
  """
  mesh = current_mesh()
  if mesh is None or mesh.num_shards(logical_axis) == 1:
    return x
  return jax.lax.all_gather(x, mesh.axes(logical_axis), axis=axis, tiled=True)


def exchange_axis(
  x: jax.Array, logical_axis: str, split: int, join: int
) -> jax.Array:
  """An all-to-all between shards of a logical axis.

  Each device cuts its array along the axis `split`, and gets one part of every
  device. It joins them along the axis `join`.
  """
  mesh = current_mesh()
  if mesh is None or mesh.num_shards(logical_axis) == 1:
    return x
  return jax.lax.all_to_all(x, mesh.axes(logical_axis), split, join, tiled=True)


def all_gather_axis(x: jax.Array, logical_axis: str, axis: int) -> jax.Array:
  """Gathers an array along an axis that is spread.

  The gradient is reduce-scattered in float32: each device gets its own shard.
  If the array came whole into `per_device`, it would be all-reduced.
  """
  mesh = current_mesh()
  if mesh is None or mesh.num_shards(logical_axis) == 1:
    return x
  return _all_gather_axis(
    x, mesh.axes(logical_axis), mesh.num_shards(logical_axis), axis
  )


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def _all_gather_axis(
  x: jax.Array, names: tuple[str, ...], num_shards: int, axis: int
) -> jax.Array:
  del num_shards  # For the gradient.
  return jax.lax.all_gather(x, names, axis=axis, tiled=True)


def _all_gather_forward(
  x: jax.Array, names: tuple[str, ...], num_shards: int, axis: int
) -> tuple[jax.Array, None]:
  return _all_gather_axis(x, names, num_shards, axis), None


def _all_gather_backward(
  names: tuple[str, ...], num_shards: int, axis: int, _: None, grad: jax.Array
) -> tuple[jax.Array]:
  # The TPU compiler turns a reduce-scatter over both axes of a pod into an
  # all-reduce.
  blocks = grad.reshape(
    *grad.shape[:axis], num_shards, -1, *grad.shape[axis + 1 :]
  )
  blocks = jax.lax.all_to_all(blocks, names, axis, axis)
  return (blocks.sum(axis, dtype=jnp.float32).astype(grad.dtype),)


_all_gather_axis.defvjp(_all_gather_forward, _all_gather_backward)
