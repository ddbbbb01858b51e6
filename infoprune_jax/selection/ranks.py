"""Ranks with ties, and the correlation of ranks."""

import numpy as np


def mid_ranks(values: np.ndarray) -> np.ndarray:
  """The share of values below each, and half of those equal to it.

  Args:
    values: [N], without NaN.

  Returns:
    [N] float64 in (0, 1); their mean is a half.

  >>> mid_ranks(np.array([7.0, 2.0, 7.0, 9.0])).tolist()
  [0.5, 0.125, 0.5, 0.875]
  """
  _, inverse, counts = np.unique(
    values, return_inverse=True, return_counts=True
  )
  below = np.cumsum(counts) - counts
  return (below + counts / 2.0)[inverse] / max(len(values), 1)


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
