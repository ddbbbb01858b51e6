"""A model with random parameters, and the vocabulary of the made-up corpus."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_store import RandomStore

from infoprune_jax.config.experiment import MeshConfig, ScoringConfig
from infoprune_jax.model import mesh as mesh_lib, network, partitioning
from infoprune_jax.runtime.workdir import vocabulary_dir
from infoprune_jax.score import scorer as scorer_lib
from infoprune_jax.score.language_model import LanguageModel
from infoprune_jax.tokens.vocabulary import Vocabulary


@pytest.fixture(scope='session')
def mesh() -> mesh_lib.Mesh:
  """One device."""
  config = MeshConfig(data=1, fsdp=1, tensor=1)
  return mesh_lib.make_mesh(config, jax.devices()[:1])


@pytest.fixture(scope='session')
def params(small, mesh):
  """Random parameters for a `RandomStore`, on one device."""
  with partitioning.use_mesh(mesh):
    vocab_size = RandomStore.vocab_size
    return network.init_params(small.model, vocab_size, jax.random.key(0))


@pytest.fixture(scope='session')
def language_model(small, store_workdir) -> Callable[..., LanguageModel]:
  """(mesh sizes or None for one device, **fields) -> the same model there."""
  words = Vocabulary.load(vocabulary_dir(store_workdir))

  def make(mesh: dict | None = None, **fields) -> LanguageModel:
    devices = None if mesh else jax.devices()[:1]
    on = mesh_lib.make_mesh(MeshConfig(**(mesh or {})), devices)
    model = dataclasses.replace(small.model, qk_norm=True)
    with partitioning.use_mesh(on):
      params = network.init_params(model, words.size, jax.random.key(0))
    # Large enough that the most likely token is clear.
    params = jax.tree.map(lambda x: 3.0 * x, params)
    shapes = scorer_lib.abstract_params(model, words.size, on)
    params = jax.tree.map(
      lambda x, shape: jax.device_put(x, shape.sharding), params, shapes
    )
    scoring = ScoringConfig(
      sequence_length=64, window_overlap=16, dtype='float32'
    )
    return LanguageModel(
      model, params, words.size, words, on, scoring, **fields
    )

  return make


@pytest.fixture(scope='session')
def next_token() -> Callable[[LanguageModel, np.ndarray, int], int]:
  """(model, ids, position) -> the likeliest token after it, without packing."""
  program = jax.jit(network.next_token, static_argnums=0)

  def call(model: LanguageModel, ids: np.ndarray, position: int) -> int:
    length = model.scoring.sequence_length
    batch = {
      'decoder_input_tokens': jnp.zeros((1, length), jnp.int32)
      .at[0, : len(ids)]
      .set(np.asarray(ids, np.int32)),
      'decoder_positions': jnp.arange(length)[None],
      'decoder_segment_ids': jnp.ones((1, length), jnp.int32),
    }
    with partitioning.use_mesh(model.mesh):
      at = jnp.array([position])
      return int(program(model.model, model.params, batch, at)[0])

  return call
