"""The mesh, and how logical axes map to it: the only place that knows.

Model code names logical axes; the table below maps each to mesh axes, in the
manner of T5X's logical axis rules. The mapping is checked against the mesh and
every parameter's shape before anything compiles.
"""

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from infoprune_jax.config import MeshConfig, UserError

MESH_AXES = ('data', 'fsdp', 'tensor')

# Logical axis -> mesh axes. Parameters are spread over `fsdp` along `embed`
# and over `tensor` along their other wide axis; activations keep their width
# whole, so that only the batch and the inner axes of a layer are spread.
RULES: Mapping[str, tuple[str, ...]] = {
  'batch': ('data', 'fsdp'),
  'length': (),
  'activation_embed': (),
  'embed': ('fsdp',),
  'mlp': ('tensor',),
  'heads': ('tensor',),
  'kv_heads': ('tensor',),
  'head_dim': (),
  'vocab': ('tensor',),
  'layers': (),
}


def make_mesh(config: MeshConfig, devices: list[Any] | None = None) -> Mesh:
  """The mesh of all devices, in the order that suits their network.

  Raises:
    UserError: the axes do not multiply to the number of devices.
  """
  devices = jax.devices() if devices is None else devices
  sizes = [config.data, config.fsdp, config.tensor]
  known = math.prod(size for size in sizes if size != -1)
  if -1 in sizes and len(devices) % known == 0:
    sizes[sizes.index(-1)] = len(devices) // known
  if -1 in sizes or math.prod(sizes) != len(devices):
    raise UserError(
      f'mesh.data={config.data}, mesh.fsdp={config.fsdp}, mesh.tensor='
      f'{config.tensor} must multiply to the {len(devices)} devices there are '
      f'({devices[0].platform}).'
    )
  # A pod's own axes (4x4x4, say) may have to be cut to come to these sizes.
  arranged = mesh_utils.create_device_mesh(
    sizes, devices, allow_split_physical_axes=True
  )
  return Mesh(
    arranged,
    MESH_AXES,
    axis_types=(jax.sharding.AxisType.Auto,) * len(MESH_AXES),
  )


def spec(logical_axes: tuple[str | None, ...]) -> PartitionSpec:
  """The partition spec of an array with these logical axes.

  Raises:
    ValueError: an axis is unknown, or two axes want one mesh axis.
  """
  unknown = [a for a in logical_axes if a is not None and a not in RULES]
  if unknown:
    raise ValueError(f'Unknown logical axes {unknown}: add them to RULES.')
  mapped = [RULES[axis] if axis else () for axis in logical_axes]
  used = [name for axes in mapped for name in axes]
  if len(used) != len(set(used)):
    raise ValueError(
      f'Logical axes {logical_axes} map to {mapped}: a mesh axis is used twice.'
    )
  return PartitionSpec(*(axes or None for axes in mapped))


def sharding(mesh: Mesh, logical_axes: tuple[str | None, ...]) -> NamedSharding:
  """The sharding of an array with these logical axes."""
  return NamedSharding(mesh, spec(logical_axes))


def replicated(mesh: Mesh) -> NamedSharding:
  """The sharding of a value that every device holds."""
  return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
  """The sharding of a [B, T] batch."""
  return sharding(mesh, ('batch', 'length'))


def shardings(mesh: Mesh, shapes: Any, logical_axes: Any, what: str) -> Any:
  """A tree of shardings for a tree of arrays or shapes.

  Args:
    mesh: The mesh.
    shapes: A tree of whatever has a `shape`.
    logical_axes: The same tree of tuples of logical axes.
    what: What the tree is, for the message.

  Raises:
    UserError: a size is not divisible; parameter, shape, rule and mesh named.
  """

  def one(path: Any, leaf: Any, axes: tuple[str | None, ...]) -> NamedSharding:
    for axis, size in zip(axes, leaf.shape, strict=True):
      ways = math.prod(mesh.shape[name] for name in RULES[axis or 'length'])
      if size % ways:
        raise UserError(
          f'{what} {jax.tree_util.keystr(path)} of shape {leaf.shape} has '
          f'{axis}={size}, which the rule {axis} -> {RULES[axis or "length"]} '
          f'spreads over {ways} devices of the mesh {dict(mesh.shape)}: it '
          'must be divisible.'
        )
    return sharding(mesh, axes)

  return jax.tree_util.tree_map_with_path(one, shapes, logical_axes)


def batch_ways(mesh: Mesh) -> int:
  """Over how many shards a batch is spread."""
  return math.prod(mesh.shape[axis] for axis in RULES['batch'])


def row_groups(mesh: Mesh) -> list[tuple[list[int], list[int]]]:
  """Which processes hold which rows of a batch.

  Processes whose devices hold the same rows, as with `tensor` across hosts, are
  one group: they feed the same rows.

  Returns:
    For each group its processes and its shards of the batch, both ascending;
    groups are in the order of their first processes.

  Raises:
    UserError: two processes share some of their rows, not all.
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
          f'The mesh {dict(mesh.shape)} gives processes {other[0]} and '
          f'{processes[0]} some rows of the batch in common, and others not: '
          'choose mesh.tensor so that it divides the devices of a host or is a '
          'multiple of them.'
        )
  return [(processes, sorted(held)) for held, processes in groups.items()]


def _shard_of_device(mesh: Mesh) -> dict[Any, int]:
  """Which shard of a batch each device of the mesh holds."""
  ways = batch_ways(mesh)
  indices = batch_sharding(mesh).devices_indices_map((ways, 1))
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


def check_batch(mesh: Mesh, batch_size: int, name: str) -> None:
  """Raises `UserError` unless a batch spreads evenly over the mesh."""
  ways = batch_ways(mesh)
  if batch_size % ways:
    raise UserError(
      f'{name}={batch_size} must be divisible by {ways}, the product of the '
      f'mesh axes {RULES["batch"]} in {dict(mesh.shape)}.'
    )


def constrain(x: jax.Array, logical_axes: tuple[str | None, ...]) -> jax.Array:
  """Pins an activation's sharding, inside `use_mesh` and `jit`."""
  return jax.lax.with_sharding_constraint(x, spec(logical_axes))


def per_device(
  function: Callable[..., Any],
  in_axes: tuple[tuple[str | None, ...], ...],
  out_axes: tuple[Any, ...],
) -> Callable[..., Any]:
  """A function that runs on each device's share of its arrays.

  For kernels, which XLA cannot partition, and for what it would partition
  badly. Axes mapped to nothing come whole. Outside `use_mesh` it is the
  function itself, on whole arrays.

  Args:
    function: Of as many arrays as `in_axes`; `axis_index` and `across` tell it
      of the other devices.
    in_axes: Logical axes of each argument.
    out_axes: Logical axes of the result; of several results, of each.
  """
  if jax.sharding.get_abstract_mesh().empty:
    return function
  several = bool(out_axes) and isinstance(out_axes[0], tuple)
  return jax.shard_map(
    function,
    in_specs=tuple(spec(axes) for axes in in_axes),
    out_specs=tuple(map(spec, out_axes)) if several else spec(out_axes),
    check_vma=False,  # A kernel does not tell how its results vary.
  )


def axis_index(logical_axis: str) -> jax.Array | int:
  """Within `per_device`: which share of a logical axis this device has."""
  if jax.sharding.get_abstract_mesh().empty or not RULES[logical_axis]:
    return 0
  return jax.lax.axis_index(RULES[logical_axis])


def across(
  reduce: Callable[..., jax.Array], x: jax.Array, logical_axis: str
) -> jax.Array:
  """Within `per_device`: `jax.lax.psum` or `pmax` over a logical axis."""
  if jax.sharding.get_abstract_mesh().empty or not RULES[logical_axis]:
    return x
  return reduce(x, RULES[logical_axis])


def gathered(x: jax.Array, logical_axis: str, axis: int) -> jax.Array:
  """Within `per_device`: an array whole along an axis that is spread.

  Its gradient is reduced to each device's share, and never whole: of an array
  that comes whole into `per_device` it would be.
  """
  sizes = jax.sharding.get_abstract_mesh().shape
  names = RULES[logical_axis]
  if math.prod(sizes.get(name, 1) for name in names) == 1:
    return x
  return jax.lax.all_gather(x, names, axis=axis, tiled=True)


@contextlib.contextmanager
def use_mesh(mesh: Mesh) -> Iterator[None]:
  """Makes `mesh` the one that `constrain` refers to."""
  with jax.set_mesh(mesh):
    yield


def global_batch(
  mesh: Mesh, batch: Mapping[str, np.ndarray]
) -> dict[str, jax.Array]:
  """Puts this host's rows of a [B, T] batch on its devices.

  Args:
    mesh: The mesh.
    batch: The rows of the shards that this process holds, in their order.
  """
  target, ways, own = batch_sharding(mesh), batch_ways(mesh), _own_shards(mesh)

  def put(values: np.ndarray) -> jax.Array:
    rows = len(values) // len(own)  # of a shard

    def shard(index: tuple[slice, ...]) -> np.ndarray:
      first = own.index((index[0].start or 0) // rows) * rows
      return values[first : first + rows]

    shape = (rows * ways, *values.shape[1:])
    return jax.make_array_from_callback(shape, target, shard)

  return {name: put(values) for name, values in batch.items()}


def own_rows(x: jax.Array) -> np.ndarray:
  """This process's rows of a [B, T] array, in their order, without a gather."""
  shards = {
    shard.index[0].start or 0: shard.data for shard in x.addressable_shards
  }
  if len(shards) == 1:
    return np.asarray(*shards.values())
  return np.concatenate([np.asarray(shards[row]) for row in sorted(shards)])


def spread(x: np.ndarray, target: NamedSharding) -> jax.Array:
  """A value that every process holds whole, spread over the mesh."""
  return jax.make_array_from_callback(x.shape, target, lambda index: x[index])


def bytes_a_device(tree: Any) -> int:
  """What arrays take on the first device of this process."""
  return sum(
    leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(tree)
  )


def own_mesh(mesh: Mesh) -> Mesh:
  """A mesh of this process's devices of `mesh` alone.

  Its axes are those of `mesh`, as far as the devices go: first `fsdp`.
  """
  devices = list(mesh.local_devices)
  fsdp = math.gcd(len(devices), mesh.shape['fsdp'])
  tensor = math.gcd(len(devices) // fsdp, mesh.shape['tensor'])
  sizes = (len(devices) // (fsdp * tensor), fsdp, tensor)
  return Mesh(np.array(devices).reshape(sizes), MESH_AXES)
