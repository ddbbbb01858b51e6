"""What an arm keeps, in sentences."""

import pytest

from configs import base
from infoprune_jax.config import experiment as config_lib
from infoprune_jax.report import selection_wording as wording


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


def found(**changed) -> dict:
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
  made = {
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
  return {**made, **changed}


def with_arm(**changed) -> dict:
  made = found()
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


def test_says_what_moves():
  assert wording.said('top', found()) == [
    'Keeps 50.0 % of the tokens, 40.0 % of the documents and 50.0 % of the '
    'bytes. A document that it keeps has 125 tokens on average, one that it '
    'throws away 83.',
    'Loses most, by source: news \u221230.0 points (12.5 % kept).',
    'Gains most, by source: web +30.0 points (75.0 % kept).',
    '30.0 % of the tokens change source (1.0 % by chance, as first).',
    'By length it keeps 40.0 % of the shortest decile of the documents, 40.0 % '
    'of the shorter half, 40.0 % of the longer half and 40.0 % of the longest '
    'decile.',
    '1.0 % of the documents that it keeps and 10.0 % of the others have a copy '
    'in what was scored.',
  ]


def test_kinds_come_before_sources():
  kinds = [
    {
      'kind': 'talk',
      'fraction': 0.4,
      'arms': {'top': 0.1},
      'mix': {'top': 0.15},
    }
  ]
  lines = wording.said('top', found(kinds=kinds))
  assert (
    lines[1] == 'Loses most, by kind: talk \u221225.0 points (10.0 % kept).'
  )
  assert 'by source' in lines[2]


def test_of_chance_no_source_is_named():
  text = ' '.join(wording.said('first', found()))
  assert 'by source' not in text and '1.0 % of the tokens change' in text
  assert 'by chance' not in text  # It is chance itself.


def test_nothing_thrown_away():
  nothing = dict(examples=0, tokens=0, bytes=0)
  made = with_arm(thrown=nothing)
  assert wording.said('top', made) == ['Keeps everything that was scored.']


def test_the_same_is_told_once():
  made = with_arm(same_as='first')
  assert wording.said('top', made) == [
    'Keeps of what was scored the same as first.'
  ]
  [warning] = wording.warnings(experiment(), 'top', made)
  assert warning.startswith('Keeps the same as first: to train both')


def test_without_a_fault_there_is_no_warning():
  assert wording.warnings(experiment(), 'top', found()) == []
  assert wording.cautions(found()) == []


@pytest.mark.parametrize(
  ('fraction', 'warned'), [(0.049, True), (0.051, False), (0.0, True)]
)
def test_a_source_nearly_wiped_out(fraction, warned):
  made = found()
  made['kept']['sources'][0]['arms']['top'] = fraction
  warnings = wording.warnings(experiment(), 'top', made)
  assert bool(warnings) == warned
  if fraction:
    expected = (
      '1 source is nearly wiped out (40.0 % of all tokens), kept to less than '
      '5.0 %, a tenth of what it keeps in all: news (4.9 %).'
    )
    assert warnings == [expected] * warned


def test_many_sources_wiped_out_are_counted():
  rows = [
    {'source': f's{n}', 'tokens': n, 'arms': {'top': 0.0}} for n in range(12)
  ]
  [warning] = wording.warnings(
    experiment(), 'top', found(kept={'sources': rows})
  )
  assert warning.startswith('11 sources are')  # One has no token.
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
  made = found(lengths=lengths(*fractions))
  warnings = wording.warnings(experiment(), 'top', made)
  assert bool(warnings) == warned
  if fractions[-1] == 0.3:
    [text] = warnings
    assert '80.0 % of those with 10 to 19 tokens, and 30.0 % of those' in text


def test_chance_is_no_bias_for_length():
  rows = [{**row, 'examples': 8} for row in lengths(0.6, *[0.3] * 9)]
  assert not wording.warnings(experiment(), 'top', found(lengths=rows))


def test_a_budget_not_spent():
  made = with_arm(kept=dict(examples=400, tokens=46_000, bytes=1))
  [warning] = wording.warnings(experiment(per='source'), 'top', made)
  assert warning.startswith('Its budget is 50 % of tokens, yet it keeps 46.0 %')
  assert 'of a source' in warning
  assert not wording.warnings(experiment(fraction=0.46), 'top', made)


def test_almost_the_same():
  shared = [[1.0, 0.96], [0.96, 1.0]]
  made = found(overlaps={'tokens': shared, 'examples': shared})
  assert wording.warnings(experiment(), 'top', made) == [
    'Keeps almost the same as first: they have 96.0 % in common.'
  ]
  assert wording.warnings(experiment(), 'first', made) == []  # Told once.


def test_halves_of_documents():
  rows = lengths(*[0.2] * 5, *[0.6] * 5)
  assert wording.by_half(rows, 'top') == pytest.approx((0.2, 0.6))
  assert wording.by_half(rows[:1], 'top') is None


def test_cautions():
  scored = {**found()['scored'], 'mean_nll': 7.5}
  folds, weak = wording.cautions(found(scored=scored, folds=2))
  assert '2 reference models scored a fold each' in folds
  assert '7.50 nats per token against 7.00' in weak
