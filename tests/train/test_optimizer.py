"""What steps the optimizers take; schedules are in test_budget.py."""

import dataclasses
import functools
import math

import jax
import numpy as np
import pytest
from random_store import RandomStore

from infoprune_jax.config.experiment import MeshConfig
from infoprune_jax.model import mesh as mesh_lib, network
from infoprune_jax.train import optimizer, state

VOCAB = RandomStore.vocab_size
OPTIMIZERS = ('adamw', 'adafactor', 'muon')


@pytest.fixture(scope='module')
def model(small):
  """Wide enough for Adafactor to factor, also attention's matrices."""
  return dataclasses.replace(
    small.model,
    num_layers=3,
    scan_unroll=1,  # Less to compile.
    embed_dim=128,
    mlp_dim=192,
    num_heads=4,
    num_kv_heads=4,
    head_dim=32,
    qk_norm=True,
  )


def training_with(small, name):
  return dataclasses.replace(
    small.train.training, optimizer=name, warmup_steps=0
  )


def unrolled(tree, is_leaf=None):
  """The same tree with a branch for each layer."""
  return {
    **tree,
    'layers': {
      str(n): jax.tree.map(lambda x, n=n: x[n], tree['layers'])
      for n in range(3)
    },
  }


def unrolled_axes(axes):
  layer = jax.tree.map(
    lambda names: names[1:],
    axes['layers'],
    is_leaf=lambda node: isinstance(node, tuple),
  )
  return {**axes, 'layers': {str(n): layer for n in range(3)}}


def gradients(params, seed):
  """Of other sizes in other layers, as an average over them would show."""
  leaves, tree = jax.tree.flatten(params)
  rng = np.random.default_rng(seed)
  return tree.unflatten(
    rng.normal(size=x.shape).astype(np.float32)
    * 10.0 ** np.arange(len(x)).clip(0, 2).reshape(-1, *[1] * (x.ndim - 1))
    for x in leaves
  )


def after(transform, params, grads):
  """The parameters after some steps, and the optimizer's state."""

  @jax.jit
  def step(params, state, grads):
    updates, state = transform.update(grads, state, params)
    return jax.tree.map(lambda p, u: p + u, params, updates), state

  state_ = transform.init(params)
  for each in grads:
    params, state_ = step(params, state_, each)
  return jax.device_get(params), state_


@pytest.fixture(scope='module')
def params(model):
  init = functools.partial(network.init_params, model, VOCAB)
  return jax.device_get(jax.jit(init)(jax.random.key(0)))


@pytest.mark.parametrize('name', OPTIMIZERS)
def test_scanned_and_unrolled_layers_take_the_same_step(
  small, model, params, name
):
  training = training_with(small, name)
  axes = network.param_axes(model, VOCAB)
  grads = [gradients(params, seed) for seed in range(3)]
  scanned, _ = after(optimizer.make(training, axes), params, grads)
  apart, _ = after(
    optimizer.make(training, unrolled_axes(axes)),
    unrolled(params),
    list(map(unrolled, grads)),
  )
  jax.tree.map(
    lambda a, b, c: np.testing.assert_allclose(
      a - c, b - c, rtol=2e-3, atol=2e-6
    ),
    unrolled(scanned),
    apart,
    unrolled(params),
  )


def test_muon_makes_matrices_of_layers_orthogonal(small, model, params):
  training = dataclasses.replace(
    training_with(small, 'muon'), weight_decay=0.0, learning_rate=1.0
  )
  axes = network.param_axes(model, VOCAB)
  grads = [gradients(params, 0)]
  stepped, _ = after(optimizer.make(training, axes), params, grads)
  moved = jax.tree.map(lambda a, b: a - b, stepped, params)
  layers = moved['layers']
  for matrix in (
    layers['attention']['query'].reshape(3, 128, 128),
    layers['attention']['out'].reshape(3, 128, 128),
    layers['mlp']['up'],
    layers['mlp']['down'],
  ):
    sizes = np.linalg.svd(matrix, compute_uv=False)
    longest = 0.2 * np.sqrt(max(matrix.shape[1:]))
    # Five rounds of Newton and Schulz leave few far from it.
    assert sizes.max() < 1.3 * longest
    assert np.mean(sizes > 0.6 * longest) > 0.95
  adam = dataclasses.replace(training, optimizer='adamw')
  other, _ = after(optimizer.make(adam, axes), params, grads)
  for pick in (
    lambda tree: tree['embedding'],
    lambda tree: tree['final_norm']['scale'],
    lambda tree: tree['layers']['attention']['query_norm']['scale'],
  ):
    np.testing.assert_allclose(pick(stepped), pick(other), rtol=1e-5)


def test_adafactor_keeps_rows_and_columns_alone(small, model, params):
  axes = network.param_axes(model, VOCAB)
  kept = {
    name: optimizer.state_bytes(training_with(small, name), params, axes)
    for name in OPTIMIZERS
  }
  size = sum(x.size for x in jax.tree.leaves(params))
  table = params['embedding'].size  # Of 64 rows: too few to factor.
  assert kept['adamw'] == pytest.approx(8 * size, rel=0.01)
  assert kept['muon'] == pytest.approx(4 * (size + table), rel=0.01)
  assert kept['adafactor'] < 4 * (table + 0.05 * size)


def test_weights_decay_by_their_axes(small, model, params):
  axes = network.param_axes(model, VOCAB)
  zeros = [jax.tree.map(np.zeros_like, params)]
  for name in OPTIMIZERS:
    training = training_with(small, name)
    stepped, _ = after(optimizer.make(training, axes), params, zeros)
    factor = 1.0 - training.learning_rate * training.weight_decay
    for path, value in (
      (('embedding',), factor),
      (('layers', 'attention', 'out'), factor),
      (('layers', 'attention', 'key_norm', 'scale'), 1.0),
      (('final_norm', 'scale'), 1.0),
    ):
      before, now = params, stepped
      for key in path:
        before, now = before[key], now[key]
      np.testing.assert_allclose(now, value * before, rtol=1e-6)


def mesh_of(data, fsdp, tensor):
  return mesh_lib.make_mesh(
    MeshConfig(data=data, fsdp=fsdp, tensor=tensor),
    jax.devices()[: data * fsdp * tensor],
  )


@pytest.mark.parametrize('sizes', [(4, 2, 1), (2, 2, 2)])
@pytest.mark.parametrize('name', OPTIMIZERS)
def test_moments_are_spread_as_their_parameters(small, model, name, sizes):
  """Those of other shapes, and counts, are small and everywhere."""
  axes = network.param_axes(model, VOCAB)
  transform = optimizer.make(training_with(small, name), axes)
  init = state._make_init(model, VOCAB, transform)
  shapes = state._state_shapes(mesh_of(*sizes), init, axes)
  pairs = [
    (leaf.size, leaf.sharding.shard_shape(leaf.shape), str(path))
    for path, leaf in jax.tree_util.tree_leaves_with_path(shapes['opt_state'])
  ]
  num_shards = sizes[1] * sizes[2]
  large = [pair for pair in pairs if pair[0] >= 3 * 128 * 128]
  assert len(large) == {'adamw': 14, 'adafactor': 0, 'muon': 7}[name]
  assert all(math.prod(shard) * num_shards == size for size, shard, _ in large)
  whole = [pair for pair in pairs if math.prod(pair[1]) == pair[0]]
  assert all(size <= 3 * 192 for size, _, path in whole), whole


@pytest.mark.parametrize(
  'name, sizes', [('adafactor', (2, 2, 2)), ('muon', (4, 2, 1))]
)
def test_the_loss_curve_of_one_device(small, model, name, sizes):
  model = dataclasses.replace(
    model, num_layers=2, activation='gelu', qk_norm=False
  )
  rows = RandomStore([60, 13, 40, 21, 64, 5, 30, 33] * 6).packed(64)
  batch = rows.batch(np.arange(8), 8)
  curves = []
  for mesh in (mesh_of(1, 1, 1), mesh_of(*sizes)):
    program = state.compile_program(
      model, training_with(small, name), VOCAB, mesh
    )
    tree, losses = program.init(0), []
    for _ in range(4):
      tree, metrics = program.step(tree, program.put(batch))
      losses.append(float(metrics['loss']))
    curves.append(losses)
  assert curves[0][-1] < curves[0][0]
  np.testing.assert_allclose(curves[1], curves[0], rtol=1e-4)
