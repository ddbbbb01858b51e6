"""What TPU chips compute, hold and move, and the topologies they come in.

Sources: https://cloud.google.com/tpu/docs/v4, v5e, v5p and v6e (peak compute,
bandwidths, topologies). For the links of v4, table 4 of arXiv 2304.01433: six
of 50 GB/s in each direction. `hbm_bytes` is what libtpu 0.0.52 leaves to a
program, as its errors say; the documents give 32 GiB, 16 GB, 95 GB and 32 GB.
"""

import dataclasses
import math
import re

from infoprune_jax.config.validation import UserError, did_you_mean


@dataclasses.dataclass(frozen=True)
class Chip:
  """One generation of TPUs. A chip is one JAX device."""

  name: str  # in the name of a topology
  device_kind: str  # as JAX calls it
  flops_per_second: float  # of bfloat16 products
  hbm_bytes: int  # that a program can use
  hbm_bytes_per_second: float
  ici_bytes_per_second: float  # of all links of a chip, both directions
  max_chips: int  # of a slice
  topologies: tuple[str, ...]  # the usual ones

  def check_topology(self, shape: str) -> None:
    """Raises `UserError` unless there are slices of this shape.

    Slices of three dimensions may also have others that are multiples of 4, in
    ascending order.
    """
    sizes = [int(n) for n in shape.split('x')]
    is_cubes = (
      len(sizes) == 3 == self.topologies[-1].count('x') + 1
      and not any(size % 4 for size in sizes)
      and sizes == sorted(sizes)
      and math.prod(sizes) <= self.max_chips
    )
    if shape not in self.topologies and not is_cubes:
      raise UserError(
        f'--topology={self.name}:{shape}: there is no such slice. Known are '
        f'{", ".join(f"{self.name}:{known}" for known in self.topologies)}.'
        + did_you_mean(shape, self.topologies)
      )


_SQUARES = ('1x1', '2x2', '2x4', '4x4', '4x8', '8x8', '8x16', '16x16')
_CUBES = (
  *('2x2x1', '2x2x2', '2x2x4', '2x4x4', '4x4x4', '4x4x8', '4x8x8'),
  *('8x8x8', '8x8x16', '8x16x16'),
)
_GIB = 2**30
CHIPS = {
  chip.name: chip
  for chip in (
    Chip(
      name='v4',
      device_kind='TPU v4',
      flops_per_second=275e12,
      hbm_bytes=int(30.75 * _GIB),
      hbm_bytes_per_second=1200e9,
      ici_bytes_per_second=600e9,
      max_chips=4096,
      topologies=_CUBES,
    ),
    Chip(
      name='v5e',
      device_kind='TPU v5 lite',
      flops_per_second=197e12,
      hbm_bytes=int(15.75 * _GIB),
      hbm_bytes_per_second=819e9,
      ici_bytes_per_second=400e9,
      max_chips=256,
      topologies=_SQUARES,
    ),
    Chip(
      name='v5p',
      device_kind='TPU v5',
      flops_per_second=459e12,
      hbm_bytes=int(95.73 * _GIB),
      hbm_bytes_per_second=2765e9,
      ici_bytes_per_second=1200e9,
      max_chips=6144,
      topologies=(*_CUBES, '16x16x16', '16x16x24'),
    ),
    Chip(
      name='v6e',
      device_kind='TPU v6 lite',
      flops_per_second=918e12,
      hbm_bytes=int(31.24 * _GIB),
      hbm_bytes_per_second=1638e9,
      ici_bytes_per_second=800e9,
      max_chips=256,
      topologies=_SQUARES,
    ),
  )
}


def of_topology(topology: str) -> Chip:
  """The chip of a topology such as 'v5e:16x16'.

  Raises:
    UserError: there are no such slices; the message lists those that are known.
  """
  name, _, shape = topology.partition(':')
  if name not in CHIPS or not re.fullmatch(r'\d{1,3}(x\d{1,3}){1,2}', shape):
    known = '; '.join(
      f'{chip.name}: {", ".join(chip.topologies)}' for chip in CHIPS.values()
    )
    raise UserError(
      f'--topology must be a chip and the shape of a slice, such as v5e:16x16, '
      f'got {topology!r}. Known are {known}.'
    )
  CHIPS[name].check_topology(shape)
  return CHIPS[name]


def hbm_bytes(device_kind: str) -> int:
  """The memory that programs can use of a chip; 0 for an unknown kind."""
  kinds = {chip.device_kind: chip.hbm_bytes for chip in CHIPS.values()}
  return kinds.get(device_kind, 0)
