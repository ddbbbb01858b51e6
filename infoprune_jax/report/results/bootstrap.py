"""Sums over resampled texts of resampled sources."""

import numpy as np

_DRAWS_AT_ONCE = 2**22  # bounds the memory of the bootstrap


def resampled_sums(
  values: np.ndarray, starts: np.ndarray, num_samples: int, seed: int
) -> np.ndarray:
  """Sums over resampled texts of resampled sources.

  Args:
    values: [N, F] of texts, sorted by source.
    starts: [K] index of the first text of each source.
    num_samples: B.
    seed: Of the draws.

  Returns:
    [B, K, F]: for each sample, the sums of each of the K sources it drew.
  """
  rng = np.random.default_rng(seed)
  num_sources = len(starts)
  drawn = rng.integers(num_sources, size=num_samples * num_sources)
  sums = np.empty((len(drawn), values.shape[1]))
  # Each time a source is drawn, its texts are drawn again.
  for k, block in enumerate(np.split(values, starts[1:])):
    slots = np.flatnonzero(drawn == k)
    sums[slots] = sums_of_draws(block, len(slots), rng)
  return sums.reshape(num_samples, num_sources, -1)


def sums_of_draws(
  block: np.ndarray, num_samples: int, rng: np.random.Generator
) -> np.ndarray:
  """[B, F]: each sums n rows of `block`, [n, F], drawn with replacement."""
  size = len(block)
  sums = np.empty((num_samples, block.shape[1]))
  at_once = max(1, _DRAWS_AT_ONCE // size)
  for first in range(0, num_samples, at_once):
    count = min(at_once, num_samples - first)
    picks = rng.integers(size, size=(count, size))
    picks += size * np.arange(count)[:, None]
    counts = np.bincount(picks.ravel(), minlength=picks.size)
    counts = counts.reshape(picks.shape).astype(np.float64)
    sums[first : first + count] = counts @ block
  return sums
