"""Scores that some examples have no number for."""

import math

import numpy as np
import pytest
from applied_rules import kept_by, rule

from infoprune_jax.selection import expressions, rules
from infoprune_jax.selection.examples import ExampleTable

# Of ten tokens each: b has no number.
HALF = "CASE WHEN source = 'a' THEN nll_sum END"
OF_A, OF_B = {0, 2, 4, 6}, {1, 3, 5, 7}


@pytest.fixture(scope='module')
def half(make_examples) -> ExampleTable:
  """Of a the scores 0.0, 2.0, 4.0 and 6.0; of b none."""
  return make_examples([float(n) for n in range(8)], sources=['a', 'b'] * 4)


@pytest.mark.parametrize(
  'chosen, expected',
  [
    (dict(keep='top', fraction=0.25), {4, 6}),
    (dict(keep='top', fraction=0.5), OF_A),
    (dict(keep='bottom', fraction=0.5), OF_B),
    (dict(keep='band', low=0.5, high=0.75), {0, 2}),
    (dict(keep='band', low=0.0, high=0.5), OF_B),
    (dict(keep='threshold', low=2.0), {2, 4, 6}),
    (dict(keep='threshold', low=-1e300), OF_A),
    (dict(keep='threshold', high=2.0), {0, 2} | OF_B),
    (dict(keep='sample', fraction=0.5, temperature=0.5), OF_A),
    (dict(keep='distinct'), OF_A | {1}),
  ],
)
def test_examples_without_a_number_rank_lowest(half, chosen, expected):
  assert kept_by(rule(score=HALF, missing='lowest', **chosen), half) == expected


def test_the_middle_of_some_without_a_number(half):
  """Two go at each end: two of those without, and 4.0 and 6.0."""
  kept = kept_by(rule('middle', HALF, fraction=0.5, missing='lowest'), half)
  assert {0, 2} < kept and len(kept) == 4


def test_a_budget_beyond_those_with_a_number_takes_others(half):
  kept = kept_by(rule('top', HALF, fraction=0.75, missing='lowest'), half)
  assert kept > OF_A and len(kept) == 6


def test_of_a_source_without_a_number_any_are_taken(half):
  found = kept_by(
    rule('top', HALF, fraction=0.5, per='source', missing='lowest'), half
  )
  assert found & OF_A == {4, 6} and len(found & OF_B) == 2


@pytest.mark.parametrize(
  'score',
  [
    *(f'rank({HALF})', f'zscore({HALF})', f'-rank({HALF})', f'-zscore({HALF})'),
    *(f'1 - rank({HALF}) + rank(doc_index)', f'1 / zscore({HALF})'),
    *(f'exp(zscore({HALF}))', f'rank(rank({HALF}))', f'rank(-zscore({HALF}))'),
  ],
)
def test_what_is_made_of_no_number_ranks_lowest_too(half, score):
  values = expressions.score(half, score, 'lowest')
  assert np.isneginf(values[sorted(OF_B)]).all()
  assert np.isfinite(values[sorted(OF_A)]).all()
  assert kept_by(rule('top', score, fraction=0.5, missing='lowest'), half) == (
    OF_A
  )


def test_ranks_and_standard_scores_of_some(half):
  """What has no number is below in ranks, and left out of the mean."""
  ranks = expressions.score(half, f'rank({HALF})', 'lowest')
  assert ranks[sorted(OF_A)].tolist() == [4.5 / 8, 5.5 / 8, 6.5 / 8, 7.5 / 8]
  scores = expressions.score(half, f'zscore({HALF})', 'lowest')
  expected = (np.array([0, 2, 4, 6]) - 3) / math.sqrt(5)
  np.testing.assert_allclose(scores[sorted(OF_A)], expected)
  filled = expressions.score(half, f'coalesce(rank({HALF}), 2)', 'lowest')
  assert (filled[sorted(OF_B)] == 2).all()


def test_in_either_fold_what_has_no_number_ranks_lowest(make_examples):
  """All but one of the first fold have none; in the other all have one."""
  examples = make_examples(
    [float(n) for n in range(8)],
    sources=[*'baba', *'aaaa'],
    tokens=[10, 10, 10, 0, 10, 10, 10, 10],
    folds=[0, 0, 0, 0, 1, 1, 1, 1],
  )
  for score in (HALF, f'rank({HALF})'):
    values = rules.ranking(examples, score, 'lowest')
    assert np.isneginf(values[[0, 2]]).all()
    assert np.isfinite(values[[1, 3, 4, 5, 6, 7]]).all()
    assert kept_by(
      rule('bottom', score, fraction=0.3, missing='lowest'), (examples)
    ) >= {0, 2}


def test_where_nothing_has_a_number_all_tie(half):
  for score in ('NULL', 'rank(NULL)', 'zscore(0 / 0)'):
    values = expressions.score(half, score, 'lowest')
    assert np.isneginf(values).all()
    kept = kept_by(rule('top', score, fraction=0.5, missing='lowest'), half)
    assert len(kept) == 4
