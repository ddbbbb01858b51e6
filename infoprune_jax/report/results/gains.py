"""How much longer the baseline would train for the loss of an arm."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from infoprune_jax.report.results import statistics
from infoprune_jax.report.results.statistics import HeldoutLosses


def same_texts(losses: HeldoutLosses, texts: HeldoutLosses) -> HeldoutLosses:
  """Those losses that are about the texts of others."""
  wanted = {
    (texts.sources[k], digest)
    for k, digest in zip(texts.source, texts.content_hash, strict=True)
  }
  mask = [
    (losses.sources[k], digest) in wanted
    for k, digest in zip(losses.source, losses.content_hash, strict=True)
  ]
  return losses.where(np.array(mask))


def equivalent_budgets(
  losses: HeldoutLosses,
  runs: Mapping[str, float],
  arms: Sequence[str],
  measure: str,
  num_samples: int,
  seed: int,
) -> dict[str, dict[str, float] | None]:
  """The budget at which the baseline has the loss of each arm.

  Between two budgets, the loss is linear in the logarithm of the budget.
  Nothing is extrapolated: results lie within the budgets that were trained.

  Args:
    losses: Of the arms, and of the baseline at each budget.
    runs: The budgets of the baseline, by the names of its runs in `losses`;
      1.0 is that of all arms.
    arms: Their names.
    measure: One of `statistics.MEASURES`.
    num_samples: Of the bootstrap, of `statistics.difference_draws`.
    seed: Of the bootstrap.

  Returns:
    For each arm `{'estimate', 'low', 'high'}`, a 95 % interval; None for all if
    the baseline is not better at its largest budget than at its smallest.
  """
  runs = dict(sorted(runs.items(), key=lambda item: item[1]))
  baseline = next(name for name, budget in runs.items() if budget == 1.0)
  names = [*runs, *arms]
  to = losses.arms.index(baseline)
  pairs = [(losses.arms.index(name), to) for name in names]
  draws = statistics.difference_draws(losses, pairs, num_samples, seed)
  means = statistics.differences_by_seed(losses, pairs)[measure].mean(axis=1)
  budgets = np.log([*runs.values()])
  count = len(runs)
  if means[count - 1] >= means[0]:
    return dict.fromkeys(arms)
  tail = (1.0 - statistics.CONFIDENCE) / 2.0
  equivalent = {}
  for arm, mean, drawn in zip(
    arms, means[count:], draws[measure][count:], strict=True
  ):
    values = [
      _budget_of(loss, curve, budgets)
      for loss, curve in zip(drawn, draws[measure][:count].T, strict=True)
    ]
    low, high = np.quantile(values, [tail, 1.0 - tail])
    equivalent[arm] = {
      'estimate': _budget_of(mean, means[:count], budgets),
      'low': float(low),
      'high': float(high),
    }
  return equivalent


def _budget_of(loss: float, curve: np.ndarray, budgets: np.ndarray) -> float:
  """The budget at which a curve of losses first falls to a loss.

  Args:
    loss: The loss. If the curve never falls to it, the largest budget is taken.
    curve: [budgets] losses. Those that are no lower than an earlier one are left
      out.
    budgets: [budgets] logarithms, ascending.
  """
  lowest = np.minimum.accumulate(curve)
  falls = np.append(True, lowest[1:] < lowest[:-1])
  budget = np.interp(-loss, -curve[falls], budgets[falls], right=budgets[-1])
  return float(np.exp(budget))


def factors(
  budget: Mapping[str, float], arm: Mapping[str, Any], base: Mapping[str, Any]
) -> dict[str, Any]:
  """By what factor of an arm's FLOPs the baseline trains for its loss.

  Args:
    budget: Of `equivalent_budgets`.
    arm: `training` and `total` FLOPs of the arm.
    base: Those of the baseline at budget 1.0.

  Returns:
    `budget`; and the factor of FLOPs, of `training` alone and of the `total`
    with the reference model and scoring; each as in `equivalent_budgets`.
  """
  overhead = base['total'] - base['training']
  return {
    'budget': dict(budget),
    'training': {
      key: value * base['training'] / max(arm['training'], 1.0)
      for key, value in budget.items()
    },
    'total': {
      key: (value * base['training'] + overhead) / max(arm['total'], 1.0)
      for key, value in budget.items()
    },
  }
