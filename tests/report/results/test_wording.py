"""Verdicts and cautions."""

import pytest

from infoprune_jax.report import text
from infoprune_jax.report.results import wording


def arm(name: str, estimate: float, **fields) -> dict:
  return {
    'name': name,
    'bits_per_byte': {'mean': 1.5},
    'difference': {
      'bits_per_byte': {
        'estimate': estimate,
        'low': estimate - 0.01,
        'high': estimate + 0.01,
      }
    },
    'difference_by_seed': {'values': [estimate] * 3, 'interval': None},
    'flops': {'ratio': 1.0},
    'keeps_everything': False,
    'added_tokens': None,
    **fields,
  }


ARMS = [arm('random', 0.0), arm('top', -0.03), arm('bottom', 0.03)]


@pytest.mark.parametrize(
  'estimate, verdict',
  [(-0.03, 'better'), (0.03, 'worse'), (0.005, 'no difference shown')],
)
def test_verdict_follows_the_interval(estimate, verdict):
  top = arm('top', estimate)
  assert wording.verdict(top['difference']['bits_per_byte']) == verdict
  arms = [arm('random', 0.0), top]
  first, second = wording.comparison(arms, 'top', 'top', 'random')
  assert 'top has the lowest loss of 2 arms on the choose half' in first
  assert text.signed(estimate) in second
  assert {
    'better': 'top is better than random',
    'worse': 'top is worse than random',
    'no difference shown': 'no difference to random is shown',
  }[verdict] in second


def test_equal_arms_are_equal():
  zero = dict.fromkeys(('estimate', 'low', 'high'), 0.0)
  assert wording.verdict(zero) == 'equal'


def test_the_baseline_may_be_the_best():
  first, _ = wording.comparison(ARMS, 'random', 'top', 'random')
  assert 'no arm has a lower loss than random' in first
  assert 'top comes next' in first


def test_equal_flops():
  difference = {'estimate': 0.02, 'low': -0.01, 'high': 0.03}
  sentence = wording.equal_flops('top', 'everything', difference)
  assert 'top minus everything' in sentence and '+0.0200' in sentence
  assert 'no difference to everything is shown' in sentence


def test_one_arm_is_not_compared():
  lines = wording.comparison(ARMS[:1], 'random', 'random', 'random')
  assert 'Only one arm' in lines[0]
  assert not wording.cautions(ARMS[0], 'random', 8)


def test_cautions():
  assert not wording.cautions(ARMS[1], 'random', 8)
  spread = {'values': [-0.01, 0.02], 'interval': None}
  worst = arm(
    'full',
    -0.03,
    difference_by_seed=spread,
    flops={'ratio': 2.25},
    keeps_everything=True,
  )
  lines = ' '.join(wording.cautions(worst, 'random', 1))
  for part in (
    'Seeds: 2 (',
    'no difference between rules can be told',
    'disagree in sign',
    'equal training tokens',
    '2.25 times the FLOPs',
    'prunes nothing',
    'Held-out sources: 1.',
  ):
    assert part in lines
  longer = arm(
    'everything', -0.1, added_tokens=9, step=1100, flops={'ratio': 2.2}
  )
  lines = ' '.join(wording.cautions(longer, 'random', 8))
  assert '1,100 steps' in lines and 'equal training tokens' not in lines
  wide = {'values': [-0.01, -0.02, -0.3], 'interval': [-0.5, 0.2]}
  lines = ' '.join(
    wording.cautions(arm('top', -0.1, difference_by_seed=wide), 'random', 8)
  )
  assert 'over 3 seeds' in lines and 'includes zero' in lines
