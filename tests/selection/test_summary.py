"""The selection report of a keep set."""

import itertools
import json

import numpy as np
import pytest

from infoprune_jax.config.validation import UserError
from infoprune_jax.selection import summary


@pytest.fixture(scope='module')
def examples(make_examples):
  rng = np.random.default_rng(0)
  tokens = rng.lognormal(4, 1, 1000).astype(int)
  tokens[0] = 0
  return make_examples(
    (tokens * rng.gamma(4, 1, 1000)).tolist(),
    tokens=tokens.tolist(),
    sources=rng.choice(['web', 'books', 'code'], 1000).tolist(),
  )


@pytest.fixture(scope='module')
def kept() -> np.ndarray:
  return np.random.default_rng(1).random(1000) < 0.4


@pytest.fixture(scope='module')
def found(examples, kept):
  return summary.summarize(examples, kept)


def test_totals(examples, kept, found):
  tokens = examples.weight('tokens')
  assert found['total'] == {
    'examples': 1000,
    'tokens': int(tokens.sum()),
    'bytes': 3 * int(tokens.sum()),
  }
  assert found['kept'] == {
    'examples': int(kept.sum()),
    'tokens': int(tokens[kept].sum()),
    'bytes': 3 * int(tokens[kept].sum()),
  }


@pytest.mark.parametrize('unit', ['examples', 'tokens', 'bytes'])
def test_sources_sum_to_the_totals(found, unit):
  rows = found['sources']
  assert [row['source'] for row in rows] == ['books', 'code', 'web']
  assert sum(row[unit] for row in rows) == found['total'][unit]
  assert sum(row[f'kept_{unit}'] for row in rows) == found['kept'][unit]


def test_a_source_by_hand(examples, kept, found):
  web = np.array(examples.table['source'].to_pylist()) == 'web'
  tokens = examples.weight('tokens')
  [row] = [row for row in found['sources'] if row['source'] == 'web']
  assert row['examples'] == web.sum()
  assert row['kept_tokens'] == tokens[web & kept].sum()


def test_deciles(examples, kept, found):
  rows = found['deciles']
  assert [row['decile'] for row in rows] == list(range(10))
  tokens = examples.weight('tokens')
  assert sum(row['tokens'] for row in rows) == tokens.sum()
  assert sum(row['kept_tokens'] for row in rows) == tokens[kept].sum()
  for row, following in itertools.pairwise(rows):
    assert row['low'] <= row['high'] <= following['low']
  mean = examples.table['nll_sum'].to_numpy() / np.maximum(tokens, 1)
  assert (rows[0]['low'], rows[-1]['high']) == (mean.min(), mean.max())
  sizes = np.array([row['tokens'] for row in rows])
  assert np.abs(sizes - tokens.sum() / 10).max() <= tokens.max()


def test_it_is_json(found):
  assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_few_examples(make_examples):
  examples = make_examples([2.0, 1.0], tokens=[1, 1])
  found = summary.summarize(examples, np.array([True, False]))
  assert sum(row['kept_tokens'] for row in found['deciles']) == 1


def test_examples_without_a_token(make_examples):
  examples = make_examples([0.0, 0.0], tokens=[0, 0])
  found = summary.summarize(examples, np.ones(2, bool))
  assert found['kept']['tokens'] == 0


def test_lengths_by_hand(make_examples):
  """Twenty lengths, of which one is there twice: both are in one decile."""
  tokens = [5, 5, *range(6, 24)]
  examples = make_examples([1.0] * 20, tokens=tokens)
  kept = np.arange(20) % 2 == 0
  rows = summary.summarize(examples, kept)['lengths']
  assert [row['decile'] for row in rows] == list(range(10))
  assert rows[0] == {
    'decile': 0,
    'low': 5,
    'high': 5,
    'examples': 2,
    'tokens': 10,
    'bytes': 30,
    'kept_examples': 1,
    'kept_tokens': 5,
    'kept_bytes': 15,
  }
  assert (rows[9]['low'], rows[9]['high']) == (22, 23)
  one = make_examples([1.0] * 20, tokens=[7] * 20)
  [row] = summary.summarize(one, kept)['lengths']
  assert row['examples'] == 20


def test_deciles_of_sources_sum_to_both(found):
  """By rows to the source's tokens, by columns to the decile's."""
  for prefix in ('', 'kept_'):
    heat = [row[f'{prefix}tokens_by_decile'] for row in found['sources']]
    of_sources = [row[f'{prefix}tokens'] for row in found['sources']]
    of_deciles = [row[f'{prefix}tokens'] for row in found['deciles']]
    assert np.sum(heat, axis=1).tolist() == of_sources
    assert np.sum(heat, axis=0).tolist() == of_deciles


def test_copies_by_hand(make_examples):
  examples = make_examples([1.0] * 7, content=[5, -9, 5, 7, -9, 5, 8])
  assert summary.copied(examples).tolist() == [1, 1, 1, 0, 1, 1, 0]


def test_histogram_counts_every_token(examples):
  found = summary.nll_histogram(examples)
  assert len(found['edges']) == len(found['tokens']) + 1
  tokens = examples.weight('tokens')
  assert sum(found['tokens']) == tokens.sum()
  mean, edges = summary.mean_nll(examples), found['edges']
  # A thousandth of the tokens lies beyond each end, as nearly as documents do.
  for beyond in (mean < edges[0], mean > edges[-1]):
    assert tokens[beyond].sum() <= 0.001 * tokens.sum() + tokens.max()
  inside = (mean >= edges[20]) & (mean < edges[21])
  assert found['tokens'][20] == tokens[inside].sum() > 0


def test_histogram_of_one_value(make_examples):
  found = summary.nll_histogram(make_examples([6.0, 6.0], tokens=[2, 2]))
  assert sum(found['tokens']) == 4 and found['edges'][-1] > found['edges'][0]


def test_no_token_makes_no_histogram(make_examples):
  with pytest.raises(UserError, match='has no token'):
    summary.nll_histogram(make_examples([0.0], tokens=[0]))
