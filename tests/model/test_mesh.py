"""Devices in a mesh, and its rules. Slices are made of the fake devices."""

import jax
import numpy as np
import pytest
from jax import ShapeDtypeStruct

from infoprune_jax.config.experiment import MeshConfig
from infoprune_jax.config.validation import UserError
from infoprune_jax.model import mesh as mesh_lib, partitioning


@pytest.fixture
def two_slices(monkeypatch):
  """Devices 0, 2, 4 and 6 are one slice, the others another."""
  kind = type(jax.devices()[0])
  slice_of = property(lambda device: device.id % 2)
  monkeypatch.setattr(kind, 'slice_index', slice_of, raising=False)


def config(data=1, fsdp=1, tensor=1, **fields) -> MeshConfig:
  return MeshConfig(data=data, fsdp=fsdp, tensor=tensor, **fields)


@pytest.mark.parametrize('axis', ['data', 'fsdp'])
def test_one_axis_goes_over_slices(two_slices, axis):
  sizes = {'data': 2, 'tensor': 2, f'dcn_{axis}': 2}
  mesh = mesh_lib.make_mesh(config(**sizes))
  assert mesh.shape == {
    **{'data': 2, 'fsdp': 1, 'sequence': 1, 'tensor': 2},
    axis: 2 * sizes.get(axis, 1),
  }
  slices = np.vectorize(lambda device: device.slice_index)(mesh.devices)
  along = np.moveaxis(slices, mesh_lib.AXES.index(axis), 0).reshape(
    mesh.shape[axis], -1
  )
  # A slice is a run along this axis, with all of the other axes.
  assert (along == along[:, :1]).all()
  assert along[:, 0].tolist() == sorted(along[:, 0])
  assert set(along[:, 0]) == {0, 1}


def test_minus_one_takes_what_is_left_of_a_slice(two_slices):
  mesh = mesh_lib.make_mesh(config(data=-1, tensor=2, dcn_data=2))
  assert mesh.shape['data'] == 4
  with pytest.raises(UserError, match='to the 4 devices of each of the 2 sli'):
    mesh_lib.make_mesh(config(data=4, tensor=2, dcn_data=2))


@pytest.mark.parametrize('sizes', [(2, 2), (4, 1), (1, 3)])
def test_slices_that_there_are_not(two_slices, sizes):
  data, fsdp = sizes
  with pytest.raises(UserError) as error:
    mesh_lib.make_mesh(config(data=-1, dcn_data=data, dcn_fsdp=fsdp))
  for word in (
    f'dcn_data={data}',
    f'dcn_fsdp={fsdp}',
    '8 cpu devices are in 2',
  ):
    assert word in str(error.value)


def test_slices_of_tpus_must_be_named(two_slices, monkeypatch):
  """Of others they are not, as JAX calls any host of GPUs a slice."""
  mesh = mesh_lib.make_mesh(config(data=8))
  assert mesh.shape['data'] == 8
  monkeypatch.setattr(type(jax.devices()[0]), 'platform', 'tpu')
  with pytest.raises(UserError, match='8 tpu devices are in 2'):
    mesh_lib.make_mesh(config(data=8))


def test_no_slices_without_slices():
  with pytest.raises(UserError, match='must be the number of slices'):
    mesh_lib.make_mesh(config(data=4, dcn_data=2))


def test_a_rule_of_the_config_takes_the_place_of_the_table():
  rules = {'embed': ('fsdp', 'sequence'), 'vocab': ()}
  mesh = mesh_lib.make_mesh(config(2, 2, 1, sequence=2, rules=rules))
  assert dict(mesh.rules) == {**mesh_lib.RULES, **rules}
  [target] = jax.tree.leaves(
    partitioning.shardings(
      mesh,
      ShapeDtypeStruct((6, 8), np.float32),
      ('vocab', 'embed'),
      'Parameter',
    )
  )
  assert target.shard_shape((6, 8)) == (6, 2)


def test_meshes_of_other_rules_are_not_equal():
  """What is compiled for one is not taken for the other."""
  one, same, other = (
    mesh_lib.make_mesh(config(8, rules=rules))
    for rules in ({}, {}, {'vocab': ()})
  )
  assert one == same and hash(one) == hash(same)
  assert one != other


@pytest.mark.parametrize(
  'rules, named',
  [
    ({'embd': ('fsdp',)}, "Did you mean 'embed'"),
    ({'embed': ('fdsp',)}, r"mesh\.rules\.embed must be .* mean 'fsdp'"),
    ({'activation_embed': ('tensor',)}, 'A key of mesh.rules must be one of'),
    ({'kv_heads': ()}, r"heads -> \('tensor',\) and kv_heads -> \(\) must be"),
    # The loss would add up the tokens of other devices.
    (
      {'vocab': ('fsdp',), 'embed': ()},
      r"'fsdp' is used twice, by .* vocab ->",
    ),
    ({'length': ('tensor',)}, r"length -> \('tensor',\) and heads -> \('tenso"),
    (
      {'mlp': ('tensor', 'tensor')},
      r"rules mlp -> \('tensor', 'tensor'\)\. Ch",
    ),
  ],
)
def test_a_rule_that_cannot_be_is_named(rules, named):
  with pytest.raises(UserError, match=named):
    mesh_lib.make_mesh(config(8, rules=rules))


def test_a_vocabulary_that_devices_do_not_divide_is_whole():
  mesh = mesh_lib.make_mesh(config(tensor=8))
  axes = ('vocab', 'embed')
  assert mesh.divided_axes(axes, (50304, 64)) == axes
  assert mesh.divided_axes(axes, (50257, 64)) == (None, 'embed')
  few = ShapeDtypeStruct((9, 64), np.float32)  # Not one for each device.
  with pytest.raises(UserError, match='vocab=9, .* must be divisible'):
    partitioning.shardings(mesh, {'head': few}, {'head': axes}, 'Parameter')


def test_a_parameter_whose_axes_share_a_mesh_axis_is_named():
  mesh = mesh_lib.make_mesh(config(8, rules={'embed': ('tensor',)}))
  shapes = {'mlp': {'up': ShapeDtypeStruct((8, 8), np.float32)}}
  axes = {'mlp': {'up': ('embed', 'mlp')}}
  with pytest.raises(UserError) as error:
    partitioning.shardings(mesh, shapes, axes, 'Parameter')
  for word in (
    "Parameter ['mlp']['up'] of shape (8, 8)",
    "('embed', 'mlp')",
    "'tensor' is used twice",
    "embed -> ('tensor',) and mlp -> ('tensor',)",
  ):
    assert word in str(error.value)
