"""The floor: a little of what a ranking cuts, at random."""

import dataclasses

import numpy as np
import pytest
from applied_rules import kept_by, rule
from example_groups import members

from infoprune_jax.config.validation import UserError
from infoprune_jax.selection import rules
from infoprune_jax.selection.examples import ExampleTable


@pytest.fixture(scope='module')
def many(make_examples) -> ExampleTable:
  """2,000 examples of lognormal length."""
  rng = np.random.default_rng(0)
  return make_examples(
    rng.normal(size=2000).tolist(),
    tokens=rng.lognormal(5, 1, 2000).astype(int).tolist(),
    sources=rng.choice(['web', 'books', 'code'], 2000).tolist(),
    index=rng.permutation(5000)[:2000].tolist(),
  )


@pytest.mark.parametrize('per', ['', 'source'])
@pytest.mark.parametrize('keep', ['top', 'bottom', 'middle'])
def test_a_budget_includes_the_floor(many, keep, per):
  chosen = rule(keep, 'nll_sum', fraction=0.4, floor=0.1, per=per)
  kept = rules.apply((chosen,), many, 0)
  # A third by rank, and a tenth of the other two.
  ranked = dataclasses.replace(chosen, fraction=1 / 3, floor=0.0)
  by_rank = rules.apply((ranked,), many, 0)
  assert kept[by_rank].all()
  weight = many.weight('tokens')
  for group in members(many, per):
    total, most = weight[group].sum(), 2 * weight[group].max()
    assert abs(weight[group][kept[group]].sum() - 0.4 * total) <= most
    rest = (kept & ~by_rank)[group]
    assert abs(weight[group][rest].sum() - 0.1 * 2 / 3 * total) <= most


def test_a_floor_is_added_to_a_band(many):
  plain = rule('band', 'nll_sum', low=0.2, high=0.5)
  kept = rules.apply((dataclasses.replace(plain, floor=0.2),), many, 0)
  by_rank = rules.apply((plain,), many, 0)
  weight = many.weight('tokens')
  assert kept[by_rank].all()
  rest = weight[kept & ~by_rank].sum() / weight[~by_rank].sum()
  assert rest == pytest.approx(0.2, abs=weight.max() / weight.sum())


def test_a_floor_does_not_follow_the_score(many):
  chosen = rule('top', 'nll_sum', fraction=0.5, floor=0.3)
  kept = rules.apply((chosen,), many, 0)
  ranked = dataclasses.replace(chosen, fraction=0.2 / 0.7, floor=0.0)
  cut = ~rules.apply((ranked,), many, 0)
  score = many.table['nll_sum'].to_numpy()
  drawn, left = score[cut & kept], score[cut & ~kept]
  assert abs(drawn.mean() - left.mean()) < 4 * score[cut].std() / 12


def test_a_floor_draws_for_each_seed(many):
  chosen = rule('top', 'nll_sum', fraction=0.5, floor=0.1)
  first, second = (kept_by(chosen, many, draw) for draw in (0, 1))
  assert first != second and first == kept_by(chosen, many, 0)
  assert chosen.draws and not dataclasses.replace(chosen, floor=0.0).draws
  # What both keep by rank is the same.
  ranked = dataclasses.replace(chosen, fraction=0.4 / 0.9, floor=0.0)
  assert kept_by(ranked, many) <= first & second


def test_a_floor_is_of_what_earlier_rules_left(many):
  both = (
    rule('bottom', 'num_tokens', fraction=0.6),
    rule('top', 'nll_sum', fraction=0.3, floor=0.2),
  )
  before = rules.apply(both[:1], many, 0)
  kept = rules.apply(both, many, 0)
  weight = many.weight('tokens')
  assert before[kept].all()
  tokens = weight[kept].sum() / weight.sum()
  assert tokens == pytest.approx(0.3, abs=2 * weight.max() / weight.sum())


@pytest.mark.parametrize(
  'keep, score, fields, message',
  [
    ('top', 'nll_sum', {'floor': 1.0}, r'select.floor must be in \[0, 1\)'),
    ('top', 'nll_sum', {'floor': -0.1}, r'select.floor must be in \[0, 1\)'),
    ('top', 'nll_sum', {'fraction': 0.2, 'floor': 0.2}, 'lower the floor'),
    ('random', '', {'floor': 0.1}, "keep='random' cuts by no ranking"),
    ('threshold', 'nll_sum', {'floor': 0.1}, 'cuts by no ranking'),
  ],
)
def test_a_floor_that_means_nothing_is_refused(keep, score, fields, message):
  with pytest.raises(UserError, match=message):
    rule(keep, score, **fields)
