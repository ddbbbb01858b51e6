"""Rules and results in sentences, for a reader who has not seen the code."""

import math
from collections.abc import Sequence
from typing import Any

from infoprune_jax.config.selection import BUDGET_KINDS, RuleConfig
from infoprune_jax.report.statistics import MIN_SEEDS_FOR_INTERVAL

_MINUS = '\u2212'
_FEW_SOURCES = 5
_COSTLIER = 1.005  # times the baseline's FLOPs; below, the table shows 1.00


def signed(value: float, digits: int = 4) -> str:
  """A number with its sign, and a true minus.

  >>> signed(0.25, 2)
  '+0.25'
  """
  text = f'{value:+.{digits}f}'
  return text.replace('-', _MINUS)


def rule_in_words(rule: RuleConfig) -> str:
  """'the top 50 % of tokens by nll_sum / num_tokens, within each source'."""
  fraction = f'{100 * rule.fraction:g} % of {rule.unit}'
  score = rule.score.strip()
  words = {
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
  return words + (f', within each {rule.per}' if rule.per else '')


def _bounds(low: float, high: float) -> str:
  if math.isinf(high):
    return f'of at least {low:g}'
  if math.isinf(low):
    return f'of at most {high:g}'
  return f'from {low:g} to {high:g}'


def rules_in_words(rules: Sequence[RuleConfig]) -> str:
  """An arm's rules, in the order in which they apply."""
  return '; of these, '.join(rule_in_words(rule) for rule in rules)


def keeps_everything(rules: Sequence[RuleConfig]) -> bool:
  """Whether the arm prunes nothing."""
  return all(
    rule.keep in ('all', 'all_plus_reference')
    or (rule.keep in BUDGET_KINDS and rule.fraction == 1.0)
    or (rule.keep == 'band' and (rule.low, rule.high) == (0.0, 1.0))
    for rule in rules
  )


def interval_in_words(difference: dict[str, float], digits: int = 4) -> str:
  """'-0.0120, 95 % interval -0.0150 to -0.0090'."""
  low, high = difference['low'], difference['high']
  return (
    f'{signed(difference["estimate"], digits)}, 95 % interval '
    f'{signed(low, digits)} to {signed(high, digits)}'
  )


def found(
  arms: Sequence[dict[str, Any]], chosen: str, compared: str, baseline: str
) -> list[str]:
  """What was found, in two sentences.

  Args:
    arms: As in `findings.gather`.
    chosen: The arm with the lowest loss on the choose half.
    compared: The arm whose difference is told: the chosen one, or the next
      where the baseline itself was chosen.
    baseline: The arm that differences are taken against.
  """
  if compared == baseline:
    return [
      f'Only one arm, {baseline}, was trained.',
      'There is nothing to compare it with.',
    ]
  by_name = {arm['name']: arm for arm in arms}
  difference = by_name[compared]['difference']['bits_per_byte']
  percent = (
    100 * difference['estimate'] / (by_name[baseline]['bits_per_byte']['mean'])
  )
  told = (
    f'bits per byte differ from those of {baseline} by '
    f'{interval_in_words(difference)} ({signed(percent, 2)} %; below zero is '
    'better)'
  )
  if chosen == baseline:
    first = (
      f'On the half of the held-out texts that serves to choose, none of '
      f'{len(arms)} arms had a lower loss than {baseline} itself; next came '
      f'{compared}, and on the other half its {told}.'
    )
  else:
    first = (
      f'Of {len(arms)} arms, {compared} had the lowest loss on the half of the '
      f'held-out texts that serves to choose; on the other half its {told}.'
    )
  return [first, _verdict(difference, compared, baseline)]


def _verdict(difference: dict[str, float], compared: str, baseline: str) -> str:
  if difference['low'] <= 0.0 <= difference['high']:
    return (
      f'The interval includes zero: this does not show that {compared} and '
      f'{baseline} differ.'
    )
  side = 'better' if difference['high'] < 0.0 else 'worse'
  return (
    f'The interval excludes zero: for these trained models, {compared} is '
    f'{side} than {baseline} on held-out texts like these.'
  )


def at_equal_flops(
  compared: str, longer: str, difference: dict[str, float]
) -> str:
  """What is left of a gain once the FLOPs of its scores are given back."""
  return (
    f'At equal FLOPs in total, against {longer}, which trains on the reference '
    f'split too and for as many steps more as the reference model and scoring '
    f'cost: bits per byte of {compared} differ by {interval_in_words(difference)}. '
    + _verdict(difference, compared, longer)
  )


def cautions(
  compared: dict[str, Any], baseline: str, num_sources: int
) -> list[str]:
  """What the reader must not conclude.

  Args:
    compared: The arm of `found`.
    baseline: The arm that differences are taken against.
    num_sources: Of the texts that the interval resamples.
  """
  by_seed = compared['difference_by_seed']['values']
  words = []
  if compared['name'] != baseline:
    listed = ', '.join(signed(value) for value in by_seed)
    if len(by_seed) < MIN_SEEDS_FOR_INTERVAL:
      words.append(
        f'{_seeds(len(by_seed))} trained (difference by seed: {listed}): how '
        'far the difference would move with other seeds is not known, and the '
        'interval says nothing of it.'
      )
    if min(by_seed) < 0.0 < max(by_seed):
      words.append(f'The seeds disagree in sign ({listed}).')
    over_seeds = compared['difference_by_seed']['interval']
    if over_seeds and over_seeds[0] <= 0.0 <= over_seeds[1]:
      words.append(
        f'Over {len(by_seed)} seeds the 95 % interval of the difference is '
        f'{signed(over_seeds[0])} to {signed(over_seeds[1])}, which includes '
        'zero: other seeds might turn it round.'
      )
    ratio = compared['flops']['ratio']
    if ratio > _COSTLIER and compared['added_tokens'] is None:
      words.append(
        f'Arms are compared at equal training tokens. With the reference model '
        f'and scoring, {compared["name"]} cost {ratio:.2f} times the FLOPs of '
        f'{baseline}.'
      )
    if compared['added_tokens'] is not None:
      words.append(
        f'{compared["name"]} trains on the reference split too and goes '
        f'{compared["step"]:,} steps: it has the FLOPs that other arms have '
        'in total, with the reference model and scoring.'
      )
    if compared['keeps_everything']:
      words.append(
        f'{compared["name"]} prunes nothing: this is no gain of a rule.'
      )
  if num_sources < _FEW_SOURCES:
    words.append(
      f'The held-out texts have {num_sources} '
      f'source{"s" if num_sources > 1 else ""}: the interval says little about '
      'other sources.'
    )
  return words


def _seeds(count: int) -> str:
  return 'Only one seed was' if count == 1 else f'Only {count} seeds were'
