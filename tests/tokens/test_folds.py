"""Who trains on what, and who scores it."""

import numpy as np
import pytest

from infoprune_jax.config.corpus import SPLITS
from infoprune_jax.tokens import folds


@pytest.fixture(scope='module')
def parts(store):
  return [store.part(number) for number in range(store.num_parts)]


def hashes(parts, rows_of) -> np.ndarray:
  return np.concatenate(
    [part.column('content_hash')[rows_of(part)] for part in parts]
  )


def test_one_fold_is_the_splits(parts):
  for part in parts:
    trained, scored = (
      rows_of(part, 0, 1) for rows_of in (folds.trained_rows, folds.scored_rows)
    )
    assert np.array_equal(trained, part.rows_of('reference'))
    assert np.array_equal(scored, part.rows_of('scored'))


def test_two_folds_score_each_other_and_nothing_held_out(parts):
  for part in parts:
    halves = [folds.trained_rows(part, fold, 2) for fold in range(2)]
    assert np.array_equal(folds.scored_rows(part, 0, 2), halves[1])
    assert np.array_equal(folds.scored_rows(part, 1, 2), halves[0])
    both = np.concatenate(halves)
    heldout = part.column('split') == SPLITS.index('heldout')
    assert np.array_equal(np.sort(both), np.flatnonzero(~heldout))


def test_copies_fall_on_one_side(parts):
  first, second = (
    hashes(parts, lambda part, f=fold: folds.trained_rows(part, f, 2))
    for fold in range(2)
  )
  assert len(np.unique(first)) < len(first)  # There are copies.
  assert not np.intersect1d(first, second).size


def test_halves_do_not_follow_the_split(parts):
  """Both models see texts of the reference split, and about half each."""
  for split in ('reference', 'scored'):
    everything = np.unique(hashes(parts, lambda part, s=split: part.rows_of(s)))
    first = hashes(parts, lambda part: folds.trained_rows(part, 0, 2))
    share = np.isin(everything, first).mean()
    assert 0.2 < share < 0.8, split


def test_words_are_counted_where_the_model_trains(store, parts):
  for fold, count in ((0, 1), (0, 2), (1, 2)):
    counts = np.zeros(store.vocab_size, int)
    for number, part in enumerate(parts):
      for row in folds.trained_rows(part, fold, count):
        np.add.at(counts, store.document(number, int(row)), 1)
    shares = [range(first, store.num_parts, 2) for first in range(2)]
    found = [folds.unigram_counts(store, fold, count, s) for s in shares]
    assert counts.any() and np.array_equal(sum(found), counts)
