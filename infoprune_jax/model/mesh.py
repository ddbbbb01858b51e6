"""Devices in a mesh, and the rules by which logical axes are spread over it.

The mesh axes, the slowest network first: `data` holds copies of the parameters,
`fsdp` shards of them, `sequence` shards of a sequence's tokens, `tensor` shards
of a layer's inner axes. If devices come in slices, the `dcn_` sizes are the
numbers of slices along `data` and `fsdp`; other axes stay within a slice.
"""

import dataclasses
import math
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils

from infoprune_jax.config.experiment import MeshConfig
from infoprune_jax.config.validation import UserError, check_choice

AXES = ('data', 'fsdp', 'sequence', 'tensor')

# Logical axis -> mesh axes. Parameters are spread over `fsdp` along `embed`
# and over `tensor` along their other wide axis; activations keep their width
# whole, so that only tokens and the inner axes of a layer are spread.
RULES: Mapping[str, tuple[str, ...]] = {
  'batch': ('data', 'fsdp'),
  'length': ('sequence',),
  'activation_embed': (),
  'embed': ('fsdp',),
  'mlp': ('tensor',),
  'heads': ('tensor',),
  'kv_heads': ('tensor',),
  'head_dim': (),
  'vocab': ('tensor',),
  'layers': (),
  'positions': (),
}
# A kernel runs on one device's shard of an array, and needs these axes whole.
WHOLE = ('activation_embed', 'head_dim')
# The axes of what layers compute. Two axes of one array must not use the same
# mesh axis: it would mix the tokens of one device with the columns of another.
ACTIVATIONS = (
  ('batch', 'length', 'heads', 'head_dim'),
  ('batch', 'length', 'mlp'),
  ('batch', 'length', 'vocab'),
)


@dataclasses.dataclass(frozen=True)
class Mesh:
  """Devices along mesh axes, and the mesh axes of each logical axis."""

  physical: jax.sharding.Mesh
  rules: Mapping[str, tuple[str, ...]] = dataclasses.field(hash=False)

  @property
  def shape(self) -> Mapping[str, int]:
    """Devices along each mesh axis."""
    return self.physical.shape

  @property
  def devices(self) -> np.ndarray:
    """All devices, an object array with one axis for each mesh axis."""
    return self.physical.devices

  @property
  def local_devices(self) -> list[Any]:
    """The devices of this process."""
    return self.physical.local_devices

  def num_shards(self, logical_axis: str | None) -> int:
    """Into how many shards a logical axis is split; 1 for None."""
    return math.prod(self.shape[name] for name in self.axes(logical_axis))

  def axes(self, logical_axis: str | None) -> tuple[str, ...]:
    """The mesh axes of a logical axis; none for None."""
    return self.rules[logical_axis] if logical_axis else ()

  def divided_axes(
    self, logical_axes: tuple[str | None, ...], shape: tuple[int, ...]
  ) -> tuple[str | None, ...]:
    """The axes of an array, without a vocabulary that shards do not divide.

    Every device holds such an axis whole. Only the loss spreads it, which needs
    a column of it for each shard.
    """

    def is_whole(axis: str | None, size: int) -> bool:
      shards = self.num_shards(axis)
      spread = -(-size // shards) * (shards - 1) < size
      return axis == 'vocab' and size % shards != 0 and spread

    return tuple(
      None if is_whole(axis, size) else axis
      for axis, size in zip(logical_axes, shape, strict=True)
    )


def make_mesh(config: MeshConfig, devices: list[Any] | None = None) -> Mesh:
  """The mesh of all devices, in the order that suits their network.

  Raises:
    UserError: the axes do not multiply to the number of devices, or of slices;
      a rule names an unknown axis, or uses a mesh axis twice.
  """
  rules = _rules(config.rules)
  devices = jax.devices() if devices is None else devices
  slices = _num_slices(config, devices)
  sizes = _sizes(config, devices, slices)
  # The physical axes of a pod (such as 4x4x4) may have to be split.
  options = {'devices': devices, 'allow_split_physical_axes': True}
  if slices == 1:
    arranged = mesh_utils.create_device_mesh(sizes, **options)
  else:
    over_slices = {'data': config.dcn_data, 'fsdp': config.dcn_fsdp}
    arranged = mesh_utils.create_hybrid_device_mesh(
      sizes, [over_slices.get(axis, 1) for axis in AXES], **options
    )
  return _logical(arranged, rules)


def _logical(devices: np.ndarray, rules: Mapping[str, tuple[str, ...]]) -> Mesh:
  axis_types = (jax.sharding.AxisType.Auto,) * len(AXES)
  physical = jax.sharding.Mesh(devices, AXES, axis_types=axis_types)
  return Mesh(physical, rules)


def _num_slices(config: MeshConfig, devices: list[Any]) -> int:
  """Number of slices of the mesh; 1 if slices do not matter."""
  wanted = config.dcn_data * config.dcn_fsdp
  num_slices = len({getattr(device, 'slice_index', 0) for device in devices})
  platform = devices[0].platform
  # JAX also counts hosts with GPUs as slices; they need no `dcn_` sizes.
  if wanted != num_slices and (wanted > 1 or platform == 'tpu'):
    raise UserError(
      f'mesh.dcn_data={config.dcn_data} times mesh.dcn_fsdp={config.dcn_fsdp} '
      f'must be the number of slices: the {len(devices)} {platform} devices '
      f'are in {num_slices}. mesh.data and mesh.fsdp are sizes within a slice.'
    )
  return wanted


def _sizes(config: MeshConfig, devices: list[Any], slices: int) -> list[int]:
  """Devices of a slice along each mesh axis."""
  sizes = [getattr(config, axis) for axis in AXES]
  count = len(devices) // slices
  known = math.prod(size for size in sizes if size != -1)
  if -1 in sizes and count % known == 0:
    sizes[sizes.index(-1)] = count // known
  if -1 in sizes or math.prod(sizes) != count:
    given = ', '.join(f'mesh.{axis}={getattr(config, axis)}' for axis in AXES)
    there = f'of each of the {slices} slices' if slices > 1 else 'there are'
    raise UserError(
      f'{given} must multiply to the {count} devices {there} '
      f'({devices[0].platform}).'
    )
  return sizes


def _rules(
  changed: Mapping[str, tuple[str, ...]],
) -> dict[str, tuple[str, ...]]:
  """`RULES` with the changes of a config.

  Raises:
    UserError: a name is unknown or must not change, or activations would use
      a mesh axis twice.
  """
  choices = tuple(name for name in RULES if name not in WHOLE)
  for name, axes in changed.items():
    check_choice('A key of mesh.rules', name, choices)
    for axis in axes:
      check_choice(f'mesh.rules.{name}', axis, AXES)
  rules = {**RULES, **changed}
  if rules['heads'] != rules['kv_heads']:
    raise UserError(
      f'mesh.rules: heads -> {rules["heads"]} and kv_heads -> '
      f'{rules["kv_heads"]} must be the same: each device needs the keys of its '
      'own queries.'
    )
  for axes in ACTIVATIONS:
    check_used_once(rules, axes, 'Activations')
  return rules


def check_used_once(
  rules: Mapping[str, tuple[str, ...]],
  logical_axes: Iterable[str | None],
  what: str,
) -> None:
  """Raises `UserError` if two axes of an array use one mesh axis."""
  taken: dict[str, str] = {}
  for logical in filter(None, logical_axes):
    for axis in rules[logical]:
      if axis in taken:
        pair = dict.fromkeys((taken[axis], logical))
        conflict = ' and '.join(f'{name} -> {rules[name]}' for name in pair)
        raise UserError(
          f'{what} of axes {tuple(logical_axes)}: the mesh axis {axis!r} is '
          f'used twice, by the rules {conflict}. Change mesh.rules.'
        )
      taken[axis] = logical
