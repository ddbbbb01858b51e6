"""How often an epoch uses each example: by a curve over a ranking, rounded."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from infoprune_jax.config.validation import UserError
from infoprune_jax.runtime.hashing import uniform
from infoprune_jax.runtime.progress import logger
from infoprune_jax.selection.arrays import (
  by_group,
  scratch,
  side_by_side,
  steps,
)
from infoprune_jax.selection.ranks import bucket_ranks, look_up

# Added to the seed of a rule. Other rules hash examples by seeds below 2**32:
# by the same hash, what 'random' keeps would all be rounded down.
_ROUNDING = 2**33


def by_curve(
  curve: Sequence[tuple[float, float]],
  values: np.ndarray,
  weight: np.ndarray,
  num_groups: int,
  group: np.ndarray,
) -> np.ndarray:
  """What a curve says for each example, at its rank within its group.

  The rank is the fraction of the group's weight in examples with a lower value,
  plus half of that in examples with the same. It is exact up to 65,536
  examples, and beyond to about one part in 65,536.

  Args:
    curve: Points (rank, repeats); constant after the last one.
    values: [examples] float64, without NaN.
    weight: [examples] int32, not negative.
    num_groups: G.
    group: [examples] int32, below G.

  Returns:
    [examples] float64, not rounded.
  """
  ranks, repeats = zip(*curve, strict=True)
  expected = scratch(len(values), np.float64)
  for members in _members(num_groups, group):
    of_group = values[members]
    tree, rank = bucket_ranks(of_group, weight[members])
    table = np.interp(rank, ranks, repeats)
    if num_groups == 1:
      look_up(of_group, tree, table, expected)
    else:
      here = np.empty(len(of_group))
      look_up(of_group, tree, table, here)
      expected[members] = here
  return expected


def _members(num_groups: int, group: np.ndarray) -> Iterator[Any]:
  """The examples of each group that has any: positions, or a slice of all."""
  if num_groups == 1:
    yield slice(None)
    return
  everything = np.broadcast_to(np.True_, len(group))
  order, starts = by_group(group, everything, np.ones(num_groups, bool))
  for number in range(num_groups):
    if starts[number] < starts[number + 1]:
      yield order[starts[number] : starts[number + 1]]


def rounded(
  expected: np.ndarray,
  index: np.ndarray,
  candidates: np.ndarray,
  most: int,
  seed: int,
) -> np.ndarray:
  """Rounds up or down, as often up as the fraction says, by a seeded hash.

  Args:
    expected: [examples] float64; minus infinity counts as 0.
    index: [examples] int, what is hashed.
    candidates: [examples] bool; the others get 0.
    most: The largest result.
    seed: Of the hash.

  Returns:
    [examples] uint8.
  """
  repeats = scratch(len(expected), np.uint8)

  def fill(some: slice) -> int:
    here = np.maximum(expected[some], 0.0)
    whole = np.floor(here)
    up = uniform(index[some], seed + _ROUNDING) < here - whole
    counts = np.minimum(whole + up, most)
    repeats[some] = counts * candidates[some]
    return int(np.count_nonzero((here > most) & candidates[some]))

  cut = sum(side_by_side(fill, steps(len(expected))))
  if cut:
    logger.warning(
      'select: %d examples would be used more often than max_repeats=%d times '
      'an epoch: they are used %d times',
      cut,
      most,
      most,
    )
  return repeats


def check_counts(values: np.ndarray, expression: str) -> None:
  """Raises `UserError` if an expression gives negative counts.

  Args:
    values: [examples] float64; minus infinity is a missing number.
    expression: What gave them.
  """
  negative = sum(
    side_by_side(
      lambda some: int(
        np.count_nonzero((values[some] < 0.0) & np.isfinite(values[some]))
      ),
      steps(len(values)),
    )
  )
  if negative:
    raise UserError(
      f'The rule expression {expression!r} gives a negative number of repeats '
      f'for {negative} of {len(values)} examples: give 0 for examples to leave '
      "out, for instance with greatest(..., 0), or give keep='repeat' a curve."
    )
