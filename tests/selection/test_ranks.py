"""Mid-ranks, and Spearman's correlation."""

import math

import numpy as np
import pytest
from hypothesis import given, strategies as st

from infoprune_jax.selection import arrays, ranks


@given(st.lists(st.integers(-3, 3), min_size=1, max_size=20))
def test_mid_ranks_count_what_is_below(values):
  found = ranks.mid_ranks(np.array(values, float))
  for value, share in zip(values, found, strict=True):
    below = sum(other < value for other in values)
    equal = sum(other == value for other in values)
    assert share == pytest.approx((below + equal / 2) / len(values))
    assert 0.0 < share < 1.0


@given(st.lists(st.tuples(st.integers(-3, 3), st.integers(0, 4)), max_size=20))
def test_weighted_mid_ranks_are_those_of_as_many_copies(pairs):
  values, weight = np.array(pairs, float).reshape(-1, 2).T
  found = ranks.weighted_mid_ranks(values, weight)
  repeated = np.repeat(values, weight.astype(int))
  copies = ranks.mid_ranks(repeated)
  expected = dict(zip(repeated, copies, strict=True))
  for value, share in zip(values, found, strict=True):
    # A value without weight lies between those that have some.
    if value in expected:
      assert share == pytest.approx(expected[value])
    assert 0.0 <= share <= 1.0
  in_place = values.copy()
  assert ranks.weighted_mid_ranks(in_place, weight, out=in_place) is in_place
  assert in_place.tolist() == found.tolist()


@given(
  values=st.lists(
    st.floats(allow_nan=False) | st.sampled_from([-np.inf, -0.0, 0.0, 1.5]),
    max_size=60,
  ),
  threads=st.integers(1, 3),
)
def test_buckets_and_threads_do_not_matter(values, threads):
  values = np.array(values, float)
  expected = ranks.mid_ranks(values)
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(ranks, '_SORTED', 6)
    patch.setattr(ranks, '_SAMPLED', 3)
    patch.setattr(arrays, 'STEP', 5)
    patch.setattr(arrays, '_THREADS', threads)
    assert ranks.mid_ranks(values).tolist() == expected.tolist()
    in_place = ranks.mid_ranks(values, out=values)
  assert in_place is values and values.tolist() == expected.tolist()


def test_spearman_by_hand():
  """Ranks 1, 2.5, 2.5, 4 and 1, 2, 4, 3: 3 over the root of 4.5 x 5."""
  rows = np.array([[10.0, 20.0, 20.0, 30.0], [1.0, 2.0, 9.0, 3.0]])
  found = ranks.spearman(rows)
  assert found[0, 1] == found[1, 0] == pytest.approx(3.0 / math.sqrt(22.5))
  assert np.diag(found).tolist() == pytest.approx([1.0, 1.0])


@given(
  st.lists(
    st.tuples(st.integers(-3, 3), st.integers(-3, 3)), min_size=2, max_size=15
  )
)
def test_spearman_is_the_correlation_of_mid_ranks(pairs):
  rows = np.array(pairs, float).T
  found = ranks.spearman(rows)[0, 1]
  if min(np.ptp(row) for row in rows) == 0.0:
    assert np.isnan(found)
    return
  plain = [
    [sum(o < v for o in row) + sum(o == v for o in row) / 2 for v in row]
    for row in rows
  ]
  assert found == pytest.approx(np.corrcoef(plain)[0, 1])


def test_values_that_square_to_infinity_or_nothing_have_standard_scores():
  for unit in (1e308, 1.0, 1e-200, 5e-324):
    found = ranks.z_scores(np.array([1.0, 0.0, 1.0, 0.0]) * unit)
    assert found.tolist() == [1.0, -1.0, 1.0, -1.0]


def test_minus_infinity_ranks_lowest():
  values = np.array([2.0, -np.inf, 1.0, -np.inf])
  assert ranks.mid_ranks(values).tolist() == [0.875, 0.25, 0.625, 0.25]
