"""The area under the ROC curve, against its definition, and its interval."""

import fractions
import math

import numpy as np
import pytest
from hypothesis import given, strategies as st

from infoprune_jax.statistics import auc

# Few values, so that many tie; and any.
scores = st.integers(-2, 2).map(float) | st.floats(allow_nan=False)
judged = st.lists(st.tuples(scores, st.booleans()), min_size=2, max_size=40)


def arrays(pages: list[tuple[float, bool]]) -> tuple[np.ndarray, np.ndarray]:
  values, label = zip(*pages, strict=True)
  return np.array(values), np.array(label, bool)


def by_pairs(values: np.ndarray, label: np.ndarray) -> fractions.Fraction:
  """Wins of all pairs, one by one; a tie is half of one."""
  pairs = [(one, zero) for one in values[label] for zero in values[~label]]
  wins = sum(2 * (one > zero) + (one == zero) for one, zero in pairs)
  return fractions.Fraction(int(wins), 2 * len(pairs))


@given(pages=judged.filter(lambda p: len({label for _, label in p}) == 2))
def test_it_is_the_share_of_pairs_won(pages):
  values, label = arrays(pages)
  expected = by_pairs(values, label)
  assert auc.auc(values, label) == float(expected)
  assert auc.auc(values, ~label) == float(1 - expected)


@pytest.mark.parametrize(
  'ones, zeros, expected',
  [
    ([2.0, 3.0], [0.0, 1.0], 1.0),
    ([0.0, 1.0], [2.0, 3.0], 0.0),
    ([5.0, 5.0], [5.0], 0.5),
    ([0.0, -0.0], [0.0], 0.5),
    ([1.0, 3.0], [2.0], 0.5),
    ([2.0, 3.0], [2.0], 0.75),
  ],
)
def test_literal_areas(ones, zeros, expected):
  values = np.array([*ones, *zeros])
  label = np.arange(len(values)) < len(ones)
  assert auc.auc(values, label) == expected


def test_counts_beyond_32_bits():
  """Pairs of 200,000 pages with 200,000 do not fit an int32."""
  values = np.repeat([1.0, 0.0], 200_000)
  assert auc.auc(values, values == 1.0) == 1.0


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
  """Two normal distributions one apart: the area is known."""
  truth = 0.5 * (1.0 + math.erf(0.5))
  rng = np.random.default_rng(0)
  label = np.arange(80) < 45
  covered = 0
  for seed in range(200):
    low, high = auc.interval(rng.normal(size=80) + label, label, 200, seed)
    covered += low <= truth <= high
  # 190 of 200 at 95 %, give or take 3; percentile intervals run short.
  assert 180 <= covered <= 198


def test_the_interval_is_the_same_again_and_of_its_seed():
  rng = np.random.default_rng(1)
  label = np.arange(60) < 20
  values = rng.normal(size=60) + 0.3 * label
  first = auc.interval(values, label, 200, seed=3)
  assert auc.interval(values, label, 200, seed=3) == first
  assert auc.interval(values, label, 200, seed=4) != first
  # Only the order of scores counts.
  assert auc.interval(np.exp(values), label, 200, seed=3) == first
  low, high = first
  assert low < auc.auc(values, label) < high


def test_the_interval_draws_within_each_label():
  """However few one label has, all resamples have it."""
  label = np.arange(1000) < auc.MIN_PAGES_FOR_INTERVAL
  assert auc.interval(label.astype(float), label, 50, seed=0) == (1.0, 1.0)
  label[0] = False
  assert auc.interval(label.astype(float), label, 50, seed=0) is None
