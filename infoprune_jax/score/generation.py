"""Greedy continuations of prompts.

Each new token takes a forward pass over its whole sequence, because keys and
values are not cached. This suits evaluation, whose answers are short.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from infoprune_jax.config.model import ModelConfig
from infoprune_jax.config.validation import UserError
from infoprune_jax.model import network, partitioning
from infoprune_jax.model.mesh import Mesh
from infoprune_jax.score import scorer as scorer_lib
from infoprune_jax.score.language_model import (
  BATCH_TOKENS,
  LanguageModel,
  power_of_two,
)

_STRIDE = 16  # new tokens between two checks whether all texts have ended


def greedy(
  model: LanguageModel,
  prompts: Sequence[str],
  max_new_tokens: int,
  stops: Sequence[str] = (),
) -> list[str]:
  """The most likely continuation of each prompt, token by token.

  Args:
    model: The model.
    prompts: The texts to continue, the same in all processes of a job. A prompt
      that is too long loses its first tokens.
    max_new_tokens: The most tokens of a continuation. EOS ends it earlier.
    stops: The first of these strings ends a continuation, and is not part of it.

  Raises:
    UserError: `max_new_tokens` is not below the context of the model.
  """
  encoded = _encode(model, prompts, max_new_tokens)
  order = np.argsort([-len(ids) for ids in encoded], kind='stable')
  longest = max(map(len, encoded), default=0) + max_new_tokens
  num_shards = partitioning.num_batch_shards(model.mesh)
  size = num_shards * max(BATCH_TOKENS // power_of_two(longest), 1)
  texts = [''] * len(prompts)
  for first in range(0, len(order), size):
    chosen = order[first : first + size]
    batch = [encoded[number] for number in chosen]
    continued = _batch(model, batch, max_new_tokens, tuple(stops))
    for number, text in zip(chosen, continued, strict=True):
      texts[number] = text
  return texts


def _encode(
  model: LanguageModel, prompts: Sequence[str], max_new_tokens: int
) -> list[np.ndarray]:
  """The last token ids of each prompt, int32, with room for new tokens."""
  room = model.scoring.sequence_length - max_new_tokens
  if room < 1:
    raise UserError(
      f'The model takes {model.scoring.sequence_length} tokens at once, which '
      f'leaves no room for a prompt before {max_new_tokens} new ones: ask for '
      'fewer (max_gen_toks), or raise max_length.'
    )
  bos = [model.vocabulary.bos_id]
  encoded = []
  for ids in model.vocabulary.encode_all(prompts):
    start = bos * (model.adds_bos or not len(ids))
    encoded.append(np.concatenate([start, ids]).astype(np.int32)[-room:])
  return encoded


def _batch(
  model: LanguageModel,
  prompts: list[np.ndarray],
  max_new_tokens: int,
  stops: tuple[str, ...],
) -> list[str]:
  """The continuations of prompts that fit into one batch."""
  num_shards = partitioning.num_batch_shards(model.mesh)
  size = num_shards * power_of_two(-(-len(prompts) // num_shards))
  longest = max(map(len, prompts))
  # Whole strides, so that the last one fits.
  length = longest + -(-max_new_tokens // _STRIDE) * _STRIDE
  tokens = np.zeros((size, power_of_two(length)), np.int32)
  lengths = np.ones(size, np.int32)
  for number, ids in enumerate(prompts):
    tokens[number, : len(ids)] = ids
    lengths[number] = len(ids)
  texts = []
  for done in range(0, max_new_tokens, _STRIDE):
    tokens = _extended(model, tokens, lengths + done)
    new = min(done + _STRIDE, max_new_tokens)
    ended = [
      _text(model, tokens[number, len(ids) : len(ids) + new], stops)
      for number, ids in enumerate(prompts)
    ]
    texts = [text for text, _ in ended]
    if all(is_over for _, is_over in ended):
      break
  return texts


def _text(
  model: LanguageModel, ids: np.ndarray, stops: tuple[str, ...]
) -> tuple[str, bool]:
  """The text of new tokens, and whether EOS or a stop has ended it."""
  ends = np.flatnonzero(ids == model.vocabulary.eos_id)
  is_over = bool(len(ends))
  text = model.vocabulary.decode(ids[: ends[0]] if is_over else ids)
  for stop in filter(None, stops):
    text, found, _ = text.partition(stop)
    is_over = is_over or bool(found)
  return text, is_over


def _extended(
  model: LanguageModel, tokens: np.ndarray, lengths: np.ndarray
) -> np.ndarray:
  """Sequences with _STRIDE more tokens each, [B, T] int32 on every process."""
  mesh = model.mesh
  num_sequences, length = tokens.shape
  scoring = dataclasses.replace(
    model.scoring,
    sequence_length=length,
    window_overlap=0,
    per_device_batch_size=num_sequences // partitioning.num_batch_shards(mesh),
  )
  kernels = scorer_lib.with_kernels(model.model, scoring, mesh)
  on_mesh = [
    jax.make_array_from_callback(
      values.shape, partitioning.batch_sharding(mesh), values.__getitem__
    )
    for values in (tokens, lengths[:, None])
  ]
  with partitioning.use_mesh(mesh):
    extended = _program(kernels, mesh)(model.params, *on_mesh)
  return np.asarray(extended.addressable_data(0))


@functools.lru_cache(maxsize=8)
def _program(model: ModelConfig, mesh: Mesh) -> Any:
  return jax.jit(
    functools.partial(_extend, model),
    out_shardings=partitioning.replicated(mesh),
  )


def _extend(
  model: ModelConfig, params: Any, tokens: jax.Array, lengths: jax.Array
) -> jax.Array:
  """Appends _STRIDE tokens after the first `lengths` of each sequence."""
  num_sequences, length = tokens.shape
  batch = {
    'decoder_positions': jnp.broadcast_to(jnp.arange(length), tokens.shape),
    # Padding follows the tokens, which do not see it. It needs no segment.
    'decoder_segment_ids': jnp.ones_like(tokens),
  }

  def append(step: jax.Array, tokens: jax.Array) -> jax.Array:
    filled = lengths[:, 0] + step
    inputs = {**batch, 'decoder_input_tokens': tokens}
    new = network.next_token(model, params, inputs, filled - 1)
    return tokens.at[jnp.arange(num_sequences), filled].set(new)

  return jax.lax.fori_loop(0, _STRIDE, append, tokens)
