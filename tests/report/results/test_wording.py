"""Verdicts, statements and cautions."""

import pytest

from infoprune_jax.report import text
from infoprune_jax.report.results import wording

MACRO = 'macro_bits_per_byte'


def bounds(estimate: float, half: float = 0.01) -> dict:
  return {
    'estimate': estimate,
    'low': estimate - half,
    'high': estimate + half,
  }


def compared(estimate: float, by_seed: tuple = (), **fields) -> dict:
  by_seed = by_seed or (estimate,) * 3
  difference = bounds(estimate)
  return {
    'arm': 'top',
    'reference': 'full',
    'role': 'full',
    'flops_ratio': 1.1,
    'decisive': difference,
    'difference_by_seed': {'values': list(by_seed), 'interval': None},
    'verdict': wording.verdict(difference, by_seed),
    'wins': {
      'sources': 11,
      'better': 11,
      'worse': 0,
      'surely_better': 9,
      'surely_worse': 0,
    },
    'over_all_bytes': {**bounds(0.83), 'verdict': 'worse'},
    'price': [{'name': 'generated', 'before': 0.9, 'after': 2.66}],
    'reached': {'step': 435, 'of': 700},
    **fields,
  }


def arm(name: str, **fields) -> dict:
  return {
    'name': name,
    'flops': {'ratio': 1.0},
    'cost_is_known': True,
    'shared': None,
    'needs_reference': True,
    'own_scores': [],
    'keeps_everything': False,
    'added_tokens': None,
    **fields,
  }


@pytest.mark.parametrize(
  'estimate, by_seed, verdict',
  [
    (-0.03, (-0.03, -0.02, -0.04), 'better'),
    (0.03, (0.03, 0.02, 0.04), 'worse'),
    (0.005, (0.003, 0.007), 'no difference shown'),
    (0.03, (), 'worse'),
    # The interval excludes zero, and still there is no conclusion.
    (-0.0605, (-0.129, 0.008), 'no conclusion: the seeds disagree'),
    (0.005, (-0.003, 0.013), 'no conclusion: the seeds disagree'),
  ],
)
def test_verdict_weighs_seeds_before_the_interval(estimate, by_seed, verdict):
  assert wording.verdict(bounds(estimate), by_seed) == verdict


def test_equal_arms_are_equal():
  assert wording.verdict(bounds(0.0, 0.0), (0.0, 0.0)) == 'equal'


@pytest.mark.parametrize(
  'estimate, by_seed, expected',
  [
    (-0.03, (), 'top is better than full: '),
    (0.03, (), 'top is worse than full: '),
    (0.005, (), 'No difference between top and full is shown: '),
    (
      -0.0605,
      (-0.129, 0.008),
      f'top against full: no conclusion: the seeds disagree '
      f'({text.signed(-0.129)}, +0.0080). Their mean is ',
    ),
    (-0.03, (-0.03, -0.03), 'top is better than full with 2 seeds only: '),
    (0.03, (0.03,), 'top is worse than full with 1 seed only: '),
  ],
)
def test_a_comparison_says_verdict_seeds_and_amount(
  estimate, by_seed, expected
):
  one = compared(estimate, by_seed)
  assert wording.comparison(one) == (
    f'{expected}{text.interval(bounds(estimate))} bits per byte, lower on 11 '
    'of 11 sources, 9 with an interval below zero.'
  )


def test_sources_that_are_surely_worse_are_counted():
  wins = {**compared(0.1)['wins'], 'better': 8, 'surely_worse': 2}
  line = wording.comparison(compared(0.1, wins=wins))
  assert 'lower on 8 of 11 sources, 9 with an interval below zero, 2 with' in (
    line
  )
  wins['sources'] = 1
  assert 'sources' not in wording.comparison(compared(0.1, wins=wins))


@pytest.mark.parametrize(
  'ratio, expected',
  [
    (1.0, 'longer at equal total FLOPs (reference model and scoring included)'),
    (1.002, 'longer at equal total FLOPs'),
    (0.5, 'longer (2.00 times the total FLOPs of top)'),
  ],
)
def test_the_longer_arm_is_compared_by_total_flops(ratio, expected):
  one = compared(-0.1, reference='longer', role='longer', flops_ratio=ratio)
  assert f'top is better than {expected}' in wording.comparison(one)


def test_statements_name_the_gain_first_and_the_price_last():
  lines = wording.statements(
    [compared(-0.26), compared(-0.31, reference='random', reached=None)]
  )
  assert [line.split(':')[0] for line in lines] == [
    'top is better than full',
    'top is better than random',
    'top reaches the final loss of full by step 435 of 700.',
    'The price',
    'Over all bytes top is worse than full by 0.8300 bits per byte [+0.8200, '
    '+0.8400].',
  ]
  assert lines[3] == (
    'The price: worse with top than with full: generated from 0.900 to 2.660 '
    'bits per byte.'
  )


def test_a_long_price_is_cut():
  price = [{'name': f's{n}', 'before': 1.0, 'after': 2.0} for n in range(5)]
  line = wording.price(compared(0.1, price=price))
  assert 's2 from' in line and line.endswith(', and 2 more.')
  assert 's3' not in line
  assert 'no source is worse' in wording.price(compared(0.1, price=[]))


def test_speed():
  never = compared(0.1, reached={'step': None, 'of': 700})
  assert wording.speed(never) == 'top does not reach the final loss of full.'
  assert not wording.speed(compared(0.1, reached=None))


def test_over_all_bytes_is_not_told_twice():
  told = {**bounds(-0.26), 'verdict': 'better'}
  one = compared(-0.26, over_all_bytes=told)
  assert 'Over all bytes' not in ' '.join(wording.statements([one]))


def test_over_all_bytes_without_a_verdict():
  over_all = {**bounds(0.005), 'verdict': 'no difference shown'}
  line = wording.over_all_bytes(compared(0.1, over_all_bytes=over_all))
  assert line.startswith('Over all bytes, top against full: no difference')


@pytest.mark.parametrize(
  'seeds, told', [(1, '1 seed, fewer'), (2, '2 seeds, fewer'), (3, '3 seeds.')]
)
def test_the_measure_and_few_seeds_are_said(seeds, told):
  line = wording.measure(MACRO, ('code', 'web-*'), 11, seeds)
  assert 'the mean over 11 sources (code, web-*)' in line and told in line
  assert ('cannot be told from one between seeds' in line) == (seeds < 3)
  assert 'over all bytes of 1 source;' in wording.measure(
    'bits_per_byte', (), 1, seeds
  )


@pytest.mark.parametrize(
  'sources, seeds, expected',
  [
    (11, 3, 'cover held-out texts, sources and seeds.'),
    (11, 2, 'cover held-out texts and sources, but not other seeds.'),
    (1, 3, 'cover held-out texts and seeds, but not other sources.'),
    (1, 1, 'cover held-out texts, but not other sources and other seeds.'),
  ],
)
def test_levels_of_the_intervals(sources, seeds, expected):
  first, dot, rest = wording.levels(sources, seeds).rpartition(
    ' Intervals of one source'
  )
  assert (first or rest).endswith(expected)
  assert bool(dot) == (sources > 1)


def test_how_arms_were_chosen():
  assert 'top is the best of 4 arms on one half' in wording.choice(
    ('top',), 'top', 4
  )
  assert wording.choice(('a', 'b', 'c'), None, 4) == (
    'All held-out texts judge a, b and c.'
  )
  assert 'Only one arm' in wording.choice((), None, 1)


@pytest.mark.parametrize(
  'told, notes, short, length, last',
  [
    (8, 0, 0, 8, 'told 7'),
    (8, 1, 1, 10, 'arm 0, note 0'),
    (8, 0, 2, 10, 'arm 1'),
    (8, 1, 2, 10, '2 arms more: see the page., note 0'),
    (8, 0, 9, 10, '8 arms more: see the page.'),
    (9, 1, 1, 10, 'note 0'),
    (8, 5, 1, 10, 'note 1'),
    (1, 0, 0, 1, 'told 0'),
  ],
)
def test_a_terminal_gets_ten_lines(told, notes, short, length, last):
  lines = wording.terminal(
    [f'told {n}' for n in range(told)],
    [f'note {n}' for n in range(notes)],
    [f'arm {n}' for n in range(short)],
  )
  assert lines[:told] == [f'told {n}' for n in range(told)]
  assert len(lines) == length and ', '.join(lines).endswith(last)


def test_cautions():
  top = arm('top')
  assert not wording.cautions(top, 'random', 8)
  assert not wording.cautions(top, 'top', 8)
  imported = arm('top', cost_is_known=False)
  (line,) = wording.cautions(imported, 'random', 8)
  assert 'trained elsewhere' in line
  worst = arm(
    'full',
    flops={'ratio': 2.25},
    keeps_everything=True,
  )
  lines = ' '.join(wording.cautions(worst, 'random', 1, 3))
  for part in (
    'equal training tokens',
    '2.25 times the FLOPs',
    'prunes nothing',
    '3 arms were named in advance',
    'Held-out sources: 1.',
  ):
    assert part in lines
  longer = arm('everything', added_tokens=9, step=1100, flops={'ratio': 2.2})
  lines = ' '.join(wording.cautions(longer, 'random', 8))
  assert '1,100 steps' in lines and 'equal training tokens' not in lines
