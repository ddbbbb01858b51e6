"""The rules of an arm as text, for readers who do not know the config."""

import math
from collections.abc import Iterator, Mapping, Sequence

from infoprune_jax.config.arms import SelectConfig
from infoprune_jax.config.selection import (
  BUDGET_KINDS,
  OTHER_GROUPS,
  RuleConfig,
)


def describe(rules: Sequence[RuleConfig]) -> str:
  """An arm's rules, in the order in which they apply."""
  return '; of these, '.join(map(describe_rule, rules))


def describe_arm(select: SelectConfig, arm: str) -> str:
  """The rules of an arm, phase by phase if it has several."""
  phases = select.phases(arm)
  ends = [f'up to {100 * at:g} % of the steps: ' for at, _ in phases[1:]]
  if not ends:
    return describe(select.arms[arm])
  texts = [
    describe(select.arms[keep_set])
    + ', scored by the checkpoint there' * select.scores_itself(keep_set)
    for _, keep_set in phases
  ]
  parts = map(str.__add__, [*ends, 'from there on: '], texts)
  shared = select.shared(arm)
  first = f'from the run of {shared.arm}, ' if shared else ''
  return first + '; '.join(parts)


def describe_rule(rule: RuleConfig) -> str:
  """'the top 50 % of tokens by nll_sum / num_tokens, within each source'."""
  fraction = f'{_fraction(rule)} of {rule.unit}'
  score = ' '.join(rule.score.split())
  text = {
    'repeat': _repeats(rule, score),
    'all': 'everything scored',
    'all_plus_reference': 'everything scored, and the reference split',
    'distinct': _distinct(rule, score),
    'random': f'a random {fraction}',
    'sample': f'a sample of {fraction}, likelier by exp(score / '
    f'{rule.temperature:g}), where score is {score}',
    'band': f'from {100 * rule.low:g} % to {100 * rule.high:g} % of '
    f'{rule.unit} in ascending order of {score}',
    'threshold': f'{score} {_bounds(rule.low, rule.high)}',
  }.get(rule.keep, f'the {rule.keep} {fraction} by {score}')
  return ', '.join([text, *_conditions(rule)])


def _distinct(rule: RuleConfig, score: str) -> str:
  one, many, group = 'copy', 'copies', 'each text'
  if score:
    one, many, group = 'example', 'examples', f'each value of {score}'
  what = f'{one if rule.copies == 1 else f"{rule.copies} {many}"} of {group}'
  if not rule.best.strip():
    return f'the first {what}'
  return f'the {what} with the highest {" ".join(rule.best.split())}'


def _repeats(rule: RuleConfig, score: str) -> str:
  if not rule.curve:
    return f'each example {score} times an epoch, at most {rule.max_repeats}'
  (rank, count), *others = rule.curve
  points = [
    f'{count:g} times an epoch at {100 * rank:g} % of {rule.unit} in ascending '
    f'order of {score}',
    *(f'{count:g} at {100 * rank:g} %' for rank, count in others),
  ]
  return f'each example {", ".join(points)}, with straight lines between'


def _fraction(rule: RuleConfig) -> str:
  """'50 %', or '50 % (web) and 80 % (other groups)'."""
  if not isinstance(rule.fraction, Mapping):
    return f'{100 * rule.fraction:g} %'
  *texts, last = (
    f'{100 * fraction:g} % ({"other groups" if name == OTHER_GROUPS else name})'
    for name, fraction in rule.fraction.items()
  )
  return ' and '.join(filter(None, (', '.join(texts), last)))


def _conditions(rule: RuleConfig) -> Iterator[str]:
  """What else decides: groups, the floor, examples without a score."""
  per = ' '.join(rule.per.split())
  if per:
    yield f'within each {per if per == "source" else f"group of {per}"}'
  if rule.floor:
    budget = ' within this budget' if rule.keep in BUDGET_KINDS else ''
    yield f'with {100 * rule.floor:g} % of what is cut kept at random{budget}'
  if rule.missing == 'lowest' and rule.score:
    lowest = 'count as one value' if rule.keep == 'distinct' else 'rank lowest'
    yield f'where examples without a score {lowest}'


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
    or (rule.keep in BUDGET_KINDS and {*rule.fractions.values()} == {1.0})
    or (rule.keep == 'band' and (rule.low, rule.high) == (0.0, 1.0))
    for rule in rules
  )
