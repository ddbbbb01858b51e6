"""Who trains on what, and who scores it."""

import dataclasses

import numpy as np
import pytest
from made_vocabularies import sentence_model

from infoprune_jax.config.corpus import SPLITS
from infoprune_jax.tokens import folds, tokenize
from infoprune_jax.tokens.token_store import TokenStore


@pytest.fixture(scope='module')
def shards(store):
  return [store.shard(number) for number in range(store.num_shards)]


def hashes(shards, documents_of) -> np.ndarray:
  return np.concatenate(
    [shard.column('content_hash')[documents_of(shard)] for shard in shards]
  )


def test_one_fold_is_the_splits(shards):
  for shard in shards:
    trained, scored = (
      documents_of(shard, 0, 1)
      for documents_of in (folds.trained_documents, folds.scored_documents)
    )
    assert np.array_equal(trained, shard.documents_of('reference'))
    assert np.array_equal(scored, shard.documents_of('scored'))


def test_two_folds_score_each_other_and_nothing_held_out(shards):
  for shard in shards:
    halves = [folds.trained_documents(shard, fold, 2) for fold in range(2)]
    assert np.array_equal(folds.scored_documents(shard, 0, 2), halves[1])
    assert np.array_equal(folds.scored_documents(shard, 1, 2), halves[0])
    both = np.concatenate(halves)
    heldout = shard.column('split') == SPLITS.index('heldout')
    assert np.array_equal(np.sort(both), np.flatnonzero(~heldout))


def test_copies_fall_on_one_side(shards):
  first, second = (
    hashes(shards, lambda shard, f=fold: folds.trained_documents(shard, f, 2))
    for fold in range(2)
  )
  assert len(np.unique(first)) < len(first)  # There are copies.
  assert not np.intersect1d(first, second).size


def test_halves_do_not_follow_the_split(shards):
  """Both models see texts of the reference split, and about half each."""
  for split in ('reference', 'scored'):
    everything = np.unique(
      hashes(shards, lambda shard, s=split: shard.documents_of(s))
    )
    first = hashes(shards, lambda shard: folds.trained_documents(shard, 0, 2))
    share = np.isin(everything, first).mean()
    assert 0.2 < share < 0.8, split


def test_words_are_counted_where_the_model_trains(store, shards):
  for fold, count in ((0, 1), (0, 2), (1, 2)):
    counts = np.zeros(store.vocab_size, int)
    for number, shard in enumerate(shards):
      for doc_index in folds.trained_documents(shard, fold, count):
        np.add.at(counts, store.document(number, int(doc_index)), 1)
    shares = [range(first, store.num_shards, 2) for first in range(2)]
    found = [folds.unigram_counts(store, fold, count, s) for s in shares]
    assert counts.any() and np.array_equal(sum(found), counts)


def test_without_a_reference_split_scored_words_are_counted(small, tmp_path):
  corpus = dataclasses.replace(
    small.corpus, reference_fraction=0.0, heldout_fraction=0.4
  )
  words = dataclasses.replace(
    small.vocabulary, path=f'{tmp_path}/spm.model', size=320
  )
  (tmp_path / 'spm.model').write_bytes(sentence_model())
  config = dataclasses.replace(small, corpus=corpus, vocabulary=words)
  tokenize.run(config, str(tmp_path / 'w'))
  store = TokenStore.open(str(tmp_path / 'w'))
  counts = np.zeros(store.vocab_size, int)
  for number in range(store.num_shards):
    for doc_index in store.shard(number).documents_of('scored'):
      np.add.at(counts, store.document(number, int(doc_index)), 1)
  found = folds.unigram_counts(store, 0, 1, range(store.num_shards))
  assert counts.any() and np.array_equal(found, counts)
