"""Rules as text."""

import dataclasses

import pytest

from configs import base
from infoprune_jax.config.selection import BUDGET_KINDS, KEEP_KINDS, RuleConfig
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


OF_KIND = {
  'top': (dict(score='num_bytes'), 'the top 50 % of tokens by num_bytes'),
  'bottom': (dict(score='num_bytes'), 'the bottom 50 % of tokens by num_bytes'),
  'middle': (dict(score='num_bytes'), 'the middle 50 % of tokens by num_bytes'),
  'band': (
    dict(score='num_bytes', low=0.05, high=0.8, unit='bytes'),
    'from 5 % to 80 % of bytes in ascending order of num_bytes',
  ),
  'threshold': (
    dict(score='num_tokens', low=1, high=2.5),
    'num_tokens from 1 to 2.5',
  ),
  'sample': (
    dict(score='nll_sum', temperature=0.5),
    'a sample of 50 % of tokens, likelier by exp(score / 0.5), where score is '
    'nll_sum',
  ),
  'repeat': (
    dict(score='nll_sum', curve=((0.0, 0.0), (0.4, 1.5), (0.95, 7.0))),
    'each example 0 times an epoch at 0 % of tokens in ascending order of '
    'nll_sum, 1.5 at 40 %, 7 at 95 %, with straight lines between',
  ),
  'random': ({}, 'a random 50 % of tokens'),
  'distinct': ({}, 'the first copy of each text'),
  'all': ({}, 'everything scored'),
  'all_plus_reference': ({}, 'everything scored, and the reference split'),
}


@pytest.mark.parametrize('keep', KEEP_KINDS)
def test_every_kind_of_rule(keep):
  fields, expected = OF_KIND[keep]
  assert rules_as_text.describe_rule(rule(keep, **fields)) == expected


@pytest.mark.parametrize(
  'chosen, expected',
  [
    (rule('threshold', 'num_tokens', low=64), 'num_tokens of at least 64'),
    (rule('threshold', 'num_tokens', high=64), 'num_tokens of at most 64'),
    (
      rule('distinct', per='source'),
      'the first copy of each text, within each source',
    ),
    (
      rule('distinct', copies=3, best='nll_sum'),
      'the 3 copies of each text with the highest nll_sum',
    ),
    (
      rule('distinct', 'near_duplicate_group', copies=2),
      'the first 2 examples of each value of near_duplicate_group',
    ),
    (
      rule('distinct', 'near_duplicate_group', missing='lowest'),
      'the first example of each value of near_duplicate_group, where examples '
      'without a score count as one value',
    ),
    (
      rule('top', 'num_bytes', floor=0.1, missing='lowest'),
      'the top 50 % of tokens by num_bytes, with 10 % of what is cut kept at '
      'random within this budget, where examples without a score rank lowest',
    ),
    (
      rule('band', 'num_bytes', low=0.5, high=1.0, floor=0.1),
      'from 50 % to 100 % of tokens in ascending order of num_bytes, with 10 % '
      'of what is cut kept at random',
    ),
  ],
)
def test_conditions_of_a_rule(chosen, expected):
  assert rules_as_text.describe_rule(chosen) == expected


CHANGES = {
  'score': 'nll_sum',
  'keep': 'bottom',
  'fraction': 0.4,
  'floor': 0.2,
  'unit': 'examples',
  'per': 'source',
  'missing': 'lowest',
}
OF_OTHER_KINDS = {
  **dict.fromkeys(('low', 'high'), ('threshold', 1.5, 2.5)),
  'temperature': ('sample', 1.5, 2.5),
  'max_repeats': ('repeat', 2, 3),
  'curve': ('repeat', ((0.0, 1.0),), ((0.0, 2.0),)),
  'copies': ('distinct', 2, 3),
  'best': ('distinct', 'nll_sum', 'num_tokens'),
}


@pytest.mark.parametrize(
  'name',
  sorted({field.name for field in dataclasses.fields(RuleConfig)} - {'seed'}),
)
def test_every_field_is_in_the_description(name):
  if name in OF_OTHER_KINDS:
    kind, *values = OF_OTHER_KINDS[name]
    pair = [rule(kind, 'num_bytes', **{name: value}) for value in values]
  else:
    first = rule('top', 'num_bytes')
    pair = [first, dataclasses.replace(first, **{name: CHANGES[name]})]
  texts = [rules_as_text.describe_rule(one) for one in pair]
  assert texts[0] != texts[1]


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
    rule('repeat', '1'),
  ):
    assert not rules_as_text.keeps_everything((pruned,))
