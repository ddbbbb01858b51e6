"""The presets of `configs/models.py`: their sizes, and over which meshes."""

import dataclasses

import jax
import pytest
from ml_collections import ConfigDict

from configs import models
from infoprune_jax.config import validation
from infoprune_jax.config.experiment import MeshConfig
from infoprune_jax.config.model import ModelConfig
from infoprune_jax.model import flops, mesh as mesh_lib, network, partitioning

# Preset: vocabulary, parameters.
SIZES = {
  'm0_3': (2048, 291_264),
  'm1': (4096, 1_262_720),
  'm8': (8192, 7_999_744),
  'm30': (8192, 29_893_120),
  'm124': (50257, 123_551_232),
  'm350': (50257, 353_503_232),
  'b1_3': (50257, 1_317_277_696),
  'b8': (128256, 8_030_261_248),
  'b70': (128256, 70_553_706_496),
}
SMALL, LARGE = ('m0_3', 'm1', 'm8'), ('b1_3', 'b8', 'b70')


def preset(name: str) -> ModelConfig:
  fields = getattr(models, name)().to_dict()
  return validation.build(ModelConfig, fields, name)


def test_each_preset_has_a_size():
  made = [
    name
    for name, value in vars(models).items()
    if callable(value) and getattr(value, '__module__', '') == models.__name__
  ]
  assert [name for name in made if name[0] != '_'] == list(SIZES)


@pytest.mark.parametrize('name', SIZES)
def test_a_preset_has_the_size_that_it_says(name):
  vocab_size, expected = SIZES[name]
  assert flops.num_params(preset(name), vocab_size) == expected
  said = getattr(models, name).__doc__.split()[0]
  value = float(said[:-1]) * {'M': 1e6, 'B': 1e9}[said[-1]]
  assert value == pytest.approx(expected, rel=0.05)
  assert f'{vocab_size}' in getattr(models, name).__doc__
  # The name rounds down.
  millions = float(name[1:].replace('_', '.')) * (1000 if name[0] == 'b' else 1)
  assert millions == pytest.approx(expected / 1e6, rel=0.3)


@pytest.mark.parametrize('name', SIZES)
def test_a_preset_spreads_over_common_meshes(name):
  """Also over a pod's fsdp axis, and as the kernels want it."""
  model = preset(name)
  meshes = [(8, 1, 1), (1, 8, 1), (2, 2, 2)]
  if name not in SMALL:
    meshes.append((1, 2, 4))
    assert model.embed_dim % 128 == model.mlp_dim % 128 == 0
    assert model.head_dim in (64, 128) and model.dtype == 'bfloat16'
  if name in LARGE:
    meshes.append((1, 1, 8))
    assert model.embed_dim % 256 == 0
  shapes = network.param_shapes(model, 50304)
  axes = network.param_axes(model, 50304)
  for data, fsdp, tensor in meshes:
    mesh = mesh_lib.make_mesh(
      MeshConfig(data=data, fsdp=fsdp, tensor=tensor), jax.devices()
    )
    partitioning.shardings(mesh, shapes, axes, 'Parameter')


def test_presets_are_not_shared():
  first = models.m8()
  assert isinstance(first, ConfigDict)
  first.num_layers = 99
  assert models.m8().num_layers == 8
  assert dataclasses.asdict(preset('m1')) == models.m1().to_dict()
