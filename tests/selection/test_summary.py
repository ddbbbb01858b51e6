"""The selection report of a keep set."""

import itertools
import json

import numpy as np
import pytest

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
  ranking = examples.table['nll_sum'].to_numpy()
  return summary.summarize(examples, kept, ranking, 3)


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


def test_ends_of_the_ranking(examples, found):
  ranking = examples.table['nll_sum'].to_numpy()
  order = np.argsort(ranking)
  assert [row['score'] for row in found['most']] == ranking[
    order[::-1][:3]
  ].tolist()
  assert [row['row'] for row in found['least']] == order[:3].tolist()
  first = int(order[-1])
  assert found['most'][0] == {
    'shard': 0,
    'row': first,
    'example_id': f'id-{first}',
    'source': examples.table['source'][first].as_py(),
    'num_tokens': int(examples.weight('tokens')[first]),
    'score': float(ranking[first]),
  }


def test_no_ranking_no_ends(examples, kept):
  found = summary.summarize(examples, kept, None, 3)
  assert found['most'] == found['least'] == []


def test_it_is_json(found):
  assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_few_examples(make_examples):
  examples = make_examples([2.0, 1.0], tokens=[1, 1])
  found = summary.summarize(
    examples, np.array([True, False]), np.array([2.0, 1.0]), 10
  )
  assert len(found['most']) == len(found['least']) == 2
  assert sum(row['kept_tokens'] for row in found['deciles']) == 1


def test_examples_without_a_token(make_examples):
  examples = make_examples([0.0, 0.0], tokens=[0, 0])
  found = summary.summarize(examples, np.ones(2, bool), None, 1)
  assert found['kept']['tokens'] == 0


def test_lengths_by_hand(make_examples):
  """Twenty lengths, of which one is there twice: both are in one decile."""
  tokens = [5, 5, *range(6, 24)]
  examples = make_examples([1.0] * 20, tokens=tokens)
  kept = np.arange(20) % 2 == 0
  rows = summary.summarize(examples, kept, None, 1)['lengths']
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
  [row] = summary.summarize(one, kept, None, 1)['lengths']
  assert row['examples'] == 20


def test_examples_of_deciles_by_hand(make_examples):
  """One token each: the mean NLL is the score, two examples a decile."""
  scores = [float(n) for n in range(20)]
  examples = make_examples(scores[::-1], tokens=[1] * 20)
  deciles = summary.examples_by_decile(examples, 5)
  assert [[row['score'] for row in rows] for rows in deciles] == [
    [2.0 * d, 2.0 * d + 1] for d in range(10)
  ]
  assert deciles[0][0]['example_id'] == 'id-19'
  few = summary.examples_by_decile(examples, 1)
  assert all(len(rows) == 1 for rows in few)
  assert few == summary.examples_by_decile(examples, 1)
  # By chance: neither always the lower nor always the higher.
  assert {row['score'] % 2 for [row] in few} == {0.0, 1.0}
