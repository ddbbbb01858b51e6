"""Verdicts and cautions: short sentences about numbers of the tables."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from infoprune_jax.report.results.statistics import MIN_SEEDS_FOR_INTERVAL
from infoprune_jax.report.text import interval, signed

_FEW_SOURCES = 5
_COSTLIER = 1.005  # times the baseline's FLOPs; below, the table shows 1.00

Arm = Mapping[str, Any]  # As in `findings.gather`.


def verdict(difference: Mapping[str, float]) -> str:
  """By the interval: 'better', 'worse', 'no difference shown' or 'equal'."""
  if difference['low'] == difference['high'] == 0.0:
    return 'equal'
  if difference['low'] <= 0.0 <= difference['high']:
    return 'no difference shown'
  return 'better' if difference['high'] < 0.0 else 'worse'


def comparison(
  arms: Sequence[Arm], chosen: str, compared: str, baseline: str
) -> list[str]:
  """The main result in short sentences.

  Args:
    arms: All arms.
    chosen: The arm with the lowest loss on the choose half.
    compared: The arm that is compared with the baseline: the chosen one, or
      the next one if the baseline itself was chosen.
    baseline: The arm that is subtracted.
  """
  if compared == baseline:
    return [
      f'Only one arm, {baseline}, was trained.',
      'There is nothing to compare it with.',
    ]
  by_name = {arm['name']: arm for arm in arms}
  difference = by_name[compared]['difference']['bits_per_byte']
  mean = by_name[baseline]['bits_per_byte']['mean']
  relative = signed(100 * difference['estimate'] / mean, 2)
  first = (
    f'{chosen} has the lowest loss of {len(arms)} arms on the choose half.'
  )
  if chosen == baseline:
    first = (
      f'On the choose half no arm has a lower loss than {baseline}; {compared} '
      'comes next.'
    )
  return [first, _compare(compared, baseline, difference, relative)]


def equal_flops(
  compared: str, longer: str, difference: Mapping[str, float]
) -> str:
  """The comparison at equal total FLOPs, the cost of scoring included."""
  return (
    'At equal total FLOPs (reference model and scoring included): '
    f'{_compare(compared, longer, difference)}'
  )


def _compare(
  compared: str,
  other: str,
  difference: Mapping[str, float],
  relative: str = '',
) -> str:
  said = {
    'better': f'{compared} is better than {other}',
    'worse': f'{compared} is worse than {other}',
    'equal': f'{compared} equals {other}',
    'no difference shown': f'no difference to {other} is shown',
  }[verdict(difference)]
  percent = f', {relative} %' if relative else ''
  return (
    f'{compared} minus {other} on the report half: {interval(difference)} bits '
    f'per byte (95 % interval{percent}). For these trained models, {said}.'
  )


def cautions(compared: Arm, baseline: str, num_sources: int) -> list[str]:
  """The limits of the comparison.

  Args:
    compared: The arm of `comparison`.
    baseline: The arm that is subtracted.
    num_sources: Of the texts that the interval resamples.
  """
  lines = []
  if compared['name'] != baseline:
    lines += [*_of_seeds(compared), *_of_budget(compared, baseline)]
  if num_sources < _FEW_SOURCES:
    lines.append(
      f'Held-out sources: {num_sources}. The interval says little about other '
      'sources.'
    )
  return lines


def _of_seeds(compared: Arm) -> Iterator[str]:
  spread = compared['difference_by_seed']
  by_seed = ', '.join(map(signed, spread['values']))
  if len(spread['values']) < MIN_SEEDS_FOR_INTERVAL:
    yield (
      f'Seeds: {len(spread["values"])} (difference by seed: {by_seed}). At '
      'this number of seeds, no difference between rules can be told from a '
      'difference between seeds; the interval does not cover the seeds.'
    )
  if min(spread['values']) < 0.0 < max(spread['values']):
    yield f'The seeds disagree in sign ({by_seed}).'
  if spread['interval']:
    low, high = spread['interval']
    if low <= 0.0 <= high:
      yield (
        f'The 95 % interval over {len(spread["values"])} seeds is '
        f'[{signed(low)}, {signed(high)}]. It includes zero: with other seeds '
        'the sign may change.'
      )


def _of_budget(compared: Arm, baseline: str) -> Iterator[str]:
  name, ratio = compared['name'], compared['flops']['ratio']
  if compared['added_tokens'] is not None:
    yield (
      f'{name} also trains on the reference split, for {compared["step"]:,} '
      'steps: its FLOPs equal the total of an arm with a score (training, '
      'reference model and scoring).'
    )
  elif ratio > _COSTLIER:
    yield (
      f'Arms are compared at equal training tokens. In total, with the '
      f'reference model and scoring, {name} costs {ratio:.2f} times the FLOPs '
      f'of {baseline}.'
    )
  if compared['keeps_everything']:
    yield f'{name} prunes nothing: the difference is not due to a rule.'
