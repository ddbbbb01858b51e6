"""FLOPs of the model, by formula, not as a compiler counts them."""

import math

import jax

from infoprune_jax.config.model import ModelConfig
from infoprune_jax.model import network


def num_params(config: ModelConfig, vocab_size: int) -> int:
  """Number of parameters."""
  shapes = network.param_shapes(config, vocab_size)
  return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes))


def forward_flops_per_token(
  config: ModelConfig, vocab_size: int, sequence_length: int
) -> float:
  """FLOPs of the forward pass per token of a full sequence.

  Two for each parameter in a matrix product (a tied head counts once, the
  embedding's look-up not at all), and for causal attention 4 x heads x head_dim
  for each position that a token sees: half of the sequence on average, less in
  layers with a window. Norms, activations, biases and caps are left out.
  """
  width, dim = config.embed_dim, config.head_dim
  matrices = (
    width * dim * (2 * config.num_heads + 2 * config.num_kv_heads)
    + (3 if config.is_gated else 2) * width * config.mlp_dim
  )
  kinds = config.layer_kinds
  seen = sum(
    _seen_positions(kinds[layer % len(kinds)].window, sequence_length)
    for layer in range(config.num_layers)
  )
  attention = 2 * config.num_heads * dim * seen
  return 2.0 * (config.num_layers * matrices + attention + width * vocab_size)


def _seen_positions(window: int, sequence_length: int) -> float:
  """How many positions a token sees on average."""
  seen = min(window or sequence_length, sequence_length)
  return seen - seen**2 / (2 * sequence_length)


def training_flops_per_token(
  config: ModelConfig, vocab_size: int, sequence_length: int
) -> float:
  """FLOPs of a training step per token: the backward pass costs two forwards.

  Rematerialisation is not counted: it saves memory and is no part of the model.
  """
  return 3.0 * forward_flops_per_token(config, vocab_size, sequence_length)
