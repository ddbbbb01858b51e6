"""The largest number that passes a test which smaller numbers pass as well."""

from collections.abc import Callable


def largest(passes: Callable[[int], bool], start: int, most: int) -> int:
  """The largest number from 1 to `most` that passes; 0 if none does.

  Doubles or halves from `start` until two numbers differ, then bisects.

  Args:
    passes: The test; numbers below one that passes must pass.
    start: A number in [1, most], likely near the result.
    most: The last number to try.
  """
  if passes(start):
    low, high = start, start
    while low == high and high < most:
      high = min(2 * high, most)
      if passes(high):
        low = high
  else:
    low, high = start, start
    while low == high and low > 1:
      low //= 2
      if not passes(low):
        high = low
    if low == high:
      return 0
  while high - low > 1:
    middle = (low + high) // 2
    low, high = (middle, high) if passes(middle) else (low, middle)
  return low
