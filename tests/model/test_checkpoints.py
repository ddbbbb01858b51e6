import jax
import jax.numpy as jnp
import numpy as np
import pytest

from infoprune_jax.config import MeshConfig, UserError
from infoprune_jax.model import checkpoints, network, partitioning
from infoprune_jax.score import scorer


def mesh_of(data, fsdp, tensor):
  return partitioning.make_mesh(MeshConfig(data=data, fsdp=fsdp, tensor=tensor))


@pytest.fixture(scope='module')
def saved(small, tmp_path_factory):
  """Parameters sharded one way, and the folder they were saved to."""
  run = str(tmp_path_factory.mktemp('run'))
  mesh = mesh_of(4, 2, 1)
  shapes = scorer.abstract_params(small.model, 64, mesh)
  params = jax.jit(
    lambda: network.init_params(small.model, 64, jax.random.key(3)),
    out_shardings=jax.tree.map(lambda x: x.sharding, shapes),
  )()
  writer = checkpoints.Checkpoints(run, max_to_keep=2)
  for step in (5, 10, 15):
    writer.save(step, {'params': params, 'rest': {'step': jnp.int32(step)}})
  writer.close()
  return run, params


def test_params_alone_onto_another_mesh(small, saved):
  run, params = saved
  shapes = scorer.abstract_params(small.model, 64, mesh_of(2, 2, 2))
  loaded = checkpoints.load_params(run, 15, shapes)
  assert checkpoints.params_hash(loaded) == checkpoints.params_hash(params)
  assert loaded['embedding'].sharding == shapes['embedding'].sharding
  assert loaded['embedding'].sharding != params['embedding'].sharding


def test_keeps_the_newest(saved):
  run, _ = saved
  reader = checkpoints.Checkpoints(run, max_to_keep=2)
  assert reader.latest_step() == 15
  reader.close()
  with pytest.raises(UserError, match=r'no checkpoint of step 5.*\[10, 15\]'):
    checkpoints.load_params(run, 5, {})


def test_hash_sees_values_names_and_dtypes():
  tree = {'a': np.zeros(3, np.float32), 'b': np.ones(3, np.float32)}
  hashes = {
    checkpoints.params_hash(t)
    for t in (
      tree,
      {**tree, 'b': tree['b'] + 1e-7},
      {'a': tree['b'], 'b': tree['a']},
      {'a': tree['a'], 'c': tree['b']},
      {**tree, 'a': tree['a'].astype(np.int32)},
      {**tree, 'a': tree['a'].reshape(1, 3)},
    )
  }
  assert len(hashes) == 6
