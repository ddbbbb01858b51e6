"""How a training step is computed, where the config leaves it to the memory."""

import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Any

import jax

from infoprune_jax.config.model import REMAT, ModelConfig
from infoprune_jax.config.training import TrainingConfig
from infoprune_jax.model import memory, network, partitioning
from infoprune_jax.model.mesh import Mesh
from infoprune_jax.runtime import distributed
from infoprune_jax.runtime.progress import logger, quantity
from infoprune_jax.train import optimizer

# Of a device's memory, for what is not part of the step, such as batches.
_SPARE_FRACTION = 0.1


def choose(
  model: ModelConfig,
  training: TrainingConfig,
  vocab_size: int,
  mesh: Mesh,
  step: Callable[[ModelConfig], Any],
) -> ModelConfig:
  """The model with `remat`, `scan_unroll` and `loss_chunk_tokens` decided.

  Takes the first of `_candidates` whose step fits a device, or the last, which
  is not tried. All processes call this together.

  Args:
    model: The model. Values that its config gives are not changed.
    training: Its batches and its optimizer.
    vocab_size: Number of token ids.
    mesh: The mesh to train on.
    step: Returns the compiled step of a model.
  """
  chunked = memory.with_loss_chunk(model, vocab_size, mesh)
  *larger, chosen = _candidates(model, chunked, mesh)
  bytes_limit = memory.limit(mesh) if larger else 0
  for candidate in larger:
    least = _least_bytes(candidate, training, vocab_size, mesh)
    if bytes_limit and least > bytes_limit:
      continue
    fits = memory.fits(
      lambda candidate=candidate: step(candidate),
      mesh,
      int(bytes_limit * _SPARE_FRACTION),
    )
    if all(distributed.all_gather('whether a step fits', fits)):
      chosen = candidate
      break
  if chosen != model:
    logger.info(
      'training: model.remat=%r, model.scan_unroll=%d, '
      'model.loss_chunk_tokens=%d, for devices of %s',
      chosen.remat,
      chosen.scan_unroll,
      chosen.loss_chunk_tokens or network.LOSS_CHUNK_TOKENS,
      quantity(bytes_limit, 'B') if bytes_limit else 'unknown memory',
    )
  return chosen


def _candidates(
  given: ModelConfig, chunked: ModelConfig, mesh: Mesh
) -> Iterator[ModelConfig]:
  """Models that compute the same, from the fastest to the smallest.

  Args:
    given: The model as the config has it.
    chunked: The same with a chunk of tokens for the loss.
    mesh: The mesh to train on.
  """
  unroll = memory.scan_unroll(given, mesh)
  policies = REMAT if given.remat == 'auto' else (given.remat,)
  for policy in policies:
    last = dataclasses.replace(chunked, remat=policy, scan_unroll=unroll)
    yield last
  smallest = dataclasses.replace(
    last,
    scan_unroll=given.scan_unroll or 1,
    loss_chunk_tokens=given.loss_chunk_tokens
    or min(chunked.loss_chunk_tokens, network.LOSS_CHUNK_TOKENS),
  )
  if smallest != last:
    yield smallest


def _least_bytes(
  model: ModelConfig, training: TrainingConfig, vocab_size: int, mesh: Mesh
) -> int:
  """Bytes that a step takes on a device in any case.

  Spares compiling what cannot fit: the state, and of each layer its input and
  the results of those products that its backward pass needs.
  """
  shapes = network.param_shapes(model, vocab_size)
  axes = network.param_axes(model, vocab_size)
  shardings = partitioning.shardings(mesh, shapes, axes, 'Parameter')
  leaves = zip(jax.tree.leaves(shapes), jax.tree.leaves(shardings), strict=True)
  params = sum(4 * math.prod(s.shard_shape(x.shape)) for x, s in leaves)
  whole = sum(4 * math.prod(x.shape) for x in jax.tree.leaves(shapes))
  ratio = 1 + optimizer.state_bytes(training, shapes, axes) / whole
  projected = (model.num_heads + 2 * model.num_kv_heads) * model.head_dim
  inner = model.mlp_dim * (1 + model.is_gated)
  numbers = model.embed_dim
  if model.remat != 'full':
    numbers += projected // mesh.num_shards('heads')
  if model.remat in ('none', 'minimal'):
    numbers += inner // mesh.num_shards('mlp')
  tokens = (
    training.batch_size
    * training.sequence_length
    // training.gradient_accumulation_steps
    // (mesh.num_shards('batch') * mesh.num_shards('length'))
  )
  itemsize = jax.numpy.dtype(model.dtype).itemsize
  return int(params * ratio) + tokens * model.num_layers * numbers * itemsize
