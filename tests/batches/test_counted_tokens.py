"""Weights travel with their tokens into batches, and change nothing else."""

import numpy as np
import pytest

from infoprune_jax.batches import loader
from infoprune_jax.config.training import TrainingConfig

BATCH, LENGTH, STEPS = 3, 16, 20  # more than an epoch


@pytest.fixture
def store(make_store):
  """Two shards; each token has an id of its own, from 10 on."""
  rng = np.random.default_rng(0)
  lengths = rng.integers(0, 40, 30)  # Some need several sequences.
  ids = np.split(10 + np.arange(lengths.sum()), np.cumsum(lengths)[:-1])
  documents = [part.tolist() for part in ids]
  return make_store([documents[:12], documents[12:]])


def test_each_token_has_its_weight(store):
  counts = np.random.default_rng(1).random(2000) < 0.4  # by id

  def counted(number, doc_index, token):
    shard = store.shard(number)
    assert (shard.offsets[doc_index] <= token).all()
    assert (token < shard.offsets[doc_index + 1]).all()
    return counts[shard.tokens[token]]

  keep = [np.arange(0, 12, 2), np.arange(18)]
  training = TrainingConfig(
    num_steps=1, batch_size=BATCH, sequence_length=LENGTH, learning_rate=1e-3
  )
  plain, weighted = (
    loader.grain_reader(store, keep, training, 0, counted=which).batches(
      0, STEPS, np.arange(BATCH)
    )
    for which in (None, counted)
  )
  seen = set()
  for before, after in zip(plain, weighted, strict=True):
    weights = after.pop('decoder_loss_weights')
    all_weights = before.pop('decoder_loss_weights')
    for name, values in before.items():
      np.testing.assert_array_equal(after[name], values)
    targets = after['decoder_target_tokens']
    has_no_score = targets == store.eos_id
    expected = all_weights * (counts[targets] | has_no_score)
    np.testing.assert_array_equal(weights, expected)
    seen.update(targets[weights > 0].tolist())
  kept = np.concatenate(
    [store.document(n, doc) for n, docs in enumerate(keep) for doc in docs]
  )
  assert seen == {store.eos_id, *kept[counts[kept]].tolist()}
