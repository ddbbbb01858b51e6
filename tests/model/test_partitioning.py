import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_store import RandomStore

from infoprune_jax.config import MeshConfig, UserError
from infoprune_jax.model import network, partitioning
from infoprune_jax.score import scorer

MESHES = [(8, 1, 1), (4, 2, 1), (2, 2, 2), (1, 1, 8), (1, 4, 2)]


def mesh_config(data, fsdp, tensor):
  return MeshConfig(data=data, fsdp=fsdp, tensor=tensor)


def mesh_of(*sizes):
  count = int(np.prod(sizes))
  return partitioning.make_mesh(mesh_config(*sizes), jax.devices()[:count])


def nll_on(mesh, model, batch):
  """NLL of a batch under the same parameters, spread over a mesh."""
  vocab_size = RandomStore.vocab_size
  shapes = scorer.abstract_params(model, vocab_size, mesh)
  with partitioning.use_mesh(mesh):
    params = jax.jit(
      lambda: network.init_params(model, vocab_size, jax.random.key(0)),
      out_shardings=jax.tree.map(lambda x: x.sharding, shapes),
    )()
    function = jax.jit(lambda p, b: network.batch_nll(model, p, b))
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
  ways = sizes[1] * sizes[2]
  shard = params['embedding'].addressable_shards[0].data
  assert shard.size * ways == params['embedding'].size


def test_minus_one_takes_what_is_left():
  mesh = partitioning.make_mesh(mesh_config(-1, 2, 1))
  assert dict(mesh.shape) == {'data': 4, 'fsdp': 2, 'tensor': 1}


@pytest.mark.parametrize('sizes', [(3, 1, 1), (-1, 3, 1), (16, 1, 1)])
def test_axes_must_multiply_to_the_devices(sizes):
  with pytest.raises(UserError, match='must multiply to the 8 devices'):
    partitioning.make_mesh(mesh_config(*sizes))


def test_unknown_axis_and_axis_used_twice():
  with pytest.raises(ValueError, match='Unknown logical axes'):
    partitioning.spec(('embedd', 'mlp'))
  with pytest.raises(ValueError, match='used twice'):
    partitioning.spec(('vocab', 'mlp'))


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
