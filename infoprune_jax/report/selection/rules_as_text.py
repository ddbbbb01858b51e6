"""The rules of an arm as text, for readers who do not know the config."""

import math
from collections.abc import Sequence

from infoprune_jax.config.selection import BUDGET_KINDS, RuleConfig


def describe(rules: Sequence[RuleConfig]) -> str:
  """An arm's rules, in the order in which they apply."""
  return '; of these, '.join(map(describe_rule, rules))


def describe_rule(rule: RuleConfig) -> str:
  """'the top 50 % of tokens by nll_sum / num_tokens, within each source'."""
  fraction = f'{100 * rule.fraction:g} % of {rule.unit}'
  score = rule.score.strip()
  text = {
    'all': 'everything scored',
    'all_plus_reference': 'everything scored, and the reference split',
    'distinct': 'the first copy of each text',
    'random': f'a random {fraction}',
    'sample': f'a sample of {fraction}, likelier by exp(score / '
    f'{rule.temperature:g}), where score is {score}',
    'band': f'from {100 * rule.low:g} % to {100 * rule.high:g} % of '
    f'{rule.unit} in ascending order of {score}',
    'threshold': f'{score} {_bounds(rule.low, rule.high)}',
  }.get(rule.keep, f'the {rule.keep} {fraction} by {score}')
  return text + (f', within each {rule.per}' if rule.per else '')


def _bounds(low: float, high: float) -> str:
  if math.isinf(high):
    return f'of at least {low:g}'
  if math.isinf(low):
    return f'of at most {high:g}'
  return f'from {low:g} to {high:g}'


def keeps_everything(rules: Sequence[RuleConfig]) -> bool:
  """Whether the arm prunes nothing."""
  return all(
    rule.keep in ('all', 'all_plus_reference')
    or (rule.keep in BUDGET_KINDS and rule.fraction == 1.0)
    or (rule.keep == 'band' and (rule.low, rule.high) == (0.0, 1.0))
    for rule in rules
  )
