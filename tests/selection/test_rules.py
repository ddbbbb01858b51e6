"""Rules: against a plain sort, and to the budget."""

import itertools
import math
from unittest import mock

import numpy as np
import pyarrow as pa
import pytest
from example_groups import members
from hypothesis import given, settings, strategies as st

from configs import base
from infoprune_jax.config.selection import (
  BUDGET_KINDS,
  RANKED_KINDS,
  UNITS,
  RuleConfig,
)
from infoprune_jax.config.validation import UserError
from infoprune_jax.runtime.hashing import mix, uniform
from infoprune_jax.selection import budget as lib, rule_inputs, rules
from infoprune_jax.selection.examples import Examples, ExampleTable

SCORE = 'nll_sum'
KINDS = ('top', 'bottom', 'middle', 'random', 'band', 'sample')


def rule(keep: str, fraction: float = 0.5, **fields) -> RuleConfig:
  score = SCORE if keep in RANKED_KINDS else ''
  fields = {'fraction': fraction if keep in BUDGET_KINDS else 1.0, **fields}
  if keep == 'band':  # As much, from lower down than the middle.
    fields = {'low': (1 - fraction) / 4, **fields}
    fields['high'] = fields['low'] + fraction
  return RuleConfig(**base.arm(keep, score, **fields))


@st.composite
def problems(draw, make) -> ExampleTable:
  """Few values, so that scores tie, and extreme ones."""
  count = draw(st.integers(1, 25))

  def some(values) -> list:
    return draw(st.lists(values, min_size=count, max_size=count))

  numbers = st.sampled_from([-1.5, 0.0, -0.0, 1.0, 2.0]) | st.floats(
    allow_nan=False, allow_infinity=False
  )
  return make(
    some(numbers),
    tokens=some(st.integers(0, 40)),
    sources=some(st.sampled_from(['web', 'books', 'code'])),
    index=draw(st.permutations(range(0, 3 * count, 3))),
  )


rule_configs = st.builds(
  rule,
  st.sampled_from(KINDS),
  fraction=st.sampled_from([0.01, 0.1, 0.3, 0.5, 2 / 3, 0.99, 1.0]),
  unit=st.sampled_from(UNITS),
  per=st.sampled_from(['', 'source']),
  seed=st.integers(0, 2),
)


def prefix(order: list[int], weight: list[int], budget: int) -> list[int]:
  """The longest prefix that a budget pays for."""
  taken = []
  for example in order:
    if weight[example] > budget:
      break
    budget -= weight[example]
    taken.append(example)
  return taken


def by_sorting(
  chosen: RuleConfig, examples: ExampleTable, candidates: set[int], draw: int
) -> set[int]:
  """What a rule keeps, slow and plain."""
  columns = examples.table.to_pydict()
  weight = {
    'tokens': columns['num_tokens'],
    'bytes': columns['num_bytes'],
    'examples': [1] * len(examples),
  }[chosen.unit]
  score = columns['nll_sum']
  tie = mix(examples.index, chosen.seed).tolist()
  chance = mix(examples.index, chosen.seed + draw + 1).tolist()
  drawn = uniform(examples.index, chosen.seed + draw + 1).tolist()
  key = {
    'top': lambda i: (-score[i], tie[i]),
    'bottom': lambda i: (score[i], tie[i]),
    'middle': lambda i: (score[i], tie[i]),
    'band': lambda i: (score[i], tie[i]),
    'sample': lambda i: (-score[i] + math.log(-math.log(drawn[i])), tie[i]),
    'random': lambda i: chance[i],
  }[chosen.keep]
  kept: set[int] = set()
  for source in set(columns['source']) if chosen.per else [None]:
    group = [
      i
      for i in range(len(examples))
      if source is None or columns['source'][i] == source
    ]
    total = sum(weight[i] for i in group)
    budget, skipped = int(chosen.fraction * total), 0
    order = sorted((i for i in group if i in candidates), key=key)
    if chosen.keep == 'middle':
      skipped = max((sum(weight[i] for i in order) - budget) // 2, 0)
    if chosen.keep == 'band':
      budget = int((chosen.high - chosen.low) * total)
      skipped = int(chosen.low * total)
    if skipped:
      order = order[len(prefix(order, weight, skipped)) :]
    kept.update(prefix(order, weight, budget))
  return kept


def kept_by(chosen, examples: ExampleTable, draw: int = 0) -> set[int]:
  chosen = (chosen,) if isinstance(chosen, RuleConfig) else chosen
  return set(np.flatnonzero(rules.apply(chosen, examples, draw)).tolist())


@settings(max_examples=30, deadline=None)
@given(data=st.data(), chosen=rule_configs, draw=st.integers(0, 2))
def test_a_rule_keeps_what_sorting_would(make_examples, data, chosen, draw):
  examples = data.draw(problems(make_examples))
  everything = set(range(len(examples)))
  expected = by_sorting(chosen, examples, everything, draw)
  assert kept_by(chosen, examples, draw) == expected


@settings(max_examples=15, deadline=None)
@given(data=st.data(), first=rule_configs, second=rule_configs)
def test_rules_compose(make_examples, data, first, second):
  examples = data.draw(problems(make_examples))
  expected = set(range(len(examples)))
  for chosen in (first, second):
    expected = by_sorting(chosen, examples, expected, 0)
  assert kept_by((first, second), examples) == expected


@pytest.mark.parametrize('many', [256, 2])
@given(
  data=st.data(),
  budget=st.integers(0, 100),
  keys=st.lists(st.integers(0, 2**64 - 1) | st.integers(0, 3), max_size=30),
)
def test_lowest_is_a_prefix(many, data, budget, keys):
  """Of each group, with a table of digits and without."""
  size = len(keys)
  weight = data.draw(st.lists(st.integers(0, 20), min_size=size, max_size=size))
  group = data.draw(st.lists(st.integers(0, 2), min_size=size, max_size=size))
  candidate = data.draw(st.lists(st.booleans(), min_size=size, max_size=size))
  index = np.array(data.draw(st.permutations(range(size))), np.int64)
  budgets = np.array([budget, 0, -1])
  ranking = lib.Ranking(
    np.array(keys, np.uint64),
    index,
    np.array(weight, np.int32),
    np.array(group, np.int32),
    seed=3,
  )
  with mock.patch.object(lib, 'MAX_TABLES', many):
    here = Examples()
    last = lib.lowest(here, ranking, np.array(candidate, bool), budgets)
    found = last.of(here)
  tie = mix(index, 3)
  order = sorted(range(size), key=lambda i: (keys[i], int(tie[i])))
  expected = [
    set(
      prefix([i for i in order if candidate[i] and group[i] == g], weight, most)
    )
    for g, most in enumerate(budgets)
  ]
  assert set(np.flatnonzero(found).tolist()) == set.union(*expected)


@given(st.lists(st.floats(allow_nan=False), max_size=20))
def test_bits_are_in_the_order_of_values(values):
  bits = lib.ordered_bits(np.array(values, float)).tolist()
  for a, x in zip(values, bits, strict=True):
    for b, y in zip(values, bits, strict=True):
      assert (a < b) == (x < y) and (a == b) == (x == y)


@pytest.fixture(scope='module')
def many(make_examples) -> ExampleTable:
  """2,000 examples of lognormal length, of three unequal sources."""
  rng = np.random.default_rng(0)
  return make_examples(
    rng.normal(size=2000).tolist(),
    tokens=rng.lognormal(5, 1, 2000).astype(int).tolist(),
    sources=rng.choice(
      ['web', 'books', 'code'], 2000, p=[0.6, 0.3, 0.1]
    ).tolist(),
  )


@pytest.mark.parametrize('keep', KINDS)
@pytest.mark.parametrize('fraction', [0.1, 0.5, 0.9])
def test_budgets_are_met_to_within_one_document(many, keep, fraction):
  for unit, per in itertools.product(UNITS, ('', 'source')):
    kept = rules.apply((rule(keep, fraction, unit=unit, per=per),), many, 0)
    weight = many.weight(unit)
    for group in members(many, per):
      budget = fraction * weight[group].sum()
      left = budget - weight[group][kept[group]].sum()
      assert 0 <= left <= weight[group].max() + 1, (unit, per)


def test_groups_are_the_sources(many):
  names = np.array(many.table['source'].to_pylist())
  groups = members(many, 'source')
  assert sorted(np.concatenate(groups).tolist()) == list(range(2000))
  assert sorted(names[group[0]] for group in groups) == ['books', 'code', 'web']
  assert all(len(set(names[group])) == 1 for group in groups)


def test_a_source_spread_over_chunks_is_one_group(make_examples):
  both = [
    make_examples([0.0] * 2, sources=names).table
    for names in (['web', 'books'], ['books', 'code'])
  ]
  together = pa.concat_tables(both).unify_dictionaries()
  groups = members(ExampleTable(together, np.arange(4)), 'source')
  assert sorted(group.tolist() for group in groups) == [[0], [1, 2], [3]]


@pytest.mark.parametrize('keep', KINDS)
def test_the_same_rule_keeps_the_same(many, keep):
  assert kept_by(rule(keep), many, 3) == kept_by(rule(keep), many, 3)


def test_random_arms_differ_by_draw_and_by_seed(many):
  arms = [
    kept_by(rule('random'), many, 0),
    kept_by(rule('random'), many, 1),
    kept_by(rule('random', seed=5), many, 0),
  ]
  for i, first in enumerate(arms):
    for second in arms[i + 1 :]:
      # Half of a half in common, as of independent draws.
      assert len(first & second) / len(first) == pytest.approx(0.5, abs=0.08)


def test_other_arms_do_not_differ_by_draw(many):
  for keep in ('top', 'bottom', 'middle'):
    assert kept_by(rule(keep), many, 0) == kept_by(rule(keep), many, 1)


def test_a_random_arm_does_not_follow_the_score(many):
  kept = rules.apply((rule('random'),), many, 0)
  score = many.table['nll_sum'].to_numpy()
  assert abs(score[kept].mean() - score.mean()) < 0.1


def test_ends_of_the_ranking(many):
  score = many.table['nll_sum'].to_numpy()
  top, bottom, middle = (
    rules.apply((rule(keep),), many, 0) for keep in ('top', 'bottom', 'middle')
  )
  assert score[top].min() >= score[~top].max()
  assert score[bottom].max() <= score[~bottom].min()
  low, high = score[middle].min(), score[middle].max()
  outside = score[~middle]
  assert ((outside <= low) | (outside >= high)).all()
  tokens = many.weight('tokens')
  below = tokens[~middle][outside <= low].sum()
  above = tokens[~middle][outside >= high].sum()
  assert below == pytest.approx(above, rel=0.05)


def test_ties_go_by_chance_and_by_seed(make_examples):
  examples = make_examples([1.0] * 400)
  first, second = (kept_by(rule('top', seed=seed), examples) for seed in (0, 1))
  assert len(first) == len(second) == 200
  assert first != second
  # Not the first of the corpus.
  assert len(first & set(range(200))) == pytest.approx(100, abs=30)


def test_all_keeps_what_is_left(many):
  everything = kept_by(rule('all', 1.0), many)
  assert everything == set(range(2000))
  both = (rule('top', 0.3), rule('all', 1.0))
  assert kept_by(both, many) == kept_by(both[0], many)


def test_fractions_are_of_the_whole(many):
  both = (rule('top', 0.5), rule('random', 0.25))
  kept = rules.apply(both, many, 0)
  tokens = many.weight('tokens')
  share = tokens[kept].sum() / tokens.sum()
  assert share == pytest.approx(0.25, abs=0.01)
  assert kept_by(both, many) < kept_by(both[0], many)


def test_a_budget_above_what_is_left_is_told(many, monkeypatch):
  told = []
  monkeypatch.setattr(
    rules.logger, 'warning', lambda text, *args: told.append(text % args)
  )
  both = (rule('top', 0.25), rule('random', 0.5))
  assert kept_by(both, many) == kept_by(both[0], many)
  [line] = told
  assert 'all of them are kept' in line and "budget of 'random'" in line


def test_documents_without_tokens_cost_nothing(make_examples):
  examples = make_examples([3.0, 2.0, 1.0], tokens=[0, 10, 10])
  assert kept_by(rule('top', 0.5), examples) == {0, 1}


@pytest.mark.parametrize(
  'rules_, needs',
  [
    ((rule('all', 1.0),), False),
    ((rule('random'),), False),
    ((rule('random'), rule('middle')), True),
  ],
)
def test_who_reads_scores(rules_, needs):
  assert rule_inputs.reads_tables(rules_) is needs


@pytest.mark.parametrize('value', [math.inf, -math.inf, math.nan])
def test_a_score_that_is_not_finite_is_refused(make_examples, value):
  with pytest.raises(UserError, match='no finite number for 1 of 3'):
    kept_by(rule('top'), make_examples([0.0, value, 1.0]))
