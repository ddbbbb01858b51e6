"""Losses with and without held-out texts that have near-copies in other text."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from infoprune_jax.config.experiment import Config
from infoprune_jax.report.results import comparisons, statistics
from infoprune_jax.report.results.comparisons import Question
from infoprune_jax.report.results.inputs import Upstream
from infoprune_jax.report.results.statistics import HeldoutLosses
from infoprune_jax.report.text import aligned, interval
from infoprune_jax.runtime.workdir import heldout_copies_dir
from infoprune_jax.statistics import heldout_copies


def gather(
  config: Config,
  workdir: str,
  upstream: Upstream,
  question: Question,
) -> dict[str, Any] | None:
  """The losses of each arm on all texts that decide, and on those without.

  Args:
    config: The experiment.
    workdir: Where its artifacts are.
    upstream: With the manifest of the table of near-copies.
    question: With the texts that decide.

  Returns:
    None without a table. Otherwise `documents` and `with_near_copy`, of the
    held-out split; `texts` that decide, and `texts_with_near_copy` of them; and
    `arms`, for each arm its `name`, `all` and `without`. These have a number
    for each of `statistics.MEASURES`, the mean over seeds, and `difference`,
    `{'estimate', 'low', 'high'}` to the baseline in the measure that decides.
    `without` is None if no text is left.
  """
  opened: Any = upstream.heldout_copies
  if opened is None:
    return None
  target = question.target
  copied = heldout_copies.copied_texts(heldout_copies_dir(workdir))
  is_copied = np.isin(target.content_hash, copied)
  every = _losses(config, target, question.measure)
  without: list[Any] = [None] * len(every)
  if not is_copied.all():
    without = _losses(config, target.where(~is_copied), question.measure)
  return {
    'documents': opened['num_examples'],
    'with_near_copy': opened['with_near_copy'],
    'texts': len(is_copied),
    'texts_with_near_copy': int(is_copied.sum()),
    'arms': [
      {'name': name, 'all': first, 'without': second}
      for name, first, second in zip(target.arms, every, without, strict=True)
    ],
  }


def _losses(
  config: Config, losses: HeldoutLosses, measure: str
) -> list[dict[str, Any]]:
  """The losses of each arm on some texts, as in `gather`."""
  means = {
    name: values.mean(axis=1)
    for name, values in statistics.losses_by_seed(losses).items()
  }
  baseline = losses.arms.index(config.report.baseline)
  differences = statistics.difference_intervals(
    losses,
    [(arm, baseline) for arm in range(len(losses.arms))],
    config.report.bootstrap_samples,
    comparisons.SEED,
  )[measure]
  return [
    {
      **{name: float(values[arm]) for name, values in means.items()},
      'difference': {
        key: float(values[arm]) for key, values in differences.items()
      },
    }
    for arm in range(len(losses.arms))
  ]


def cautions(copies: Mapping[str, Any] | None) -> list[str]:
  """The caution that belongs below the result, if there is one.

  Args:
    copies: The result of `gather`.
  """
  if not copies or not copies['with_near_copy']:
    return []
  return [
    f'{copies["with_near_copy"]:,} of {copies["documents"]:,} held-out documents '
    'have near-copies in text that is not held out. Losses without them are '
    'in a table of their own.'
  ]


def text(copies: Mapping[str, Any], measure: str) -> str:
  """The table for the terminal, in the measure that decides."""
  lines = [('arm', 'all', 'without', 'difference', 'difference without')]
  for arm in copies['arms']:
    every, without = arm['all'], arm['without']
    lines.append(
      (
        arm['name'],
        f'{every[measure]:.4f}',
        f'{without[measure]:.4f}' if without else '-',
        interval(every['difference']),
        interval(without['difference']) if without else '-',
      )
    )
  return aligned(lines)
