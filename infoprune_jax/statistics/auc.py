"""The area under the ROC curve: how well a score tells two labels apart."""

import numpy as np

CONFIDENCE = 0.95
# Per label: resampling fewer pages says little about other pages.
MIN_PAGES_FOR_INTERVAL = 5


def auc(values: np.ndarray, label: np.ndarray) -> float:
  """The probability that a page labelled 1 scores above one labelled 0.

  The statistic of Mann and Whitney over the number of pairs; a tie is half a
  win. Above 0.5, pages labelled 1 score higher.

  Args:
    values: [N], without NaN.
    label: [N] bool; both values occur.

  >>> auc(np.array([3.0, 1.0, 1.0, 0.0]), np.array([True, True, False, False]))
  0.875
  """
  _, place = np.unique(values, return_inverse=True)
  return _auc(place[label], place[~label])


def _auc(ones: np.ndarray, zeros: np.ndarray) -> float:
  """The area, from the ranks of pages among the distinct scores."""
  # Counts of places need no sort of each resample.
  num_values = 1 + max(ones.max(), zeros.max())
  of_one = np.bincount(ones, minlength=num_values)
  of_zero = np.bincount(zeros, minlength=num_values)
  # Wins count two, ties one: integers, so that the area is exact.
  below = 2 * np.cumsum(of_zero) - of_zero
  return int(of_one @ below) / (2 * len(ones) * len(zeros))


def interval(
  values: np.ndarray, label: np.ndarray, num_samples: int, seed: int
) -> tuple[float, float] | None:
  """A percentile bootstrap interval over pages, drawn within each label.

  The same pages are drawn for all scores of one seed.

  Args:
    values: [N], without NaN.
    label: [N] bool; both values occur.
    num_samples: Number of draws.
    seed: Seed of the draws.

  Returns:
    The bounds of the middle `CONFIDENCE` of the resampled areas; None if a
    label has fewer than `MIN_PAGES_FOR_INTERVAL` pages.
  """
  _, place = np.unique(values, return_inverse=True)
  ones, zeros = place[label], place[~label]
  if min(len(ones), len(zeros)) < MIN_PAGES_FOR_INTERVAL:
    return None
  rng = np.random.default_rng(seed)
  areas = [
    _auc(
      ones[rng.integers(len(ones), size=len(ones))],
      zeros[rng.integers(len(zeros), size=len(zeros))],
    )
    for _ in range(num_samples)
  ]
  tail = (1.0 - CONFIDENCE) / 2
  low, high = np.quantile(areas, [tail, 1.0 - tail])
  return float(low), float(high)
