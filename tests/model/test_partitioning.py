import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_store import RandomStore

from infoprune_jax.config.experiment import MeshConfig
from infoprune_jax.config.model import LayerKind
from infoprune_jax.config.validation import UserError
from infoprune_jax.model import mesh as mesh_lib, network, partitioning
from infoprune_jax.score import scorer

MESHES = [(8, 1, 1), (4, 2, 1), (2, 2, 2), (1, 1, 8), (1, 4, 2), (1, 2, 2, 2)]


def mesh_config(data, fsdp, tensor, sequence=1):
  return MeshConfig(data=data, fsdp=fsdp, tensor=tensor, sequence=sequence)


def mesh_of(*sizes):
  count = int(np.prod(sizes))
  return mesh_lib.make_mesh(mesh_config(*sizes), jax.devices()[:count])


def nll_on(mesh, model, batch):
  """NLL of a batch under the same parameters, spread over a mesh."""
  vocab_size = RandomStore.vocab_size
  shapes = scorer.abstract_params(model, vocab_size, mesh)
  with partitioning.use_mesh(mesh):
    params = jax.jit(
      lambda: network.init_params(model, vocab_size, jax.random.key(0)),
      out_shardings=jax.tree.map(lambda x: x.sharding, shapes),
    )()
    function = jax.jit(
      lambda p, b: network.batch_statistics(model, p, b)['nll']
    )
    return params, np.asarray(
      function(params, partitioning.global_batch(mesh, batch))
    )


@pytest.fixture(scope='module')
def model(small):
  return dataclasses.replace(
    small.model, num_heads=8, num_kv_heads=8, head_dim=4
  )


@pytest.fixture(scope='module')
def batch():
  rows = RandomStore([60, 13, 40, 21, 64, 5, 30, 33] * 6).packed(64)
  return rows.batch(np.arange(8), 8)


@pytest.fixture(scope='module')
def single(model, batch):
  return nll_on(mesh_of(1, 1, 1), model, batch)[1]


@pytest.mark.parametrize('sizes', MESHES)
def test_sharded_equals_single_device(model, batch, single, sizes):
  params, found = nll_on(mesh_of(*sizes), model, batch)
  np.testing.assert_allclose(found, single, rtol=0, atol=2e-5)
  num_shards = sizes[1] * sizes[2]
  shard = params['embedding'].addressable_shards[0].data
  assert shard.size * num_shards == params['embedding'].size


@pytest.mark.parametrize('sizes', [(4, 2, 1), (2, 2, 2)])
@pytest.mark.parametrize(
  'edits',
  [
    {
      'activation': 'gelu',
      'qk_norm': True,
      'logit_softcap': 0.5,
      'tie_embeddings': False,
      'norm': 'layer',
      'mlp_bias': True,
      'parallel_residual': True,
      'max_positions': 128,
    },
    {
      'activation': 'geglu',
      'qk_norm': True,
      'qk_norm_scope': 'all',
      'norm_placement': 'both',
      'attention_bias': 'all',
      'mlp_bias': True,
      'attention_softcap': 2.0,
      'layer_pattern': (LayerKind(window=5), LayerKind()),
    },
  ],
)
def test_options_of_the_model_shard_as_well(model, batch, sizes, edits):
  other = dataclasses.replace(model, **edits)
  expected = nll_on(mesh_of(1, 1, 1), other, batch)[1]
  _, found = nll_on(mesh_of(*sizes), other, batch)
  np.testing.assert_allclose(found, expected, rtol=0, atol=2e-5)


def test_minus_one_takes_what_is_left():
  mesh = mesh_lib.make_mesh(mesh_config(-1, 2, 1))
  sizes = {'data': 4, 'fsdp': 2, 'sequence': 1, 'tensor': 1}
  assert dict(mesh.shape) == sizes


@pytest.mark.parametrize('sizes', [(3, 1, 1), (-1, 3, 1), (16, 1, 1)])
def test_axes_must_multiply_to_the_devices(sizes):
  with pytest.raises(UserError, match='must multiply to the 8 devices'):
    mesh_lib.make_mesh(mesh_config(*sizes))


def test_unknown_axis_and_axis_used_twice():
  with pytest.raises(ValueError, match='Unknown logical axes'):
    partitioning.spec(mesh_of(2, 2, 2), ('embedd', 'mlp'))
  with pytest.raises(UserError, match='used twice'):
    partitioning.spec(mesh_of(2, 2, 2), ('vocab', 'mlp'))


def test_size_that_does_not_divide_is_named():
  shapes = {'layers': {'up': jax.ShapeDtypeStruct((2, 6, 7), jnp.float32)}}
  axes = {'layers': {'up': ('layers', 'embed', 'mlp')}}
  with pytest.raises(UserError) as error:
    partitioning.shardings(mesh_of(2, 2, 2), shapes, axes, 'Parameter')
  for word in ("['up']", '(2, 6, 7)', 'mlp=7', "('tensor',)", "'tensor': 2"):
    assert word in str(error.value)


def test_batch_that_does_not_divide_is_named():
  with pytest.raises(UserError, match=r'training.batch_size=6 .* by 8'):
    partitioning.check_batch(mesh_of(4, 2, 1), 6, 'training.batch_size')


class Device(NamedTuple):
  id: int
  process_index: int


def groups_of(monkeypatch, sizes, devices_a_host):
  """The groups, were the devices those of hosts with so many each."""
  shards = {
    Device(device.id, device.id // devices_a_host): shard
    for device, shard in partitioning._shard_of_device(mesh_of(*sizes)).items()
  }
  monkeypatch.setattr(partitioning, '_shard_of_device', lambda mesh: shards)
  return partitioning.process_groups(mesh_of(*sizes))


@pytest.mark.parametrize(
  ('sizes', 'devices_a_host', 'expected'),
  [
    ((8, 1, 1), 8, [([0], list(range(8)))]),
    ((8, 1, 1), 2, [([h], [2 * h, 2 * h + 1]) for h in range(4)]),
    # One fsdp axis over all hosts: each still has rows of its own.
    ((1, 8, 1), 4, [([0], [0, 1, 2, 3]), ([1], [4, 5, 6, 7])]),
    ((2, 2, 2), 4, [([0], [0, 1]), ([1], [2, 3])]),
    ((4, 1, 2), 1, [([2 * g, 2 * g + 1], [g]) for g in range(4)]),
    ((1, 2, 4), 2, [([0, 1], [0]), ([2, 3], [1])]),
    ((1, 1, 8), 2, [([0, 1, 2, 3], [0])]),
  ],
)
def test_hosts_with_the_same_rows_are_a_group(
  monkeypatch, sizes, devices_a_host, expected
):
  assert groups_of(monkeypatch, sizes, devices_a_host) == expected


def test_hosts_that_share_some_rows_are_refused(monkeypatch):
  with pytest.raises(UserError) as error:
    groups_of(monkeypatch, (2, 1, 4), 3)
  for word in ("'tensor': 4", 'processes 0 and 1', 'mesh.tensor'):
    assert word in str(error.value)


@pytest.mark.parametrize('sizes', MESHES)
def test_rows_come_back_as_they_were_put(sizes):
  values = np.arange(8 * 3, dtype=np.float32).reshape(8, 3)
  put = partitioning.global_batch(mesh_of(*sizes), {'x': values})['x']
  assert put.shape == values.shape
  np.testing.assert_array_equal(np.asarray(put), values)
  np.testing.assert_array_equal(partitioning.local_sequences(put), values)


@pytest.mark.parametrize('sizes', MESHES)
def test_each_process_feeds_the_rows_of_its_shards(monkeypatch, sizes):
  mesh, shards = mesh_of(*sizes), partitioning._shard_of_device
  whole = partitioning.local_batch_indices(mesh, 16)
  assert whole.tolist() == list(range(16))
  # As if each device were a host: those with the same shard feed the same.
  num_shards = partitioning.num_batch_shards(mesh)
  for device, shard in shards(mesh).items():
    monkeypatch.setattr(
      partitioning, '_shard_of_device', lambda mesh, d=device, s=shard: {d: s}
    )
    own = partitioning.local_batch_indices(mesh, 16)
    rows = 16 // num_shards
    assert own.tolist() == list(range(shard * rows, (shard + 1) * rows))
