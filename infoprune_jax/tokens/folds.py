"""Which documents a reference model trains on, and which it scores.

With one fold the reference split is its own, and the scored split is what it
scores. With two, the texts of both splits are halved by content, so that copies
fall on one side; each model trains on one half and scores the other.
"""

from collections.abc import Iterable

import numpy as np

from infoprune_jax.config.corpus import SPLITS
from infoprune_jax.runtime.hashing import uniform
from infoprune_jax.tokens.token_store import UNIGRAMS, Part, TokenStore

# Beyond any seed of a config: the halves must not follow the split's own draw.
_SEED = 2**31


def trained_rows(part: Part, fold: int, folds: int) -> np.ndarray:
  """The rows that the model of a fold trains on, ascending, int64."""
  return np.flatnonzero(_is_trained(part, fold, folds))


def scored_rows(part: Part, fold: int, folds: int) -> np.ndarray:
  """The rows that the model of a fold scores, ascending, int64."""
  if folds == 1:
    return part.rows_of('scored')
  return trained_rows(part, 1 - fold, folds)


def fold_of_rows(part: Part, folds: int) -> np.ndarray:
  """The fold whose model scores each document, -1 for none, [rows] int8."""
  fold = np.full(len(part.column('split')), -1, np.int8)
  for number in range(folds):
    fold[scored_rows(part, number, folds)] = number
  return fold


def unigram_counts(
  store: TokenStore, fold: int, folds: int, parts: Iterable[int]
) -> np.ndarray:
  """How often each token occurs where a fold's model trains, [V] int64.

  Args:
    store: The corpus.
    fold: Which model.
    folds: Of how many.
    parts: Those to count in.
  """
  counts = np.zeros(store.vocab_size, np.int64)
  for number in parts:
    part = store.part(number)
    if folds == 1:  # The store has counted them.
      counts += np.load(part.file(UNIGRAMS))
      continue
    counted = np.repeat(
      _is_trained(part, fold, folds), part.column('num_tokens')
    )
    counts += np.bincount(part.tokens[counted], minlength=store.vocab_size)
  return counts


def _is_trained(part: Part, fold: int, folds: int) -> np.ndarray:
  split = part.column('split')
  if folds == 1:
    return split == SPLITS.index('reference')
  half = uniform(part.column('content_hash'), _SEED) < 0.5
  return (split != SPLITS.index('heldout')) & (half == bool(fold))
