"""The table of chips, and which topologies there are."""

import math

import pytest

from infoprune_jax.config.validation import UserError
from infoprune_jax.model import chips


@pytest.mark.parametrize('chip', chips.CHIPS.values(), ids=lambda c: c.name)
def test_the_topologies_of_a_chip_are_known(chip):
  for shape in chip.topologies:
    assert chips.of_topology(f'{chip.name}:{shape}') is chip
    assert math.prod(map(int, shape.split('x'))) <= chip.max_chips


def test_cubes_that_are_not_listed_are_slices_too():
  assert chips.of_topology('v5p:4x4x12').name == 'v5p'
  assert chips.of_topology('v4:8x8x12').name == 'v4'


@pytest.mark.parametrize(
  'topology',
  ['v5e:3x5', 'v5e:32x32', 'v5p:8x4x4', 'v5p:16x16x28', 'v5p:2x2', 'v6e:2x2x1'],
)
def test_a_slice_that_is_not_there_is_refused_with_those_that_are(topology):
  name = topology.partition(':')[0]
  known = chips.CHIPS[name].topologies
  with pytest.raises(UserError, match=f'{topology}: there is no such') as error:
    chips.of_topology(topology)
  assert all(f'{name}:{shape}' in str(error.value) for shape in known)


@pytest.mark.parametrize(
  'topology', ['v9:4x4', '4x4', 'v5e', 'v5e:4', 'v5e:ax4']
)
def test_what_is_no_topology_is_refused_with_all_that_are(topology):
  with pytest.raises(UserError, match='such as v5e:16x16, got') as error:
    chips.of_topology(topology)
  assert 'v6e: 1x1, 2x2' in str(error.value)


def test_memory_is_known_by_the_name_that_jax_has():
  assert chips.hbm_bytes('TPU v5 lite') == int(15.75 * 2**30)
  assert chips.hbm_bytes('cpu') == 0
