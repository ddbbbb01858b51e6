"""The largest number that passes a test which smaller numbers pass as well."""

from collections.abc import Callable


def largest(passes: Callable[[int], bool], start: int, most: int) -> int:
  """The largest number from 1 to `most` that passes; 0 if none does.

  Moves away from `start` in steps that double until a number differs, then
  bisects. Near `start` it takes two tests.

  Args:
    passes: The test; numbers below one that passes must pass.
    start: A number in [1, most], likely the result.
    most: The last number to try.
  """
  low, high = 0, most + 1  # The first passes, the other does not.
  step, number = 1, start
  while low < number < high:
    if passes(number):
      low, number = number, number + step
    else:
      high, number = number, number - step
    step *= 2
    if low and high <= most:
      break
  while high - low > 1:
    middle = (low + high) // 2
    low, high = (middle, high) if passes(middle) else (low, middle)
  return low
