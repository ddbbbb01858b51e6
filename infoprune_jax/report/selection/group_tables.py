"""Tables of what arms keep of their groups, and of text of benchmarks."""

from collections.abc import Sequence
from typing import Any

from infoprune_jax.report.selection.inputs import Summaries


def gather(summaries: Summaries) -> dict[str, Any]:
  """The groups of arms that have some, and what is in benchmarks.

  Args:
    summaries: By arm; draws are averaged.

  Returns:
    `groups`: for each `per` of an arm, `arm`, `per`, `num_groups` and `rows`,
    most tokens first: `group`, `examples`, `tokens` and `kept_tokens`.
    `benchmarks`: rows with `benchmark`, '' for all, `examples` and `tokens` of
    the scored split, and for each of `arms` the same of what is kept; [] if
    there are no benchmarks.
  """
  tables = [
    {
      'arm': arm,
      'per': table['per'],
      'num_groups': table['num_groups'],
      'rows': [
        {**row, **_kept([item['groups'][n]['rows'][m] for item in items])}
        for m, row in enumerate(table['rows'])
      ],
    }
    for arm, items in summaries.items()
    for n, table in enumerate(items[0].get('groups', ()))
  ]
  benchmarks = []
  first = next(iter(summaries.values()))[0]
  for n, row in enumerate(first.get('benchmarks', ())):
    arms = {}
    for arm, items in summaries.items():
      kept = _kept([item['benchmarks'][n] for item in items])
      arms[arm] = {
        unit: kept[f'kept_{unit}'] for unit in ('examples', 'tokens')
      }
    sizes = {name: row[name] for name in ('benchmark', 'examples', 'tokens')}
    benchmarks.append({**sizes, 'arms': arms})
  return {'groups': tables, 'benchmarks': benchmarks}


def only(report: dict[str, Any], arms: Sequence[str]) -> dict[str, Any]:
  """The tables of some arms; older reports have none."""
  tables = [t for t in report.get('groups', ()) if t['arm'] in arms]
  return {'groups': tables, 'benchmarks': report.get('benchmarks', [])}


def _kept(draws: Sequence[dict[str, int]]) -> dict[str, int]:
  """What is kept of a group, the mean over draws."""
  return {
    name: round(sum(draw[name] for draw in draws) / len(draws))
    for name in ('kept_examples', 'kept_tokens')
  }
