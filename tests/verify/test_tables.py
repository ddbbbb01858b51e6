"""Tables of a workdir, made wrong once: seen, and named."""

import os
import re

import pyarrow as pa
import pytest
from changed_artifacts import (
  PART as SCORES,
  remake_manifest,
  rewrite,
  with_value,
  wrong,
)

from infoprune_jax import stages
from infoprune_jax.runtime import files, manifests


@pytest.mark.parametrize(
  ('change', 'expected'),
  [
    (lambda t: t.slice(1), '1 missing (the first is doc_index'),
    (lambda t: pa.concat_tables([t, t.slice(0, 1)]), '1 twice'),
    (lambda t: t.take([*range(1, t.num_rows), 0]), 'out of order'),
    (with_value('doc_index', -1, 10**6), '1 that should not be there'),
    (with_value('shard', 0, 2), 'column shard is not 1'),
    (with_value('num_tokens', 2, 999_999), 'is 999999, expected'),
    (with_value('num_bytes', 2, 999_999), 'num_bytes of doc_index'),
    (with_value('example_id', 2, 'another'), "is 'another', expected 'doc-"),
    (with_value('source', 2, 'another'), 'source of doc_index'),
    (with_value('content_hash', 2, 5), 'content_hash of doc_index'),
    (with_value('fold', 2, 1), 'is 1, expected 0'),
    (with_value('nll_sum', 2, float('nan')), 'is nan, and 1 in all'),
    (with_value('nll_sum', 2, -1.0), 'is -1.0, and 1 in all'),
    (lambda t: t.drop(['fold']), 'has the columns'),
  ],
)
def test_a_wrong_score_is_named(copied, change, expected):
  rewrite(copied / 'scores', change)
  found = wrong(copied)
  assert expected in found['scores']
  assert SCORES in found['scores']
  assert 'run --job=score again: only that shard is made' in found['scores']
  # What was made from another table says so.
  assert 'was made from scores' in found['keep_sets/top_nll']


@pytest.mark.parametrize(
  'change, expected',
  [
    (with_value('compressed_bytes', 2, 0), 'compressed_bytes of doc_index'),
    (with_value('unigram_nll_sum', 2, float('inf')), 'is inf, and 1'),
    (with_value('unigram_frequency_square_sum', 2, -1.0), 'is -1.0, and 1'),
    (lambda t: t.slice(1), '1 missing (the first is doc_index'),
  ],
)
def test_a_wrong_statistic_is_named(copied, change, expected):
  rewrite(copied / 'statistics', change)
  found = wrong(copied)
  assert expected in found['statistics']
  assert 'run --job=statistics again: only that' in found['statistics']
  assert 'was made from statistics' in found['keep_sets/top_nll']


GROUPS, COPIES = 'near_duplicates', 'heldout_copies'


@pytest.mark.parametrize(
  'table, change, expected',
  [
    (GROUPS, with_value('near_duplicate_group', 2, -1), 'is -1, and 1 in all'),
    (GROUPS, with_value('shard', 0, 2), 'column shard is not 1'),
    (GROUPS, lambda t: t.slice(1), '1 missing (the first is doc_index'),
    (GROUPS, lambda t: t.drop(['near_duplicates']), 'has the columns'),
    (COPIES, with_value('near_copy', 0, 10**6), 'names 1000000'),
    (COPIES, with_value('near_copy', 0, -1), 'but its manifest says 13'),
  ],
)
def test_a_wrong_group_is_named(copied, config, table, change, expected):
  stages.run(config, str(copied), 'near_duplicates')
  assert not wrong(copied)
  rewrite(copied / table, change)
  found = wrong(copied)[table]
  assert expected in found
  assert 'run --job=near_duplicates again' in found


@pytest.mark.parametrize(
  'change, expected',
  [
    (with_value('repeated_tokens', 2, -1), 'repeated_tokens'),
    (with_value('duplicated_tokens', 0, 10**6), 'duplicated_tokens'),
    (lambda t: t.slice(1), '1 missing (the first is doc_index'),
  ],
)
def test_wrong_duplicated_text_is_named(copied, config, change, expected):
  stages.run(config, str(copied), 'duplicated_text')
  assert not wrong(copied)
  rewrite(copied / 'duplicated_text', change)
  found = wrong(copied)['duplicated_text']
  assert expected in found and 'run --job=duplicated_text again' in found


def test_what_it_says_mends(copied, finished, config):
  """Delete what is named, run what is named: only that shard is made."""
  rewrite(copied / 'scores', with_value('nll_sum', 2, -1.0))
  other = copied / 'scores' / SCORES.replace('00001', '00000', 1)
  before = other.stat().st_mtime_ns
  said = wrong(copied)['scores']
  found = re.search(r'Delete (\S+) and (\S+) and run --job=(\w+) again', said)
  for path in found.groups()[:2]:
    os.remove(path)
  stages.run(config, str(copied), found[3])
  assert not wrong(copied)
  assert other.stat().st_mtime_ns == before
  # A manifest alone is written again from what the shards say of themselves.
  os.remove(copied / 'scores/manifest.json')
  stages.run(config, str(copied), 'score')
  for name in ('manifest.json', SCORES):
    path = f'scores/{name}'
    assert (copied / path).read_bytes() == (finished / path).read_bytes()


def test_wrong_totals_are_named(copied):
  remake_manifest(copied / 'scores', {}, num_tokens=7)
  assert 'its manifest says 7' in wrong(copied)['scores']


def test_wrong_losses_of_the_scored_corpus_are_named(copied):
  folder = copied / 'scores'
  losses = files.read_json(str(folder / manifests.MANIFEST))['losses']
  losses['sources']['prose']['documents'] += 1
  remake_manifest(folder, {}, losses=losses)
  told = wrong(copied)['scores'].splitlines()
  assert 'losses is not what the markers of its shards add up to' in told[0]
  assert "losses of 'prose' is {'documents': " in told[1] and len(told) == 2


def test_losses_of_other_scores_are_named(copied):
  rewrite(copied / 'scores', with_value('nll_sum', 2, 10_000.0))
  [told] = wrong(copied)['scores'].splitlines()
  assert 'but the documents of the table have' in told


def test_a_wrong_loss_is_named(copied):
  folder = copied / 'evaluate/top_nll/seed-0'
  rewrite(folder, with_value('nll_sum', 0, -3.0))
  found = wrong(copied)
  assert 'is -3.0' in found.pop('evaluate/top_nll/seed-0')
  assert not found
