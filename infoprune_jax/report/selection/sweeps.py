"""Sweeps: arms whose rules differ in one fraction alone."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from infoprune_jax.config.arms import SelectConfig
from infoprune_jax.config.selection import BUDGET_KINDS, RuleConfig
from infoprune_jax.report.selection.inputs import Summaries
from infoprune_jax.report.text import aligned, percent

MIN_ARMS = 2


def of_arms(select: SelectConfig) -> list[dict[str, float]]:
  """The sweeps among the arms that have one phase.

  Returns:
    For each sweep, the fractions of its arms by name, ascending.
  """
  sweeps: dict[tuple[RuleConfig, ...], dict[str, float]] = {}
  for arm in select.trained:
    rules = () if arm in select.branches else select.arms[arm]
    budgets = [n for n, rule in enumerate(rules) if rule.keep in BUDGET_KINDS]
    # The last budget: those before it say what it chooses from.
    for n in budgets[-1:]:
      fraction = rules[n].fraction
      if isinstance(fraction, float):
        whole = dataclasses.replace(rules[n], fraction=1.0)
        key = (*rules[:n], whole, *rules[n + 1 :])
        sweeps.setdefault(key, {})[arm] = fraction
  return [
    dict(sorted(sweep.items(), key=lambda item: item[1]))
    for sweep in sweeps.values()
    if len(sweep) >= MIN_ARMS
  ]


def gather(
  select: SelectConfig,
  summaries: Summaries,
  overlaps: Sequence[Sequence[float]],
) -> list[dict[str, Any]]:
  """What the arms of each sweep keep, beside each other.

  Args:
    select: The arms.
    summaries: By arm, in the same order.
    overlaps: The Jaccard index of the tokens of each pair of arms.

  Returns:
    For each sweep its `name`, and `arms`, ascending by their `fraction`: the
    `name` of each; its `overlap` with the arm before it, None for the first;
    and `thresholds`, the lowest and the highest score that it keeps where it
    throws something away beyond, by 'low' and 'high'. A rule that draws, or
    has a budget for each source, has no threshold.
  """
  names = list(summaries)
  return [
    {
      'name': name_of(list(sweep)),
      'arms': [
        {
          'name': arm,
          'fraction': sweep[arm],
          'overlap': overlaps[names.index(arm)][names.index(before)]
          if before
          else None,
          'thresholds': {
            edge['side']: edge['score']
            for edge in summaries[arm][0]['near']
            if edge['score'] is not None
          },
        }
        for before, arm in zip((None, *sweep), sweep, strict=False)
      ],
    }
    for sweep in of_arms(select)
  ]


def name_of(arms: Sequence[str]) -> str:
  """The name that a sweep's arms share, apart from their fractions.

  >>> name_of(['top_30', 'top_50']), name_of(['half', 'most'])
  ('top', 'half to most')
  """
  shared = {arm.rstrip('_0123456789') for arm in arms}
  return shared.pop() if len(shared) == 1 else f'{arms[0]} to {arms[-1]}'


def only(
  sweeps: Sequence[Mapping[str, Any]], arms: Sequence[str]
) -> list[dict[str, Any]]:
  """Sweeps as `gather` gives them, without all but some arms.

  An arm keeps its overlap with the arm that was before it.
  """
  fewer = [
    {**sweep, 'arms': [arm for arm in sweep['arms'] if arm['name'] in arms]}
    for sweep in sweeps
  ]
  return [sweep for sweep in fewer if len(sweep['arms']) >= MIN_ARMS]


def text(
  sweeps: Sequence[Mapping[str, Any]], overview: Mapping[str, Mapping[str, Any]]
) -> list[str]:
  """A table for the terminal of each sweep.

  Args:
    sweeps: As `gather` gives them.
    overview: As `tables.overview` gives it.
  """
  header = ('arm', 'fraction', 'tokens', 'documents', 'overlap', 'threshold')
  return [
    f'{sweep["name"]}, by fraction; overlap is with the line above:\n'
    + aligned(
      [
        header,
        *(
          (
            arm['name'],
            f'{arm["fraction"]:g}',
            percent(overview[arm['name']]['tokens']),
            percent(overview[arm['name']]['examples']),
            '' if arm['overlap'] is None else percent(arm['overlap']),
            ' to '.join(f'{s:.4g}' for s in arm['thresholds'].values()),
          )
          for arm in sweep['arms']
        ),
      ]
    )
    for sweep in sweeps
  ]
