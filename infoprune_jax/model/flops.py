"""FLOPs of the model, by formula: what a compiler counts is something else."""

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
  """FLOPs of the forward pass, a token of a full sequence.

  Two for each parameter in a matrix product (a tied head counts once, the
  embedding's look-up not at all), and for causal attention 2 x layers x heads x
  head_dim x sequence_length: its two products each need 2 x width operations
  for each of the sequence_length / 2 positions that a token sees on average.
  Norms, activations and the cap of logits are left out.
  """
  width, dim = config.embed_dim, config.head_dim
  matrices = (
    width * dim * (2 * config.num_heads + 2 * config.num_kv_heads)
    + (3 if config.activation == 'swiglu' else 2) * width * config.mlp_dim
  )
  attention = config.num_heads * dim * sequence_length
  return 2.0 * (config.num_layers * (matrices + attention) + width * vocab_size)


def training_flops_per_token(
  config: ModelConfig, vocab_size: int, sequence_length: int
) -> float:
  """FLOPs of a training step, a token: the backward pass costs two forwards.

  Rematerialisation is not counted: it is a price of memory, not of the model.
  """
  return 3.0 * forward_flops_per_token(config, vocab_size, sequence_length)
