"""Ranks with ties, standard scores, and the correlation of ranks."""

import math
from collections.abc import Callable

import numpy as np

from infoprune_jax.selection.examples import scratch, steps


def mid_ranks(values: np.ndarray) -> np.ndarray:
  """The share of values below each, and half of those equal to it.

  Args:
    values: [N], without NaN.

  Returns:
    [N] float64 in (0, 1); their mean is a half.

  >>> mid_ranks(np.array([7.0, 2.0, 7.0, 9.0])).tolist()
  [0.5, 0.125, 0.5, 0.875]
  """
  ordered = np.sort(values)
  ranks = scratch(len(values), np.float64)
  for some in steps(len(values)):
    # In order, so that the search goes through memory once.
    order = np.argsort(values[some])
    here = values[some][order]
    below = np.searchsorted(ordered, here, side='left')
    up_to = np.searchsorted(ordered, here, side='right')
    ranks[some.start + order] = (below + up_to) / 2.0 / len(values)
  return ranks


def z_scores(values: np.ndarray) -> np.ndarray:
  """Values less their mean, over their standard deviation.

  Args:
    values: [N] float64; what is not finite stays as it is, and counts for
      nothing.

  Returns:
    [N] float64; zeros where all values are the same.

  >>> z_scores(np.array([1.0, 3.0])).tolist()
  [-1.0, 1.0]
  """
  mean = _mean(values, lambda x: x)
  deviation = _mean(values, lambda x: (x - mean) ** 2) ** 0.5
  result = scratch(len(values), np.float64)
  for some in steps(len(values)):
    result[some] = (values[some] - mean) / (deviation or 1.0)
  return result


def _mean(values: np.ndarray, function: Callable[..., np.ndarray]) -> float:
  """Exact sums: the same on any machine, whatever its vector units."""
  sums, count = [], 0
  for some in steps(len(values)):
    finite = values[some][np.isfinite(values[some])]
    sums.append(math.fsum(function(finite).tolist()))
    count += len(finite)
  return math.fsum(sums) / max(count, 1)


def spearman(values: np.ndarray) -> np.ndarray:
  """Spearman's rank correlation of each pair of rows, ties at their mid-rank.

  Args:
    values: [R, N].

  Returns:
    [R, R] in [-1, 1]; NaN where a row has one value only.

  >>> rows = np.array([[1.0, 2.0, 3.0], [9.0, 4.0, 1.0], [5.0, 5.0, 5.0]])
  >>> spearman(rows)[0].round(6).tolist()
  [1.0, -1.0, nan]
  """
  ranks = np.stack([mid_ranks(row) for row in values]) - 0.5
  length = np.sqrt((ranks**2).sum(axis=1, keepdims=True))
  unit = np.divide(
    ranks, length, out=np.full_like(ranks, np.nan), where=length > 0.0
  )
  return np.clip(unit @ unit.T, -1.0, 1.0)
