"""Which documents a reference model trains on, and which it scores.

With one fold the reference split is its own, and the scored split is what it
scores. With two, the texts of both splits are halved by content, so that copies
fall on one side; each model trains on one half and scores the other.
"""

from collections.abc import Iterable

import numpy as np

from infoprune_jax.config.corpus import SPLITS
from infoprune_jax.runtime.hashing import uniform
from infoprune_jax.tokens.token_store import UNIGRAMS, Shard, TokenStore

# Beyond any seed of a config: the halves must not follow the split's own draw.
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
  """The fold whose model scores each document, -1 for none, [documents] int8."""
  fold = np.full(len(shard.column('split')), -1, np.int8)
  for number in range(folds):
    fold[scored_documents(shard, number, folds)] = number
  return fold


def unigram_counts(
  store: TokenStore, fold: int, folds: int, shards: Iterable[int]
) -> np.ndarray:
  """How often each token occurs where a fold's model trains, [V] int64.

  Args:
    store: The corpus.
    fold: Which model.
    folds: Of how many.
    shards: Those to count in.
  """
  counts = np.zeros(store.vocab_size, np.int64)
  for number in shards:
    shard = store.shard(number)
    if folds == 1:  # The store has counted them.
      counts += shard.array(UNIGRAMS)
      continue
    counted = np.repeat(
      _is_trained(shard, fold, folds), shard.column('num_tokens')
    )
    counts += np.bincount(shard.tokens[counted], minlength=store.vocab_size)
  return counts


def _is_trained(shard: Shard, fold: int, folds: int) -> np.ndarray:
  split = shard.column('split')
  if folds == 1:
    return split == SPLITS.index('reference')
  half = uniform(shard.column('content_hash'), _SEED) < 0.5
  return (split != SPLITS.index('heldout')) & (half == bool(fold))
