"""Selects the examples that fit a budget, without a sort.

This is a radix selection: each pass over the keys adds up weights by the next
digit of the keys, and finds the digit at which the budget runs out. A seeded
hash orders equal keys in the same way. All groups are selected at once, each
with its own budget. Of many groups, the small ones are selected one at a time.
"""

import functools
import itertools
import math
from typing import NamedTuple

import numba
import numpy as np

from infoprune_jax.runtime import hashing
from infoprune_jax.selection.arrays import (
  by_group,
  group_slices,
  scratch,
  side_by_side,
  slices,
)
from infoprune_jax.selection.computed import Column, Computed
from infoprune_jax.selection.examples import Examples
from infoprune_jax.selection.quickselect import scramble, select_each

_BITS = 16  # of a digit
NUM_DIGITS = 1 << _BITS
# The most groups that have a table of digits. Of more groups those that have a
# smaller fraction of the examples are selected one at a time.
MAX_TABLES = 256
_SORTED = 1 << 24  # examples that are sorted by group at a time, about


def ordered_bits(values: np.ndarray) -> np.ndarray:
  """uint64 keys in the order of float64 values; zeros of both signs tie."""
  bits = (values + 0.0).view(np.int64)
  # All bits of a negative value change, of another its sign alone.
  return (bits ^ (bits >> 63 | np.int64(-(2**63)))).view(np.uint64)


def add_up(
  weight: np.ndarray, group: np.ndarray, candidate: np.ndarray, groups: int
) -> np.ndarray:
  """The weight of each group's candidates, [groups] int64."""

  def add(some: slice) -> np.ndarray:
    total = np.zeros(groups, np.int64)
    _add_up(weight[some], group[some], candidate[some], total)
    return total

  return functools.reduce(
    np.add, side_by_side(add, slices(len(weight), groups))
  )


class Ranking(NamedTuple):
  """Examples, ascending by key; a seeded hash of the index decides ties."""

  key: np.ndarray  # [examples] uint64
  index: np.ndarray  # [examples] int64, unlike
  weight: np.ndarray  # [examples] int32, not negative
  group: np.ndarray  # [examples] int32, below G
  seed: int


class Last(NamedTuple):
  """The last example that each budget takes, as far as its digits are known."""

  key: np.ndarray  # [G] uint64
  tie: np.ndarray  # [G] uint64
  complete: np.ndarray  # [G] bool: all that begins with these digits is taken

  @classmethod
  def first(cls, groups: int) -> 'Last':
    """No digit is known."""
    zeros = np.zeros(groups, np.uint64)
    return cls(zeros, zeros.copy(), np.zeros(groups, bool))


class Digit(NamedTuple):
  """Which bits of an example's key, or of its hash, a pass looks at."""

  of_key: bool
  shift: np.uint64


def lowest(
  examples: Examples, ranking: Computed, candidate: Column, budget: np.ndarray
) -> Computed:
  """The longest prefix of each group, in the order of keys, that its budget takes.

  Args:
    examples: The examples.
    ranking: Their `Ranking`.
    candidate: [examples] bool, what may be taken.
    budget: [G] int64, the most that a prefix may weigh.

  Returns:
    [examples] bool.
  """
  ran_out = _run_out_at(examples, ranking, candidate, budget)
  return Computed(taken, ranking, candidate, ran_out)


def taken(ranking: Ranking, candidate: np.ndarray, ran_out: Last) -> np.ndarray:
  """What comes before the examples at which the budgets run out.

  Args:
    ranking: The examples.
    candidate: [examples] bool, what may be taken.
    ran_out: As from `_run_out_at`.

  Returns:
    [examples] bool.
  """
  last = Last(*(array.copy() for array in ran_out))
  # What a budget ran out at is not taken: the last is the one before.
  ran_out_here = ~last.complete
  none = ran_out_here & (last.key == 0) & (last.tie == 0)
  last.key[ran_out_here & (last.tie == 0)] -= np.uint64(1)
  last.tie[ran_out_here] -= np.uint64(1)
  key, index, _, group, seed = ranking
  salt = hashing.offset(seed)
  is_taken = scratch(len(key), np.bool_)

  def take(some: slice) -> None:
    arrays = (key[some], index[some], group[some], candidate[some])
    _take(*arrays, *last, none, salt, is_taken[some])

  side_by_side(take, slices(len(key)))
  return is_taken


def _run_out_at(
  examples: Examples, ranking: Computed, candidate: Column, budget: np.ndarray
) -> Last:
  """The example at which each budget runs out; the largest where none does."""
  count = len(budget)
  last, numbers = Last.first(count), np.arange(count)
  if count > MAX_TABLES:
    # `by_shard.why_not` lets no more groups than that be in shards.
    [(last, is_small)] = examples.map(
      _select_small_groups, ranking, candidate, budget
    )
    numbers = np.flatnonzero(~is_small)
  left = budget.astype(np.int64)
  for of_key, shift in itertools.product((True, False), range(48, -1, -_BITS)):
    if not len(numbers):
      break
    digit = Digit(of_key, np.uint64(shift))
    sums = examples.sum(
      sums_of_digits, ranking, candidate, last, numbers, digit
    )
    numbers = _narrow(last, left, numbers, sums, digit)
  return last


def _select_small_groups(
  ranking: Ranking, candidate: np.ndarray, budget: np.ndarray
) -> tuple[Last, np.ndarray]:
  """Finds where the budgets of small groups run out, one at a time.

  Args:
    ranking: All examples.
    candidate: [examples] bool.
    budget: [G] int64.

  Returns:
    The last example, of small groups alone; and which are small, [G] bool.
  """
  key, index, weight, group, seed = ranking
  ones = np.broadcast_to(np.int32(1), len(candidate))
  sizes = add_up(ones, group, candidate, len(budget))
  is_small = sizes < -(-len(candidate) // MAX_TABLES)
  last = Last.first(len(budget))
  order, starts = by_group(group, candidate, is_small)
  salt = hashing.offset(seed)

  def sort(some: slice) -> None:
    numbers = np.arange(some.start, some.stop)[is_small[some]]
    select_each(numbers, starts, order, key, index, weight, budget, salt, *last)

  side_by_side(sort, group_slices(starts))
  return last, is_small


def sums_of_digits(
  ranking: Ranking,
  candidate: np.ndarray,
  last: Last,
  numbers: np.ndarray,
  digit: Digit,
) -> np.ndarray:
  """What each digit weighs, of examples that begin as the last one does.

  Args:
    ranking: The examples.
    candidate: [examples] bool.
    last: The digits before, of the last example of each group.
    numbers: [g] int64, the groups.
    digit: Which digit.

  Returns:
    [g, NUM_DIGITS, 2] int64: weights and counts.
  """
  *columns, seed = ranking
  arrays = (*columns, candidate)
  shape = len(numbers), NUM_DIGITS, 2
  row = np.full(len(last.key), -1, np.int32)
  row[numbers] = np.arange(len(numbers))
  options = (row, last.key, last.tie, hashing.offset(seed), *digit)

  def add(some: slice) -> np.ndarray:
    sums = np.zeros(shape, np.int64)
    arguments = [*(array[some] for array in arrays), *options, sums]
    _add_up_digits(*arguments)
    return sums

  return functools.reduce(
    np.add, side_by_side(add, slices(len(candidate), math.prod(shape)))
  )


def _narrow(
  last: Last,
  left: np.ndarray,
  numbers: np.ndarray,
  sums: np.ndarray,
  digit: Digit,
) -> np.ndarray:
  """Finds the digit of each group at which its budget runs out.

  Args:
    last: The digits before; this one is added to them.
    left: [G] int64, of each budget; what smaller digits weigh is taken off.
    numbers: The groups.
    sums: [groups, digits, 2] int64, the weight and the count of each digit.
    digit: Which one.

  Returns:
    The groups that need the next digit.
  """
  value = last.key if digit.of_key else last.tie
  narrowed = []
  for group, (weights, counts) in zip(
    numbers, np.moveaxis(sums, 2, 1), strict=True
  ):
    total = np.cumsum(weights)
    position = int(np.searchsorted(total, left[group], side='right'))
    if position < len(total):
      left[group] -= total[position - 1] if position else 0
      value[group] |= np.uint64(position) << digit.shift
      # One example alone is the one that is not taken, whatever follows.
      if counts[position] > 1:
        narrowed.append(group)
      continue
    # All is taken that begins so: this digit and those after are the largest.
    value[group] |= np.uint64((1 << (int(digit.shift) + _BITS)) - 1)
    if digit.of_key:
      last.tie[group] = np.uint64(2**64 - 1)
    last.complete[group] = True
  return np.array(narrowed, np.int64)


@numba.njit(cache=True, nogil=True)
def _add_up(weight, group, candidate, total):
  for n in range(len(weight)):
    total[group[n]] += weight[n] * candidate[n]


@numba.njit(cache=True, nogil=True)
def _add_up_digits(
  key,
  index,
  weight,
  group,
  candidate,
  row,
  last_key,
  last_tie,
  salt,
  of_key,
  shift,
  sums,
):
  """Adds to [rows, digits, 2] what begins as the last example does."""
  mask = np.uint64((1 << _BITS) - 1)
  above = shift + np.uint64(_BITS)
  for n in range(len(key)):
    g = group[n]
    if not candidate[n] or row[g] < 0:
      continue
    value, known = key[n], last_key[g]
    if not of_key:
      if value != known:
        continue
      value, known = scramble(np.uint64(index[n]) + salt), last_tie[g]
    if above < 64 and value >> above != known >> above:
      continue
    here = sums[row[g], (value >> shift) & mask]
    here[0] += weight[n]
    here[1] += 1


@numba.njit(cache=True, nogil=True)
def _take(
  key, index, group, candidate, last_key, last_tie, complete, none, salt, taken
):
  """Marks what comes no later than the last example of its group."""
  for n in range(len(key)):
    g = group[n]
    if not candidate[n] or none[g]:
      continue
    taken[n] = key[n] < last_key[g] or (
      key[n] == last_key[g]
      and scramble(np.uint64(index[n]) + salt) <= last_tie[g]
    )
