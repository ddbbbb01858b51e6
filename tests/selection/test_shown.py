"""Examples of what an arm decides."""

import dataclasses
import json

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from configs import base
from infoprune_jax.config.selection import RuleConfig
from infoprune_jax.selection import arrays, select, shown

RULES = {
  'top': base.arm('top', 'nll_sum', fraction=0.4),
  'bottom': base.arm('bottom', 'nll_sum', fraction=0.4),
  'middle': base.arm('middle', 'nll_sum', fraction=0.5),
  'band': base.arm('band', 'nll_sum', low=0.3, high=0.8),
  'threshold': base.arm('threshold', 'nll_sum', low=3.0, high=7.0),
  'per source': base.arm('middle', 'nll_sum', fraction=0.5, per='source'),
}
SIDES = {'top': ['low'], 'bottom': ['high']}


def rule(name: str) -> RuleConfig:
  return RuleConfig(**RULES[name])


@pytest.mark.parametrize('name', RULES)
@given(data=st.data())
@settings(max_examples=15, deadline=None)
def test_near_a_threshold_is_nearest_to_it(make_examples, name, data):
  """Both sides of each threshold, by brute force, of unlike scores and texts."""
  count = data.draw(st.integers(2, 40))
  number = st.integers(0, 100)
  scores = data.draw(
    st.lists(number, min_size=count, max_size=count, unique=True)
  )
  sources = data.draw(
    st.lists(st.sampled_from('ab'), min_size=count, max_size=count)
  )
  examples = make_examples([n / 10 for n in scores], sources=sources)
  values = examples.table['nll_sum'].to_numpy()
  kept, decision = select.decide([rule(name)], examples, 0)
  found = shown.near_thresholds(examples, kept, decision, 3)
  group = np.array(sources if rule(name).per else ['a'] * count)
  distance = {'low': np.full(count, np.inf), 'high': np.full(count, np.inf)}
  for here in np.unique(group):
    inside = values[(group == here) & kept]
    out = values[(group == here) & ~kept]
    if len(inside) and (out < inside.min()).any():
      low = group == here
      distance['low'][low] = np.abs(values[low] - inside.min())
      distance['low'][low & ~kept & (values > inside.min())] = np.inf
    if len(inside) and (out > inside.max()).any():
      high = group == here
      distance['high'][high] = np.abs(values[high] - inside.max())
      distance['high'][high & ~kept & (values < inside.max())] = np.inf
  real = [side for side in distance if np.isfinite(distance[side]).any()]
  assert [edge['side'] for edge in found] == real
  assert set(real) <= set(SIDES.get(name, ['low', 'high']))
  for edge in found:
    for side, mask in (('kept', kept), ('thrown', ~kept)):
      rows = [row['doc_index'] for row in edge[side]]
      assert mask[rows].all()
      from_edge = distance[edge['side']]
      nearest = np.sort(from_edge[mask & np.isfinite(from_edge)])[:3]
      assert from_edge[rows].tolist() == nearest.tolist()
    bound = values[kept].min() if edge['side'] == 'low' else values[kept].max()
    of_each = rule(name).per and len(set(sources)) > 1
    assert edge['score'] == (None if of_each else bound)


def test_a_threshold_by_hand(make_examples):
  """Six of one token, half of them kept; 3.1 and 2.8 are copies of each other."""
  examples = make_examples(
    [1.0, 3.0, 2.0, 4.0, 3.1, 2.8],
    tokens=[1] * 6,
    content=[0, 1, 2, 3, 4, 4],
  )
  kept, decision = select.decide(
    [RuleConfig(**base.arm('top', 'nll_sum', fraction=0.5))], examples, 0
  )
  [edge] = shown.near_thresholds(examples, kept, decision, 2)
  assert (edge['side'], edge['score']) == ('low', 3.0)
  assert [row['score'] for row in edge['kept']] == [3.0, 3.1]
  assert [row['score'] for row in edge['thrown']] == [2.8, 2.0]


def test_copies_at_a_threshold_count_once(make_examples):
  examples = make_examples(
    [5.0, 4.0, 2.0, 2.0, 2.0, 1.0],
    tokens=[1] * 6,
    content=[0, 1, 2, 2, 2, 3],
  )
  top = RuleConfig(**base.arm('top', 'nll_sum', fraction=0.4))
  kept, decision = select.decide([top], examples, 0)
  [edge] = shown.near_thresholds(examples, kept, decision, 2)
  assert [row['score'] for row in edge['thrown']] == [2.0, 1.0]


def decided(examples, *rules: dict) -> tuple:
  made = [RuleConfig(**rule_) for rule_ in rules]
  return select.decide(made, examples, 0)


def test_what_an_earlier_rule_threw_away_is_not_near(make_examples):
  """The copy of 2.0 went before anything was ranked, though it is nearer."""
  examples = make_examples(
    [4.0, 3.0, 2.0, 2.5], tokens=[1] * 4, content=[7, 8, 9, 9]
  )
  top = base.arm('top', 'nll_sum', fraction=0.5)
  kept, decision = decided(examples, base.arm('distinct'), top)
  assert kept.tolist() == [True, True, False, False]
  [edge] = shown.near_thresholds(examples, kept, decision, 5)
  assert [row['doc_index'] for row in edge['kept']] == [1, 0]
  assert [row['doc_index'] for row in edge['thrown']] == [2]


def test_what_a_later_rule_threw_away_is_not_kept(make_examples):
  """The copy of 4.0 was ranked, and went after."""
  examples = make_examples(
    [4.0, 3.5, 3.0, 2.0], tokens=[1] * 4, content=[7, 7, 8, 9]
  )
  top = base.arm('top', 'nll_sum', fraction=0.75)
  kept, decision = decided(examples, top, base.arm('distinct'))
  [edge] = shown.near_thresholds(examples, kept, decision, 5)
  assert [row['doc_index'] for row in edge['kept']] == [2, 0]
  assert [row['doc_index'] for row in edge['thrown']] == [3]


def test_a_source_kept_whole_has_no_threshold(make_examples):
  """What weighs nothing is kept: source b throws nothing away."""
  examples = make_examples(
    [3.0, 1.0, 2.0], tokens=[1, 1, 0], sources=['a', 'a', 'b']
  )
  kept, decision = decided(
    examples, base.arm('top', 'nll_sum', fraction=0.5, per='source')
  )
  assert kept.tolist() == [True, False, True]
  [edge] = shown.near_thresholds(examples, kept, decision, 5)
  assert [row['doc_index'] for row in edge['kept']] == [0]


@pytest.mark.parametrize('keep', ['sample', 'random', 'all'])
def test_what_has_no_threshold_has_none_near(make_examples, keep):
  fields = {} if keep == 'all' else {'fraction': 0.5}
  score = 'nll_sum' if keep == 'sample' else ''
  examples = make_examples([4.0, 3.0, 2.0, 1.0])
  kept, decision = select.decide(
    [RuleConfig(**base.arm(keep, score, **fields))], examples, 0
  )
  assert shown.examples_of(examples, kept, decision, 3)['near'] == []


def test_everything_kept_has_no_threshold(make_examples):
  examples = make_examples([4.0, 3.0])
  top = dataclasses.replace(rule('top'), fraction=1.0)
  kept, decision = select.decide([top], examples, 0)
  assert kept.all()
  assert shown.near_thresholds(examples, kept, decision, 3) == []


@pytest.fixture(scope='module')
def many(make_examples):
  rng = np.random.default_rng(0)
  examples = make_examples(
    rng.gamma(4, 1, 500).tolist(),
    sources=rng.choice(['web', 'books', 'code'], 500).tolist(),
  )
  return examples, *select.decide([rule('per source')], examples, 0)


def test_drawn_of_both_sides_and_always_the_same(many):
  examples, kept, decision = many
  found = shown.drawn(examples, kept, None, 20)
  assert found == shown.drawn(examples, kept, None, 20)
  for side, mask in (('kept', kept), ('thrown', ~kept)):
    rows = np.array([row['doc_index'] for row in found[side]])
    assert len(set(rows)) == 20 and mask[rows].all()
    assert 100 < rows.mean() < 400  # From all over.
  fewer = shown.drawn(examples, kept, decision.ranking, 5)
  assert [row['doc_index'] for row in fewer['kept']] == [
    row['doc_index'] for row in found['kept'][:5]
  ]


def test_steps_do_not_matter(many, monkeypatch):
  examples, kept, decision = many
  whole = shown.examples_of(examples, kept, decision, 6)
  monkeypatch.setattr(arrays, 'STEP', 7)
  assert shown.examples_of(examples, kept, decision, 6) == whole


def test_ends_of_the_ranking(many):
  examples, kept, decision = many
  found = shown.examples_of(examples, kept, decision, 3)
  order = np.argsort(decision.ranking)
  assert [row['doc_index'] for row in found['least']] == order[:3].tolist()
  assert [row['score'] for row in found['most']] == decision.ranking[
    order[::-1][:3]
  ].tolist()
  first = int(order[-1])
  assert found['most'][0] == {
    'shard': 0,
    'doc_index': first,
    'example_id': f'id-{first}',
    'source': examples.table['source'][first].as_py(),
    'num_tokens': int(examples.weight('tokens')[first]),
    'score': float(decision.ranking[first]),
  }


def test_no_ranking_no_ends(many):
  examples, kept, _ = many
  found = shown.examples_of(examples, kept, None, 3)
  assert found['most'] == found['least'] == found['near'] == []
  for row in found['drawn']['kept']:
    nll = examples.table['nll_sum'][row['doc_index']].as_py()
    assert row['score'] == nll / row['num_tokens']


def test_fewer_examples_than_asked_for(make_examples):
  examples = make_examples([2.0, 1.0], tokens=[1, 1])
  kept, decision = select.decide([rule('top')], examples, 0)
  found = shown.examples_of(examples, kept, decision, 10)
  assert len(found['most']) == len(found['least']) == 2
  assert len(found['drawn']['kept']) + len(found['drawn']['thrown']) == 2


def test_examples_of_deciles_by_hand(make_examples):
  """One token each: the mean NLL is the score, two examples a decile."""
  scores = [float(n) for n in range(20)]
  examples = make_examples(scores[::-1], tokens=[1] * 20)
  deciles = shown.by_decile(examples, 5)
  assert [[row['score'] for row in rows] for rows in deciles] == [
    [2.0 * d, 2.0 * d + 1] for d in range(10)
  ]
  assert deciles[0][0]['example_id'] == 'id-19'
  few = shown.by_decile(examples, 1)
  assert all(len(rows) == 1 for rows in few)
  assert few == shown.by_decile(examples, 1)
  # By chance: neither always the lower nor always the higher.
  assert {row['score'] % 2 for [row] in few} == {0.0, 1.0}


HALF = "CASE WHEN source = 'a' THEN nll_sum END"


def test_examples_without_a_number_have_no_score(make_examples):
  """As JSON values; the threshold is between those that have one."""
  examples = make_examples([float(n) for n in range(8)], sources=['a', 'b'] * 4)
  for keep, bound, nearest in (('top', 4.0, 2.0), ('bottom', None, None)):
    chosen = base.arm(keep, HALF, fraction=0.25, missing='lowest')
    kept, decision = decided(examples, chosen)
    found = shown.examples_of(examples, kept, decision, 8)
    json.dumps(found, allow_nan=False)
    assert [row['score'] for row in found['most']] == [6, 4, 2, 0, *[None] * 4]
    assert [row['score'] for row in found['least']] == [*[None] * 4, 0, 2, 4, 6]
    assert [edge['score'] for edge in found['near']] == [bound] * bool(bound)
    for edge in found['near']:
      assert edge['kept'][0]['score'] == bound
      assert [row['score'] for row in edge['thrown']] == [nearest, 0.0]


def test_among_those_without_a_number_is_no_threshold(make_examples):
  examples = make_examples([float(n) for n in range(8)], sources=['a', 'b'] * 4)
  top = base.arm('top', HALF, fraction=0.75, missing='lowest')
  for per in ('', 'source'):
    kept, decision = decided(examples, {**top, 'per': per})
    assert kept.sum() == 6
    found = shown.examples_of(examples, kept, decision, 8)
    json.dumps(found, allow_nan=False)
    # Of each source: that of a alone.
    assert [edge['score'] for edge in found['near']] == [None] * bool(per)
