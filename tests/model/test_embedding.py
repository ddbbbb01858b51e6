"""Rows looked up on a mesh, beside those of the whole table."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from infoprune_jax.config.experiment import MeshConfig
from infoprune_jax.model import embedding, mesh as mesh_lib, partitioning

MESHES = [
  dict(data=8),
  dict(data=1, fsdp=8),
  dict(data=1, tensor=8),
  dict(data=2, fsdp=2, tensor=2),
  dict(data=1, fsdp=2, tensor=2, sequence=2),
]


def on_mesh(sizes, function, *arrays):
  mesh = mesh_lib.make_mesh(MeshConfig(**sizes), jax.devices())
  with partitioning.use_mesh(mesh):
    return jax.tree.map(np.asarray, jax.jit(function)(*arrays))


# Devices do not divide 27 rows.
@pytest.mark.parametrize('num_rows', [32, 27])
@pytest.mark.parametrize('sizes', MESHES, ids=str)
def test_rows_and_gradient_are_those_of_the_table(sizes, num_rows):
  rng = np.random.default_rng(0)
  table = rng.normal(size=(num_rows, 16)).astype(np.float32)
  ids = rng.integers(0, num_rows, (8, 6)).astype(np.int32)
  weights = rng.normal(size=(8, 6, 16)).astype(np.float32)

  def weighted(table):
    rows = embedding.look_up(table, jnp.asarray(ids), 'vocab')
    return jnp.sum(rows * weights), rows

  (_, rows), gradient = on_mesh(
    sizes, jax.value_and_grad(weighted, has_aux=True), table
  )
  np.testing.assert_array_equal(rows, table[ids])
  expected = np.zeros_like(table)
  np.add.at(expected, ids, weights)
  np.testing.assert_allclose(gradient, expected, atol=1e-5)


def test_positions_are_rows_of_a_table_that_devices_hold_whole():
  table = np.arange(64, dtype=np.float32).reshape(8, 8)
  ids = np.tile(np.arange(8, dtype=np.int32), (8, 1))
  rows = on_mesh(
    dict(data=2, fsdp=2, tensor=2),
    lambda table: embedding.look_up(table, jnp.asarray(ids), 'positions'),
    table,
  )
  np.testing.assert_array_equal(rows, table[ids])
