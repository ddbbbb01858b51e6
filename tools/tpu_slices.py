"""The TPU slices that launchers ask for, by the names that users write.

As in Google's names, the number of v5e and v6e counts chips, and that of v4,
v5p and tpu7x counts TensorCores, of which a chip has two.
"""

import dataclasses
import math

_FLAT = '1x1 2x2 2x4 4x4 4x8 8x8 8x16 16x16'
_CUBES = '2x2x1 2x2x2 2x2x4 2x4x4 4x4x4 4x4x8 4x8x8 8x8x8 8x8x16'


@dataclasses.dataclass(frozen=True)
class _Generation:
  gke: str  # the value of cloud.google.com/gke-tpu-accelerator
  topologies: str
  names_count: int = 1  # what the number in a name counts of each chip
  queued: str = ''  # the prefix of --accelerator-type; '' for GKE alone
  runtime: str = ''  # the image of a TPU VM, --runtime-version


_GENERATIONS = {
  'v4': _Generation('tpu-v4-podslice', _CUBES, 2, 'v4', 'tpu-ubuntu2204-base'),
  'v5e': _Generation(
    *('tpu-v5-lite-podslice', _FLAT, 1, 'v5litepod', 'v2-alpha-tpuv5-lite')
  ),
  'v5p': _Generation('tpu-v5p-slice', _CUBES, 2, 'v5p', 'v2-alpha-tpuv5'),
  'v6e': _Generation('tpu-v6e-slice', _FLAT, 1, 'v6e', 'v2-alpha-tpuv6e'),
  'tpu7x': _Generation('tpu7x', _CUBES, 2),
}


@dataclasses.dataclass(frozen=True)
class Slice:
  """Chips with fast links between them, and the hosts that they belong to."""

  name: str  # such as v5e-64
  gke_accelerator: str
  topology: str  # such as 8x8
  accelerator_type: str  # of the Cloud TPU API; '' for GKE alone
  runtime_version: str  # of the Cloud TPU API; '' for GKE alone

  @property
  def chips(self) -> int:
    """Of all hosts."""
    return math.prod(map(int, self.topology.split('x')))

  @property
  def hosts(self) -> int:
    """A host has 4 chips; slices of 1 and of 8 flat chips have one host."""
    is_single = self.topology in ('1x1', '2x4')
    return 1 if is_single else self.chips // 4


def _slices() -> dict[str, Slice]:
  slices = {}
  for generation, known in _GENERATIONS.items():
    for topology in known.topologies.split():
      number = known.names_count * math.prod(map(int, topology.split('x')))
      name = f'{generation}-{number}'
      queued = f'{known.queued}-{number}' if known.queued else ''
      slices[name] = Slice(name, known.gke, topology, queued, known.runtime)
  return slices


SLICES = _slices()


def parse(name: str) -> Slice:
  """The slice of a name.

  Raises:
    ValueError: there is no such slice; the message names those there are.
  """
  if name not in SLICES:
    family = name.rpartition('-')[0]
    own = [known for known in SLICES if known.rpartition('-')[0] == family]
    raise ValueError(
      f'--tpu={name} is no slice: choose one of {", ".join(own or SLICES)}.'
    )
  return SLICES[name]
