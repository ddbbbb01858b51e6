"""Rules and results in sentences."""

import pytest

from configs import base
from infoprune_jax.config.selection import BUDGET_KINDS, RuleConfig
from infoprune_jax.report import wording


def rule(keep: str, score: str = '', **fields) -> RuleConfig:
  fields = {'fraction': 0.5 if keep in BUDGET_KINDS else 1.0, **fields}
  return RuleConfig(**base.arm(keep, score, **fields))


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


def test_rules_in_words():
  rules = (
    rule('top', ' nll_sum / num_tokens ', fraction=0.375, per='source'),
    rule('random', unit='examples'),
  )
  assert wording.rules_in_words(rules) == (
    'the top 37.5 % of tokens by nll_sum / num_tokens, within each source; of '
    'these, a random 50 % of examples'
  )
  assert wording.rules_in_words((rule('all'),)) == 'everything scored'


@pytest.mark.parametrize(
  'chosen, expected',
  [
    (rule('all'), 'everything scored'),
    (rule('all_plus_reference'), 'everything scored, and the reference split'),
    (
      rule('distinct', per='source'),
      'the first copy of each text, within each source',
    ),
    (
      rule('band', 'num_bytes', low=0.05, high=0.8, unit='bytes'),
      'from 5 % to 80 % of bytes in ascending order of num_bytes',
    ),
    (rule('threshold', 'num_tokens', low=64), 'num_tokens of at least 64'),
    (rule('threshold', 'num_tokens', high=64), 'num_tokens of at most 64'),
    (
      rule('threshold', 'num_tokens', low=1, high=2.5),
      'num_tokens from 1 to 2.5',
    ),
    (
      rule('sample', 'nll_sum', temperature=0.5),
      'a sample of 50 % of tokens, likelier by exp(score / 0.5), where score is '
      'nll_sum',
    ),
  ],
)
def test_every_kind_in_words(chosen, expected):
  assert wording.rule_in_words(chosen) == expected


def test_keeps_everything():
  assert wording.keeps_everything((rule('all'),))
  assert wording.keeps_everything((rule('random', fraction=1.0),))
  assert wording.keeps_everything((rule('all_plus_reference'),))
  assert wording.keeps_everything((rule('band', 'num_bytes', low=0, high=1),))
  assert not wording.keeps_everything((rule('all'), rule('random')))
  for pruned in (
    rule('band', 'num_bytes', low=0.0, high=0.5),
    rule('threshold', 'num_bytes', low=0.0),
    rule('distinct'),
  ):
    assert not wording.keeps_everything((pruned,))


@pytest.mark.parametrize(
  'estimate, verdict',
  [
    (-0.03, 'excludes zero: for these trained models, top is better'),
    (0.03, 'excludes zero: for these trained models, top is worse'),
    (0.005, 'includes zero: this does not show that top and random differ'),
  ],
)
def test_verdict_follows_the_interval(estimate, verdict):
  arms = [arm('random', 0.0), arm('top', estimate)]
  sentences = wording.found(arms, 'top', 'top', 'random')
  assert len(sentences) == 2
  assert wording.signed(estimate) in sentences[0]
  assert verdict in sentences[1]


def test_the_baseline_may_be_the_best():
  first, _ = wording.found(ARMS, 'random', 'top', 'random')
  assert 'none of 3 arms had a lower loss than random itself' in first
  assert 'next came top' in first


def test_equal_flops():
  difference = {'estimate': 0.02, 'low': -0.01, 'high': 0.03}
  sentence = wording.at_equal_flops('top', 'everything', difference)
  assert 'against everything' in sentence and '+0.0200' in sentence
  assert 'does not show that top and everything differ' in sentence


def test_one_arm_is_not_compared():
  sentences = wording.found(ARMS[:1], 'random', 'random', 'random')
  assert 'Only one arm' in sentences[0]
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
  text = ' '.join(wording.cautions(worst, 'random', 1))
  for part in (
    'Only 2 seeds were trained',
    'disagree in sign',
    '2.25 times the FLOPs',
    'prunes nothing',
    '1 source:',
  ):
    assert part in text
  longer = arm(
    'everything', -0.1, added_tokens=9, step=1100, flops={'ratio': 2.2}
  )
  text = ' '.join(wording.cautions(longer, 'random', 8))
  assert '1,100 steps' in text and 'equal training tokens' not in text
  wide = {'values': [-0.01, -0.02, -0.3], 'interval': [-0.5, 0.2]}
  text = ' '.join(
    wording.cautions(arm('top', -0.1, difference_by_seed=wide), 'random', 8)
  )
  assert 'Over 3 seeds' in text and 'includes zero' in text
