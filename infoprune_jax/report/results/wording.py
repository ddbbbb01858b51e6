"""Verdicts, statements and cautions: short sentences about numbers."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from infoprune_jax.report.results.statistics import MIN_SEEDS_FOR_INTERVAL
from infoprune_jax.report.text import interval, signed
from infoprune_jax.runtime.progress import quantity

SEEDS_DISAGREE = 'no conclusion: the seeds disagree'
MAX_TERMINAL_LINES = 10

_FEW_SOURCES = 5
_COSTLIER = 1.005  # times the FLOPs of another arm; below, tables show 1.00
_NAMED = 3  # sources or kinds that a sentence lists
_MEASURED = {
  'macro_bits_per_byte': 'bits per byte, the mean over',
  'bits_per_byte': 'bits per byte over all bytes of',
}

Arm = Mapping[str, Any]  # As in `findings.gather`.
Comparison = Mapping[str, Any]  # As in `findings.gather`.


def verdict(
  difference: Mapping[str, float], by_seed: Sequence[float] = ()
) -> str:
  """By the seeds, then by the interval.

  Args:
    difference: With the bounds `low` and `high`.
    by_seed: The difference of each seed; () if unknown.

  Returns:
    'equal', 'no conclusion: the seeds disagree', 'no difference shown',
    'better' or 'worse'.
  """
  if difference['low'] == difference['high'] == 0.0:
    return 'equal'
  if by_seed and min(by_seed) < 0.0 < max(by_seed):
    return SEEDS_DISAGREE
  if difference['low'] <= 0.0 <= difference['high']:
    return 'no difference shown'
  return 'better' if difference['high'] < 0.0 else 'worse'


def measure(
  key: str, target: Sequence[str], num_sources: int, num_seeds: int
) -> str:
  """What decides: 'bits per byte, the mean over 3 sources (code); 3 seeds'.

  Args:
    key: The measure, one of `statistics.DECISIVE`.
    target: The entries of `report.target`.
    num_sources: That decide.
    num_seeds: Of each arm.
  """
  sources = _count(num_sources, 'source')
  target_words = f' ({", ".join(target)})' if target else ''
  few = ''
  if num_seeds < MIN_SEEDS_FOR_INTERVAL:
    few = (
      f', fewer than {MIN_SEEDS_FOR_INTERVAL}: a difference between rules '
      'cannot be told from one between seeds'
    )
  return (
    f'The measure is {_MEASURED[key]} {sources}{target_words}; '
    f'{_count(num_seeds, "seed")}{few}.'
  )


def statements(compared: Sequence[Comparison]) -> list[str]:
  """The result of one arm: its comparisons, its speed, and its price.

  Args:
    compared: The arm with each of its references.
  """
  lines = [comparison(one) for one in compared]
  first = compared[0]
  lines += [speed(first), price(first)]
  if first['over_all_bytes']['estimate'] != first['decisive']['estimate']:
    lines.append(over_all_bytes(first))
  return [line for line in lines if line]


def terminal(
  told: Sequence[str], notes: Sequence[str], short: Sequence[str]
) -> list[str]:
  """The result in at most `MAX_TERMINAL_LINES` lines.

  Args:
    told: What is found about the first arm of the headline.
    notes: Of the config. They come last.
    short: A line for each other arm; those without room are counted.
  """
  lines = [*told[:MAX_TERMINAL_LINES]]
  end = notes[: MAX_TERMINAL_LINES - len(lines)]
  room = MAX_TERMINAL_LINES - len(lines) - len(end)
  if len(short) > room:
    shown = short[: max(room - 1, 0)]
    more = f'{_count(len(short) - len(shown), "arm")} more: see the page.'
    short = [*shown, more][:room]
  return [*lines, *short, *end]


def choice(
  headline: Sequence[str], chosen: str | None, num_candidates: int
) -> str:
  """How the arms of the headline were chosen, and which texts judge them."""
  if chosen:
    return (
      f'{chosen} is the best of {num_candidates} arms on one half of the '
      'held-out texts. The other half judges it.'
    )
  if not headline:
    return 'Only one arm was trained: there is nothing to compare it with.'
  return f'All held-out texts judge {_listed(headline)}.'


def comparison(compared: Comparison) -> str:
  """One arm against one reference."""
  arm, other = compared['arm'], compared['reference']
  other += _budget(compared)
  by_seed = compared['difference_by_seed']['values']
  few = ''
  if len(by_seed) < MIN_SEEDS_FOR_INTERVAL:
    few = f' with {_count(len(by_seed), "seed")} only'
  said = {
    'better': f'{arm} is better than {other}{few}: ',
    'worse': f'{arm} is worse than {other}{few}: ',
    'equal': f'{arm} equals {other}: ',
    'no difference shown': f'No difference between {arm} and {other} is '
    'shown: ',
    SEEDS_DISAGREE: f'{arm} against {other}: {SEEDS_DISAGREE} '
    f'({", ".join(map(signed, by_seed))}). Their mean is ',
  }[compared['verdict']]
  amount = f'{interval(compared["decisive"])} bits per byte'
  return f'{said}{amount}{_sources_won(compared)}.'


def _budget(compared: Comparison) -> str:
  """What to say of the FLOPs of the reference, if it is the longer arm."""
  if compared['role'] != 'longer':
    return ''
  ratio = 1.0 / compared['flops_ratio']
  if 1.0 / _COSTLIER < ratio < _COSTLIER:
    return ' at equal total FLOPs (reference model and scoring included)'
  return f' ({ratio:.2f} times the total FLOPs of {compared["arm"]})'


def _sources_won(compared: Comparison) -> str:
  """', lower on 11 of 11 sources, 9 with an interval below zero'."""
  wins = compared['wins']
  if wins['sources'] < 2 or compared['verdict'] == 'equal':
    return ''
  return (
    f', lower on {wins["better"]} of {wins["sources"]} sources, '
    f'{wins["surely_better"]} with an interval below zero'
    + (
      f', {wins["surely_worse"]} with one above zero'
      if wins['surely_worse']
      else ''
    )
  )


def speed(compared: Comparison) -> str:
  """When the arm reaches the final loss of its reference; '' if not known."""
  reached = compared['reached']
  if not reached:
    return ''
  arm, other = compared['arm'], compared['reference']
  if reached['step'] is None:
    return f'{arm} does not reach the final loss of {other}.'
  return (
    f'{arm} reaches the final loss of {other} by step {reached["step"]:,} of '
    f'{reached["of"]:,}.'
  )


def price(compared: Comparison) -> str:
  """Where the arm is worse than its reference, from what to what."""
  worse = compared['price']
  arm, other = compared['arm'], compared['reference']
  if not worse:
    return f'The price: no source is worse with {arm} than with {other}.'
  items = [
    f'{item["name"]} from {item["before"]:.3f} to {item["after"]:.3f}'
    for item in worse[:_NAMED]
  ]
  more = len(worse) - _NAMED
  rest = f', and {more} more' if more > 0 else ''
  return (
    f'The price: worse with {arm} than with {other}: {", ".join(items)} bits '
    f'per byte{rest}.'
  )


def over_all_bytes(compared: Comparison) -> str:
  """The difference over all texts, whatever decides."""
  difference = compared['over_all_bytes']
  arm, other = compared['arm'], compared['reference']
  amount = f'{interval(difference)} bits per byte'
  said = difference['verdict']
  if said in ('better', 'worse'):
    by = f'{abs(difference["estimate"]):.4f}'
    low, high = signed(difference['low']), signed(difference['high'])
    return (
      f'Over all bytes {arm} is {said} than {other} by {by} bits per byte '
      f'[{low}, {high}].'
    )
  return f'Over all bytes, {arm} against {other}: {said} ({amount}).'


def levels(num_sources: int, num_seeds: int) -> str:
  """What the intervals cover, and what they lack."""
  covered, lacking = ['held-out texts'], []
  if num_sources > 1:
    covered.append('sources')
  else:
    lacking.append('other sources')
  if num_seeds < MIN_SEEDS_FOR_INTERVAL:
    lacking.append('other seeds')
  else:
    covered.append('seeds')
  line = (
    'Differences are the first arm minus the second. Their 95 % intervals, in '
    f'brackets, cover {_listed(covered)}'
  )
  line += f', but not {_listed(lacking)}.' if lacking else '.'
  if num_sources > 1:
    line += ' Intervals of one source cover its texts alone.'
  return line


def in_short(compared: Sequence[Comparison]) -> str:
  """All comparisons of one arm, in one line."""
  parts = [
    f'{one["reference"]} {signed(one["decisive"]["estimate"])} '
    f'({one["verdict"]})'
    for one in compared
  ]
  return f'{compared[0]["arm"]} against {"; ".join(parts)}.'


def cautions(
  compared: Arm, baseline: str, num_sources: int, num_headline: int = 1
) -> list[str]:
  """The limits of the comparison.

  Args:
    compared: The first arm of the headline.
    baseline: The arm that is subtracted.
    num_sources: Of the texts that the interval resamples.
    num_headline: Arms of the headline.
  """
  lines = []
  if compared['name'] != baseline:
    lines += _of_budget(compared, baseline)
  if num_headline > 1:
    lines.append(
      f'{num_headline} arms were named in advance. By chance alone, about one '
      '95 % interval in twenty excludes zero.'
    )
  if num_sources < _FEW_SOURCES:
    lines.append(
      f'Held-out sources: {num_sources}. The interval says little about other '
      'sources.'
    )
  return lines


def _of_budget(compared: Arm, baseline: str) -> Iterator[str]:
  name, ratio = compared['name'], compared['flops']['ratio']
  if compared['added_tokens'] is not None:
    yield (
      f'{name} also trains on the reference split, for {compared["step"]:,} '
      'steps: its FLOPs equal the total of an arm with a score (training, '
      'reference model and scoring).'
    )
  elif ratio > _COSTLIER:
    scored = 'the reference model and scoring'
    scored = scored if compared['needs_reference'] else 'scoring'
    yield (
      f'Arms are compared at equal training tokens. In total, with {scored}, '
      f'{name} costs {ratio:.2f} times the FLOPs of {baseline}.'
    )
  if compared['shared']:
    yield shared_steps(compared)
  if not compared['cost_is_known']:
    yield (
      'The model that scored was trained elsewhere. What its training cost is '
      'not known, and no arm is charged for it.'
    )
  if compared['keeps_everything']:
    yield f'{name} prunes nothing: the difference is not due to a rule.'


def token_weights(fractions: Mapping[str, float]) -> Iterator[str]:
  """What the arms cost whose loss counts some tokens only; one line or none.

  Args:
    fractions: Of the scored tokens that count, by arm.
  """
  arms = [f'{arm} {100 * f:g} %' for arm, f in fractions.items() if f < 1.0]
  if arms:
    yield (
      'The training loss of an arm with token weights counts the scored tokens '
      f'with the highest excess ({_listed(arms)}). The other tokens cost the '
      'same FLOPs. The total of the arm includes scoring with both models.'
    )


def own_scores(arms: Sequence[Arm]) -> Iterator[str]:
  """What scoring with their own checkpoints costs arms, a line for each."""
  for arm in arms:
    name = arm['name']
    free = '' if arm['needs_reference'] else ', and no reference model'
    for one in arm['own_scores']:
      yield (
        f'{name} is scored with its own checkpoint of step {one["step"]:,}, '
        f'that of the run of {one["arm"]}: another model for each seed. Scoring '
        f'once costs {quantity(one["flops"], "FLOP")}. The total of {name} '
        f'includes it{free}.'
      )


def gain(arm: Arm, baseline: str, budgets: Sequence[float]) -> list[str]:
  """The compute-equivalent gain of an arm, in one line; [] if not asked for."""
  if not budgets or arm['name'] == baseline:
    return []
  ends = f'{budgets[0]:g} and {budgets[-1]:g} times the budget'
  if not arm['gain']:
    return [
      f'The compute-equivalent gain of {arm["name"]} is not known: {baseline} is '
      f'not better at the larger of {ends}.'
    ]
  factors = {
    name: f'{values["estimate"]:.2f} [{values["low"]:.2f}, {values["high"]:.2f}]'
    for name, values in arm['gain'].items()
  }
  estimate = arm['gain']['budget']['estimate']
  bound = 'at least ' if math.isclose(estimate, budgets[-1]) else ''
  bound = 'at most ' if math.isclose(estimate, budgets[0]) else bound
  return [
    f'Compute-equivalent gain: for the loss of {arm["name"]}, {baseline} would '
    f'train with {bound}{factors["training"]} times its FLOPs. With the reference '
    f'model and scoring charged, it is {bound}{factors["total"]} times. {baseline} '
    f'was trained at {ends}, which bounds these numbers.'
  ]


def shared_steps(arm: Arm) -> str:
  """What an arm's runs share with those of another arm."""
  shared = arm['shared']
  return (
    f'{arm["name"]} starts from the run of {shared["arm"]} at step '
    f'{shared["step"]:,}. Its FLOPs include those steps '
    f'({quantity(shared["flops"], "FLOP")}), which {shared["arm"]} has paid '
    'for, too: the experiment has spent them once.'
  )


def _count(number: int, noun: str) -> str:
  return f'{number} {noun}{"" if number == 1 else "s"}'


def _listed(names: Sequence[str]) -> str:
  """'a, b and c'."""
  if len(names) < 2:
    return ''.join(names)
  return f'{", ".join(names[:-1])} and {names[-1]}'
