"""Rules as text."""

import pytest

from configs import base
from infoprune_jax.config.selection import BUDGET_KINDS, RuleConfig
from infoprune_jax.report.selection import rules_as_text


def rule(keep: str, score: str = '', **fields) -> RuleConfig:
  fields = {'fraction': 0.5 if keep in BUDGET_KINDS else 1.0, **fields}
  return RuleConfig(**base.arm(keep, score, **fields))


def test_rules_are_joined():
  rules = (
    rule('top', ' nll_sum / num_tokens ', fraction=0.375, per='source'),
    rule('random', unit='examples'),
  )
  assert rules_as_text.describe(rules) == (
    'the top 37.5 % of tokens by nll_sum / num_tokens, within each source; of '
    'these, a random 50 % of examples'
  )
  assert rules_as_text.describe((rule('all'),)) == 'everything scored'


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
      'a sample of 50 % of tokens, likelier by exp(score / 0.5), where score '
      'is nll_sum',
    ),
  ],
)
def test_every_kind_of_rule(chosen, expected):
  assert rules_as_text.describe_rule(chosen) == expected


def test_keeps_everything():
  assert rules_as_text.keeps_everything((rule('all'),))
  assert rules_as_text.keeps_everything((rule('random', fraction=1.0),))
  assert rules_as_text.keeps_everything((rule('all_plus_reference'),))
  assert rules_as_text.keeps_everything(
    (rule('band', 'num_bytes', low=0, high=1),)
  )
  assert not rules_as_text.keeps_everything((rule('all'), rule('random')))
  for pruned in (
    rule('band', 'num_bytes', low=0.0, high=0.5),
    rule('threshold', 'num_bytes', low=0.0),
    rule('distinct'),
  ):
    assert not rules_as_text.keeps_everything((pruned,))
