"""Statistics of a document that need no model. No JAX."""

import numpy as np


def sums_by_document(values: np.ndarray, num_tokens: np.ndarray) -> np.ndarray:
  """Sums consecutive stretches of token values in float64, in token order.

  Args:
    values: [tokens].
    num_tokens: [documents], the length of each stretch; zero gives zero.

  Returns:
    [documents] float64.

  >>> sums_by_document(np.array([1., 2., 4.]), np.array([2, 0, 1])).tolist()
  [3.0, 0.0, 4.0]
  """
  sums = np.zeros(len(num_tokens), np.float64)
  filled = num_tokens > 0
  if filled.any():
    starts = (np.cumsum(num_tokens) - num_tokens)[filled]
    sums[filled] = np.add.reduceat(values.astype(np.float64), starts)
  return sums


def unigram_nll(counts: np.ndarray) -> np.ndarray:
  """-log of each token's frequency, in nats, with one added to every count.

  The logarithm of the inverse word frequency of arXiv 2406.14124, with tokens
  for words.

  Args:
    counts: [V] int64, in the reference split.

  Returns:
    [V] float64; exp(-result) sums to one.
  """
  smoothed = counts.astype(np.float64) + 1.0
  return np.log(smoothed.sum()) - np.log(smoothed)
