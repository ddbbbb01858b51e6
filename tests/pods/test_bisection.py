"""The largest number that passes, and how few are tried."""

import pytest

from infoprune_jax.pods import bisection


@pytest.mark.parametrize('limit', [0, 1, 2, 3, 7, 8, 12, 63, 64])
@pytest.mark.parametrize('start', [1, 5, 8, 64])
def test_the_largest_number_that_passes_is_returned(limit, start):
  tried = []

  def passes(number):
    assert 1 <= number <= 64
    tried.append(number)
    return number <= limit

  assert bisection.largest(passes, start, most=64) == limit
  assert len(set(tried)) == len(tried) <= 14


def test_a_good_guess_takes_two_tests():
  tried = []

  def passes(number):
    tried.append(number)
    return number <= 40

  assert bisection.largest(passes, 40, most=64) == 40
  assert tried == [40, 41]
