"""What the arms get in tasks, as one table."""

import json
import posixpath
from collections.abc import Mapping
from typing import Any, cast

import numpy as np

from infoprune_jax.config.experiment import Config
from infoprune_jax.report.text import aligned
from infoprune_jax.runtime import files, manifests
from infoprune_jax.runtime.workdir import TASK_RESULTS, task_results_dir


def gather(
  config: Config,
  workdir: str,
  opened: Mapping[tuple[str, int], Mapping[str, Any]],
) -> list[dict[str, Any]]:
  """A row for each number of each task.

  Args:
    config: The experiment.
    workdir: Where its artifacts are.
    opened: The manifests of results, by arm and seed; none without tasks.

  Returns:
    Dicts with `group`, `task`, `metric`, `num_items`, and `arms`: for each arm
    its `values` by seed, their `mean`, and the `stderr` of one of them over the
    items. More seeds do not make it smaller, as all answer the same questions.
    None stands for what is not finite.

  Raises:
    UserError: a file of results is damaged.
  """
  if not opened:
    return []
  results = {run: _read(workdir, *run, opened[run]) for run in opened}
  first = next(iter(results.values()))
  return [
    {
      **{name: one[name] for name in ('group', 'task', 'metric', 'num_items')},
      'arms': [
        _arm([results[arm, seed][number] for seed in config.train.seeds])
        for arm in config.arms
      ],
    }
    for number, one in enumerate(first)
  ]


def _read(
  workdir: str, arm: str, seed: int, manifest: Mapping[str, Any]
) -> list[dict[str, Any]]:
  file = posixpath.join(task_results_dir(workdir, arm, seed), TASK_RESULTS)
  data = files.read_bytes(file)
  manifests.check_content(
    file, data, manifest['files'][TASK_RESULTS], 'evaluate'
  )
  return json.loads(data)['results']


def _arm(by_seed: list[dict[str, Any]]) -> dict[str, Any]:
  values = [one['value'] for one in by_seed]
  errors = [one['stderr'] for one in by_seed if one['stderr'] is not None]
  return {
    'mean': None if None in values else float(np.mean(values)),
    'values': values,
    'stderr': float(np.mean(errors)) if errors else None,
  }


def text(rows: list[dict[str, Any]], arms: list[str]) -> str:
  """The table for the terminal."""
  lines = [('group', 'task', 'metric', 'items', *arms)]
  for row in rows:
    names = (row['group'], row['task'], row['metric'], str(row['num_items']))
    lines.append((*names, *map(_cell, row['arms'])))
  return aligned(cast(Any, lines))


def _cell(arm: dict[str, Any]) -> str:
  if arm['mean'] is None:
    return '-'
  stderr = arm['stderr']
  return f'{arm["mean"]:.4f}' + ('' if stderr is None else f' +- {stderr:.4f}')
