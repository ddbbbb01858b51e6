"""Warnings about an arm: short fixed sentences with numbers."""

import math
from collections.abc import Iterator, Mapping
from typing import Any

from infoprune_jax.config.experiment import Config
from infoprune_jax.config.selection import BUDGET_KINDS
from infoprune_jax.report.text import percent

_MAX_NAMES = 8  # of the sources that are nearly removed
# The fraction kept of a source, over the fraction that the arm keeps in all.
_NEARLY_REMOVED = 0.1
# The fraction kept of one decile of document length, over that of another.
_LENGTH_BIAS = 2.0
_NOISE = 5.0  # standard errors that chance may explain
_ALMOST_THE_SAME = 0.95  # overlap of tokens
_UNSPENT = 0.01  # of all tokens, documents or bytes

Report = Mapping[str, Any]  # As `findings.gather` returns it.
Arm = Mapping[str, Any]  # One of its `arms`.


def of_arm(config: Config, arm: Arm, report: Report) -> list[str]:
  """The warnings about an arm."""
  if arm['same_as']:
    select = config.select
    for name in (arm['name'], arm['same_as']):
      if name in select.branches or name not in select.trained:
        return []  # A phase: the arms differ in others.
    return [
      f'Keeps the same documents as {arm["same_as"]}: training both does not '
      'compare their rules.'
    ]
  return [
    *_nearly_removed(arm, report),
    *_unspent_budget(config, arm, report),
    *_length_bias(arm, report),
    *_almost_the_same(arm, report),
  ]


def _nearly_removed(arm: Arm, report: Report) -> Iterator[str]:
  bound = _NEARLY_REMOVED * arm['kept_tokens']
  rows = [
    (row['tokens'], row['source'], row['arms'][arm['name']])
    for row in report['kept']['sources']
    if row['tokens'] and row['arms'][arm['name']] < bound
  ]
  if not rows:
    return
  rows.sort(key=lambda row: -row[0])
  named = ', '.join(
    f'{" ".join(source.split())} ({percent(kept)})'
    for _, source, kept in rows[:_MAX_NAMES]
  )
  if len(rows) > _MAX_NAMES:
    named += f' and {len(rows) - _MAX_NAMES} more'
  tokens = sum(row[0] for row in rows) / max(report['scored']['tokens'], 1)
  yield (
    f'Nearly removed: {len(rows)} source{"s" * (len(rows) > 1)} with '
    f'{percent(tokens)} of all tokens. The arm keeps less than '
    f'{percent(bound)} of each, a tenth of what the arm keeps in all: {named}.'
  )


def _unspent_budget(config: Config, arm: Arm, report: Report) -> Iterator[str]:
  rule = config.select.arms[arm['name']][-1]
  if rule.keep not in BUDGET_KINDS or isinstance(rule.fraction, Mapping):
    return
  kept = arm['kept'][rule.unit] / max(report['scored'][rule.unit], 1)
  if kept < rule.fraction - _UNSPENT:
    yield (
      f'Keeps {percent(kept)} of {rule.unit}; the budget is '
      f'{100 * rule.fraction:g} %.'
    )


def _length_bias(arm: Arm, report: Report) -> Iterator[str]:
  name = arm['name']
  rows = sorted(report['lengths'], key=lambda row: row['arms'][name])
  low, high = rows[0], rows[-1]
  least, most = low['arms'][name], high['arms'][name]
  count = min(row['examples'] for row in rows)
  noise = _NOISE * math.sqrt(_variance(arm, report) / count)
  if most >= _LENGTH_BIAS * least and most - least > noise:
    yield (
      f'Length bias: keeps {percent(most)} of the documents with {high["low"]} '
      f'to {high["high"]} tokens, but {percent(least)} of those with '
      f'{low["low"]} to {low["high"]} tokens.'
    )


def _variance(arm: Arm, report: Report) -> float:
  """The variance of how often an epoch uses an example."""
  scored = max(report['scored']['examples'], 1)
  mean = arm['kept']['examples'] / scored
  if 'repeats' not in arm:
    return mean * (1.0 - mean)
  squares = sum(row['repeats'] ** 2 * row['examples'] for row in arm['repeats'])
  return max(squares / scored - mean**2, 0.0)


def _almost_the_same(arm: Arm, report: Report) -> Iterator[str]:
  """Earlier arms that keep almost the same."""
  names = [other['name'] for other in report['arms']]
  here = names.index(arm['name'])
  for there, other in enumerate(report['arms'][:here]):
    overlap = report['overlaps']['tokens'][here][there]
    if overlap >= _ALMOST_THE_SAME and not other['same_as']:
      yield (
        f'Keeps almost the same as {other["name"]}: the overlap of their tokens '
        f'is {percent(overlap)}.'
      )


def of_all_arms(report: Report) -> list[str]:
  """The warnings that hold for all arms."""
  lines = []
  if report['folds'] > 1:
    lines.append(
      f'{report["folds"]} reference models scored one fold each, and their '
      'scales differ. Rules that read the NLL rank within each fold; tables '
      'and examples show the NLL itself.'
    )
  scored = report['scored']
  if scored['mean_nll'] >= scored['mean_unigram_nll']:
    lines.append(
      'The reference model predicts no better than token frequencies: '
      f'{scored["mean_nll"]:.2f} nats per token against '
      f'{scored["mean_unigram_nll"]:.2f}. Train it for longer before you use '
      'rules that read its NLL.'
    )
  return lines
