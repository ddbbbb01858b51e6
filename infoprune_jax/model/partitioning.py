"""Arrays over a mesh: maps logical axes to mesh axes, only in this module.

Model code names logical axes. The rules of the mesh map each to mesh axes, like
the logical axis rules of T5X. The mapping is checked against the mesh and every
parameter's shape before anything compiles.
"""

import contextlib
import contextvars
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from infoprune_jax.config.validation import UserError
from infoprune_jax.model.mesh import Mesh, check_used_once

# The mesh of `use_mesh`. `jax.set_mesh` holds the devices, but not the rules.
_mesh: contextvars.ContextVar[Mesh | None] = contextvars.ContextVar(
  'mesh', default=None
)


def spec(
  mesh: Mesh,
  logical_axes: tuple[str | None, ...],
  what: str = 'An array',
) -> PartitionSpec:
  """The partition spec of an array with these logical axes.

  Args:
    mesh: The mesh.
    logical_axes: One for each axis of the array; None for an unsharded axis.
    what: What the array is, for the message.

  Raises:
    ValueError: an axis is unknown.
    UserError: two axes have one mesh axis.
  """
  unknown = [a for a in logical_axes if a is not None and a not in mesh.rules]
  if unknown:
    raise ValueError(f'Unknown logical axes {unknown}: add them to RULES.')
  check_used_once(mesh.rules, logical_axes, what)
  return PartitionSpec(*(mesh.axes(axis) or None for axis in logical_axes))


def sharding(mesh: Mesh, logical_axes: tuple[str | None, ...]) -> NamedSharding:
  """The sharding of an array with these logical axes."""
  return NamedSharding(mesh.physical, spec(mesh, logical_axes))


def replicated(mesh: Mesh) -> NamedSharding:
  """The sharding of a value that every device holds."""
  return NamedSharding(mesh.physical, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
  """The sharding of a [B, T] batch at the input and output: whole sequences.

  Within a step its activations are spread along `length` as well.
  """
  return sharding(mesh, ('batch', None))


def shardings(mesh: Mesh, shapes: Any, logical_axes: Any, what: str) -> Any:
  """A tree of shardings for a tree of arrays or shapes.

  Args:
    mesh: The mesh.
    shapes: A tree whose leaves have a `shape`.
    logical_axes: The same tree of tuples of logical axes.
    what: What the tree is, for the message.

  Raises:
    UserError: a size is not divisible, or a mesh axis is used twice; the
      parameter, its shape, the rule and the mesh are named.
  """

  def leaf_sharding(
    path: Any, leaf: Any, axes: tuple[str | None, ...]
  ) -> NamedSharding:
    name = f'{what} {jax.tree_util.keystr(path)} of shape {leaf.shape}'
    axes = mesh.divided_axes(axes, leaf.shape)
    target = NamedSharding(mesh.physical, spec(mesh, axes, name))
    for axis, size in zip(axes, leaf.shape, strict=True):
      if size % mesh.num_shards(axis):
        raise UserError(
          f'{name} has {axis}={size}, which the rule {axis} -> '
          f'{mesh.axes(axis)} spreads over {mesh.num_shards(axis)} devices of the '
          f'mesh {dict(mesh.shape)}: it must be divisible.'
        )
    return target

  return jax.tree_util.tree_map_with_path(leaf_sharding, shapes, logical_axes)


def num_batch_shards(mesh: Mesh) -> int:
  """Number of shards of a batch."""
  return mesh.num_shards('batch')


def process_groups(mesh: Mesh) -> list[tuple[list[int], list[int]]]:
  """The groups of processes that hold the same sequences of a batch.

  Processes whose devices hold the same sequences, as with `tensor` across
  hosts, are one group: they feed the same sequences.

  Returns:
    For each group its processes and its shards of the batch, both ascending;
    groups are in the order of their first processes.

  Raises:
    UserError: two processes share some, but not all, of their sequences.
  """
  shards: dict[int, set[int]] = {}
  for device, shard in _shard_of_device(mesh).items():
    shards.setdefault(device.process_index, set()).add(shard)
  groups: dict[frozenset[int], list[int]] = {}
  for process in sorted(shards):
    groups.setdefault(frozenset(shards[process]), []).append(process)
  owner: dict[int, list[int]] = {}
  for held, processes in groups.items():
    for shard in held:
      other = owner.setdefault(shard, processes)
      if other is not processes:
        raise UserError(
          f'With the mesh {dict(mesh.shape)} the processes {other[0]} and '
          f'{processes[0]} share some, but not all, of their sequences: choose '
          'mesh.tensor times mesh.sequence so that it divides the devices of a '
          'host or is a multiple of them.'
        )
  return [(processes, sorted(held)) for held, processes in groups.items()]


def _shard_of_device(mesh: Mesh) -> dict[Any, int]:
  """The shard of a batch that each device of the mesh holds."""
  num_shards = num_batch_shards(mesh)
  indices = batch_sharding(mesh).devices_indices_map((num_shards, 1))
  return {device: index[0].start or 0 for device, index in indices.items()}


def _own_shards(mesh: Mesh) -> list[int]:
  """The shards of a batch that this process holds, ascending."""
  own = jax.process_index()
  return sorted(
    {
      shard
      for device, shard in _shard_of_device(mesh).items()
      if device.process_index == own
    }
  )


def local_batch_indices(mesh: Mesh, batch_size: int) -> np.ndarray:
  """The sequences of a batch that this process feeds to `global_batch`.

  Processes of one group feed the same sequences, see `process_groups`.

  Returns:
    [sequences] int64, ascending.
  """
  sequences = batch_size // num_batch_shards(mesh)  # of a shard
  first = np.array(_own_shards(mesh), np.int64) * sequences
  return (first[:, None] + np.arange(sequences)).reshape(-1)


def check_batch(mesh: Mesh, batch_size: int, name: str) -> None:
  """Raises `UserError` unless a batch spreads evenly over the mesh."""
  _check_divides(mesh, 'batch', batch_size, name)


def check_sequence_length(mesh: Mesh, sequence_length: int, name: str) -> None:
  """Raises `UserError` unless a sequence spreads evenly over the mesh."""
  _check_divides(mesh, 'length', sequence_length, name)


def _check_divides(mesh: Mesh, axis: str, size: int, name: str) -> None:
  num_shards = mesh.num_shards(axis)
  if size % num_shards:
    raise UserError(
      f'{name}={size} must be divisible by {num_shards}, the product of the '
      f'mesh axes {mesh.axes(axis)} in {dict(mesh.shape)}.'
    )


def constrain(x: jax.Array, logical_axes: tuple[str | None, ...]) -> jax.Array:
  """Pins an activation's sharding, inside `use_mesh` and `jit`."""
  mesh = _mesh.get()
  if mesh is None:
    raise ValueError('constrain must run inside use_mesh: it names the mesh.')
  axes = mesh.divided_axes(logical_axes, x.shape)
  return jax.lax.with_sharding_constraint(x, spec(mesh, axes))


def current_mesh() -> Mesh | None:
  """The mesh of `use_mesh`; None outside of it."""
  return _mesh.get()


def one_device() -> bool:
  """Whether arrays are unsharded: outside `use_mesh`, or on one device."""
  mesh = _mesh.get()
  return mesh is None or mesh.devices.size == 1


def platform() -> str:
  """The kind of the devices, such as 'gpu'; outside `use_mesh`, JAX's own."""
  mesh = _mesh.get()
  return mesh.devices.flat[0].platform if mesh else jax.default_backend()


def per_device(
  function: Callable[..., Any],
  in_axes: tuple[Any, ...],
  out_axes: tuple[Any, ...],
) -> Callable[..., Any]:
  """A function that runs on each device's shard of its arrays.

  For kernels, which XLA cannot partition, and for programs that XLA partitions
  badly. An axis that the rules map to no mesh axis stays whole. Outside
  `use_mesh` the result is the function itself, on whole arrays.

  Args:
    function: A function of arrays, one for each of `in_axes`. It may call
      the functions of `collectives`.
    in_axes: Logical axes of each argument, or a result of `mapped`.
    out_axes: Logical axes of the result, or of each of several results.
  """
  mesh = _mesh.get()
  if mesh is None:
    return function
  several = bool(out_axes) and isinstance(out_axes[0], tuple)
  return jax.shard_map(
    function,
    in_specs=tuple(
      spec(mesh, axes) if isinstance(axes, tuple) else axes for axes in in_axes
    ),
    out_specs=tuple(spec(mesh, axes) for axes in out_axes)
    if several
    else spec(mesh, out_axes),
    check_vma=False,  # Kernels do not declare how their results vary.
  )


def mapped(
  spec_of: Callable[[NamedSharding], Any], logical_axes: tuple[str | None, ...]
) -> Any:
  """The partition specs of an argument that is a tree, for `per_device`.

  Args:
    spec_of: Returns the tree of partition specs for a sharding.
    logical_axes: The logical axes of the sharding.
  """
  mesh = _mesh.get()
  return spec_of(sharding(mesh, logical_axes)) if mesh else None


def num_shards(logical_axis: str) -> int:
  """The number of shards of a logical axis; 1 outside `use_mesh`."""
  mesh = _mesh.get()
  return mesh.num_shards(logical_axis) if mesh else 1


@contextlib.contextmanager
def use_mesh(mesh: Mesh) -> Iterator[None]:
  """Makes `mesh` the one that `constrain` and `per_device` refer to."""
  token = _mesh.set(mesh)
  try:
    with jax.set_mesh(mesh.physical):
      yield
  finally:
    _mesh.reset(token)


def global_batch(
  mesh: Mesh, batch: Mapping[str, np.ndarray]
) -> dict[str, jax.Array]:
  """Puts this host's sequences of a [B, T] batch on its devices.

  Args:
    mesh: The mesh.
    batch: The sequences of the shards that this process holds, in their order.
  """
  target, own = batch_sharding(mesh), _own_shards(mesh)
  num_shards = num_batch_shards(mesh)

  def put(values: np.ndarray) -> jax.Array:
    sequences = len(values) // len(own)  # of a shard

    def shard(index: Any) -> np.ndarray:  # A slice for each axis.
      first = own.index((index[0].start or 0) // sequences) * sequences
      return values[first : first + sequences]

    shape = (sequences * num_shards, *values.shape[1:])
    return jax.make_array_from_callback(shape, target, shard)

  return {name: put(values) for name, values in batch.items()}


def flags(mesh: Mesh, values: Sequence[bool]) -> jax.Array:
  """The flags of this process, repeated for each of its shards of the batch.

  Returns:
    [shards, values] bool; `flags_shape` describes it to a compiler.
  """
  shape = flags_shape(mesh, len(values))
  line = np.array([values], bool)
  return jax.make_array_from_callback(
    shape.shape, shape.sharding, lambda index: line
  )


def flags_shape(mesh: Mesh, count: int) -> jax.ShapeDtypeStruct:
  """Shape, dtype and sharding of `flags`."""
  return jax.ShapeDtypeStruct(
    (num_batch_shards(mesh), count),
    bool,
    sharding=sharding(mesh, ('batch', None)),
  )


def local_sequences(x: jax.Array) -> np.ndarray:
  """This process's sequences of a [B, T] array, in order, without a gather."""
  shards = {
    shard.index[0].start or 0: shard.data for shard in x.addressable_shards
  }
  if len(shards) == 1:
    return np.asarray(*shards.values())
  return np.concatenate(
    [np.asarray(shards[sequence]) for sequence in sorted(shards)]
  )


def bytes_per_device(tree: Any) -> int:
  """Bytes that arrays take on the first device of this process."""
  return sum(
    leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(tree)
  )
