import dataclasses
import math

import jax
import numpy as np
import pytest

from infoprune_jax.batches import packing
from infoprune_jax.config.experiment import MeshConfig
from infoprune_jax.config.model import LayerKind
from infoprune_jax.model import flops, mesh as mesh_lib, network, partitioning


@pytest.mark.parametrize(
  'edit', [{}, {'activation': 'gelu', 'qk_norm': True, 'tie_embeddings': False}]
)
def test_num_params_counts_what_is_initialised(small, edit):
  model = dataclasses.replace(small.model, **edit)
  params = network.init_params(model, 100, jax.random.key(0))
  counted = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))
  assert flops.num_params(model, 100) == counted


def test_by_hand(small):
  model = dataclasses.replace(
    small.model,
    num_layers=3,
    embed_dim=32,
    mlp_dim=64,
    num_heads=2,
    num_kv_heads=1,
    head_dim=16,
  )
  # Queries and output 2 * 32 * 32, keys and values 2 * 32 * 16, MLP 3 * 32 *
  # 64; attention 2 products of 32 for 100 / 2 positions.
  layer = 2 * (2048 + 1024 + 6144) + 2 * 2 * 32 * 50
  expected = 3 * layer + 2 * 32 * 500
  assert flops.forward_flops_per_token(model, 500, 100) == expected
  assert flops.training_flops_per_token(model, 500, 100) == 3 * expected
  gelu = dataclasses.replace(model, activation='gelu')
  expected -= 3 * 2 * 32 * 64  # The gate.
  assert flops.forward_flops_per_token(gelu, 500, 100) == expected


@pytest.mark.parametrize('window', [1, 7, 10, 11])
def test_a_window_counts_what_tokens_see(small, window):
  """Against a count over the ten tokens of a sequence, to half a token."""
  kinds = (LayerKind(window=window), LayerKind())
  model = dataclasses.replace(small.model, num_layers=3, layer_pattern=kinds)
  plain = dataclasses.replace(model, layer_pattern=())
  seen = np.minimum(np.arange(10) + 0.5, window)
  fewer = np.mean(np.arange(10) + 0.5 - seen)
  difference = flops.forward_flops_per_token(
    plain, 100, 10
  ) - flops.forward_flops_per_token(model, 100, 10)
  width = model.num_heads * model.head_dim
  # Two of three layers have the window.
  assert difference / (2 * 4 * width) == pytest.approx(fewer, abs=0.1)


def test_close_to_what_the_compiler_counts(small):
  """For a program without loops, and attention that skips nothing."""
  length, batch, vocab = 64, 2, 256
  model = dataclasses.replace(
    small.model,
    num_layers=1,
    embed_dim=64,
    mlp_dim=512,
    loss_chunk_tokens=10**6,
  )
  rows = packing.empty_sequences(batch, length)
  params = network.param_shapes(model, vocab)
  config = MeshConfig(data=1, fsdp=1, tensor=1)
  mesh = mesh_lib.make_mesh(config, jax.devices()[:1])
  with partitioning.use_mesh(mesh):
    compiled = (
      jax.jit(lambda p, b: network.batch_statistics(model, p, b)['nll'])
      .lower(params, rows)
      .compile()
    )
  counted = compiled.cost_analysis()['flops'] / (batch * length)
  ours = flops.forward_flops_per_token(model, vocab, length)
  assert counted == pytest.approx(ours, rel=0.1)
