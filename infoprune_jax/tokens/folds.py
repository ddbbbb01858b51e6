"""The documents that each reference model trains on, and those that it scores.

With one fold, the model trains on the reference split and scores the scored
split. With two, both splits are halved by content, so that copies are in one
half; each model trains on one half and scores the other.
"""

from collections.abc import Iterable

import numpy as np

from infoprune_jax.config.corpus import SPLITS
from infoprune_jax.runtime.hashing import uniform
from infoprune_jax.tokens.token_store import UNIGRAMS, Shard, TokenStore

# Larger than any seed of a config: the halves must not depend on the split.
_SEED = 2**31


def trained_documents(shard: Shard, fold: int, folds: int) -> np.ndarray:
  """The documents that the model of a fold trains on, ascending, int64."""
  return np.flatnonzero(_is_trained(shard, fold, folds))


def scored_documents(shard: Shard, fold: int, folds: int) -> np.ndarray:
  """The documents that the model of a fold scores, ascending, int64."""
  if folds == 1:
    return shard.documents_of('scored')
  return trained_documents(shard, 1 - fold, folds)


def fold_of_documents(shard: Shard, folds: int) -> np.ndarray:
  """The fold that scores each document, or -1, [documents] int8."""
  fold = np.full(len(shard.column('split')), -1, np.int8)
  for number in range(folds):
    fold[scored_documents(shard, number, folds)] = number
  return fold


def unigram_counts(
  store: TokenStore, fold: int, folds: int, shards: Iterable[int]
) -> np.ndarray:
  """How often each token occurs in the texts that a fold trains on, [V] int64.

  A model from elsewhere may score all of a corpus that has no reference split.
  The tokens that it scores are counted then.

  Args:
    store: The corpus.
    fold: Index of the model.
    folds: Number of models.
    shards: The shards to count in.
  """
  counts = np.zeros(store.vocab_size, np.int64)
  of_scored = folds == 1 and not has_reference(store)
  for number in shards:
    shard = store.shard(number)
    if folds == 1 and not of_scored:  # The store has counted them.
      counts += shard.array(UNIGRAMS)
      continue
    documents = (
      shard.column('split') == SPLITS.index('scored')
      if of_scored
      else _is_trained(shard, fold, folds)
    )
    counted = np.repeat(documents, shard.column('num_tokens'))
    counts += np.bincount(shard.tokens[counted], minlength=store.vocab_size)
  return counts


def has_reference(store: TokenStore) -> bool:
  """Whether a store has text for a reference model to train on."""
  return store.manifest['splits']['reference']['documents'] > 0


def _is_trained(shard: Shard, fold: int, folds: int) -> np.ndarray:
  split = shard.column('split')
  if folds == 1:
    return split == SPLITS.index('reference')
  half = uniform(shard.column('content_hash'), _SEED) < 0.5
  return (split != SPLITS.index('heldout')) & (half == bool(fold))
