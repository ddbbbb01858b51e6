"""Warnings about arms, and the overview that they go with."""

import pytest

from configs import base
from infoprune_jax.config import experiment as config_lib
from infoprune_jax.report.selection import tables, warnings


def lengths(*fractions: float) -> list[dict]:
  """Ten documents in each decile, from 10, 20, ... tokens on."""
  return [
    {
      'low': 10 * n + 10,
      'high': 10 * n + 19,
      'examples': 100,
      'arms': {'top': fraction, 'first': 0.5},
    }
    for n, fraction in enumerate(fractions)
  ]


def report(**changed) -> dict:
  """Of two arms over 1,000 documents, and two sources of two kinds."""
  arm = dict(
    by_chance=False,
    same_as=None,
    kept_tokens=0.5,
    kept=dict(examples=400, tokens=50_000, bytes=200_000),
    thrown=dict(examples=600, tokens=50_000, bytes=200_000),
    kept_copies=4,
    thrown_copies=60,
  )
  sources = [
    {'source': 'web', 'fraction': 0.6, 'arms': {'top': 0.9, 'first': 0.7}},
    {'source': 'news', 'fraction': 0.4, 'arms': {'top': 0.1, 'first': 0.3}},
  ]
  kept = [
    {'source': 'news', 'tokens': 40_000, 'arms': {'top': 0.125, 'first': 0.5}},
    {'source': 'web', 'tokens': 60_000, 'arms': {'top': 0.75, 'first': 0.5}},
  ]
  content = {
    'scored': dict(
      examples=1000,
      tokens=100_000,
      bytes=400_000,
      mean_nll=3.0,
      mean_unigram_nll=7.0,
    ),
    'folds': 1,
    'arms': [
      {**arm, 'name': 'first', 'by_chance': True},
      {**arm, 'name': 'top'},
    ],
    'kinds': [],
    'mix': {'sources': sources, 'total_variation': {'top': 0.3, 'first': 0.01}},
    'kept': {'sources': kept},
    'lengths': lengths(*[0.4] * 10),
    'overlaps': {
      'tokens': [[1.0, 0.3], [0.3, 1.0]],
      'examples': [[1.0, 0.3], [0.3, 1.0]],
    },
  }
  return {**content, **changed}


def with_arm(**changed) -> dict:
  made = report()
  made['arms'][1].update(changed)
  return made


def experiment(**rule) -> config_lib.Config:
  edits = base.get_config()
  edits.corpus.sources.web = base.text('*.txt')
  edits.select.arms.first = base.arm('random', fraction=0.5)
  edits.select.arms.top = base.arm(
    'top', 'nll_sum', **{'fraction': 0.5, **rule}
  )
  return config_lib.from_mapping(edits)


def warnings_of(made: dict, arm: str = 'top', **rule) -> list[str]:
  [item] = [item for item in made['arms'] if item['name'] == arm]
  return warnings.of_arm(experiment(**rule), item, made)


def test_overview_by_hand():
  row = tables.overview(report())['top']
  assert row['tokens'] == row['bytes'] == 0.5 and row['examples'] == 0.4
  assert (
    row['halves'] == pytest.approx((0.4, 0.4)) and row['total_variation'] == 0.3
  )
  assert row['loses'] == ('news', pytest.approx(-0.3))
  assert row['gains'] == ('web', pytest.approx(0.3))


def test_of_chance_no_source_is_named():
  row = tables.overview(report())['first']
  assert (
    row['loses'] == row['gains'] == ('', 0.0) and row['total_variation'] == 0.01
  )


def test_small_shifts_are_not_named():
  sources = [
    {'source': name, 'fraction': 0.5, 'arms': {'top': 0.5, 'first': 0.5}}
    for name in ('web', 'news')
  ]
  mix = {'sources': sources, 'total_variation': {'top': 0.0, 'first': 0.0}}
  row = tables.overview(report(mix=mix))['top']
  assert row['loses'] == row['gains'] == ('', 0.0)


def test_the_same_is_told_once():
  [warning] = warnings_of(with_arm(same_as='first'))
  assert warning.startswith('Keeps the same documents as first: training both')


def test_without_a_fault_there_is_no_warning():
  assert warnings_of(report()) == []
  assert warnings.of_all_arms(report()) == []


@pytest.mark.parametrize(
  ('fraction', 'warned'), [(0.049, True), (0.051, False), (0.0, True)]
)
def test_a_source_nearly_removed(fraction, warned):
  made = report()
  made['kept']['sources'][0]['arms']['top'] = fraction
  lines = warnings_of(made)
  assert bool(lines) == warned
  if fraction:
    expected = (
      'Nearly removed: 1 source with 40.0 % of all tokens. The arm keeps less '
      'than 5.0 % of each, a tenth of what the arm keeps in all: news (4.9 %).'
    )
    assert lines == [expected] * warned


def test_many_removed_sources_are_counted():
  rows = [
    {'source': f's{n}', 'tokens': n, 'arms': {'top': 0.0}} for n in range(12)
  ]
  [warning] = warnings_of(report(kept={'sources': rows}))
  # One has no token.
  assert warning.startswith('Nearly removed: 11 sources with')
  assert 's11 (0 %), s10 (0 %)' in warning and 'and 3 more.' in warning


@pytest.mark.parametrize(
  ('fractions', 'warned'),
  [
    ([0.8] + [0.4] * 8 + [0.3], True),
    ([0.3] * 5 + [0.7] * 5, True),
    ([0.5] * 5 + [0.4] * 5, False),
    ([0.45] + [0.4] * 9, False),
  ],
)
def test_a_bias_for_length(fractions, warned):
  made = report(lengths=lengths(*fractions))
  lines = warnings_of(made)
  assert bool(lines) == warned
  if fractions[-1] == 0.3:
    [text] = lines
    assert '80.0 % of the documents with 10 to 19 tokens, but 30.0 %' in text


def test_chance_is_no_bias_for_length():
  rows = [{**row, 'examples': 8} for row in lengths(0.6, *[0.3] * 9)]
  assert not warnings_of(report(lengths=rows))


def test_a_budget_not_spent():
  made = with_arm(kept=dict(examples=400, tokens=46_000, bytes=1))
  assert warnings_of(made) == ['Keeps 46.0 % of tokens; the budget is 50 %.']
  assert not warnings_of(made, fraction=0.46)


def test_almost_the_same():
  shared = [[1.0, 0.96], [0.96, 1.0]]
  made = report(overlaps={'tokens': shared, 'examples': shared})
  assert warnings_of(made) == [
    'Keeps almost the same as first: the overlap of their tokens is 96.0 %.'
  ]
  assert warnings_of(made, 'first') == []  # Told once.


def test_halves_of_documents():
  rows = lengths(*[0.2] * 5, *[0.6] * 5)
  assert tables.by_half(rows, 'top') == pytest.approx((0.2, 0.6))
  assert tables.by_half(rows[:1], 'top') == (None, None)


def test_cautions():
  scored = {**report()['scored'], 'mean_nll': 7.5}
  folds, weak = warnings.of_all_arms(report(scored=scored, folds=2))
  assert '2 reference models scored one fold each' in folds
  assert '7.50 nats per token against 7.00' in weak
