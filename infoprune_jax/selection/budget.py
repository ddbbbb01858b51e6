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

_BITS = 16  # of a digit
# The most groups that have a table of digits. Of more groups those that have a
# smaller fraction of the examples are selected one at a time.
_TABLES = 256


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


class _Last(NamedTuple):
  """The last example that each budget takes, as far as its digits are known."""

  key: np.ndarray  # [G] uint64
  tie: np.ndarray  # [G] uint64
  complete: np.ndarray  # [G] bool: all that begins with these digits is taken


class _Digit(NamedTuple):
  """Which bits of an example's key, or of its hash, a pass looks at."""

  of_key: bool
  shift: np.uint64


def lowest(
  ranking: Ranking, candidate: np.ndarray, budget: np.ndarray
) -> np.ndarray:
  """The longest prefix of each group, in the order of keys, that its budget takes.

  Args:
    ranking: The examples.
    candidate: [examples] bool, what may be taken.
    budget: [G] int64, the most that a prefix may weigh.

  Returns:
    [examples] bool.
  """
  last = _run_out_at(ranking, candidate, budget)
  # What a budget ran out at is not taken: the last is the one before.
  ran_out = ~last.complete
  none = ran_out & (last.key == 0) & (last.tie == 0)
  last.key[ran_out & (last.tie == 0)] -= np.uint64(1)
  last.tie[ran_out] -= np.uint64(1)
  key, index, _, group, seed = ranking
  salt = hashing.offset(seed)
  taken = scratch(len(key), np.bool_)

  def take(some: slice) -> None:
    arrays = (key[some], index[some], group[some], candidate[some])
    _take(*arrays, *last, none, salt, taken[some])

  side_by_side(take, slices(len(key)))
  return taken


def _run_out_at(
  ranking: Ranking, candidate: np.ndarray, budget: np.ndarray
) -> _Last:
  """The example at which each budget runs out; the largest where none does."""
  count = len(budget)
  zeros = np.zeros(count, np.uint64)
  last = _Last(zeros, zeros.copy(), np.zeros(count, bool))
  if count > _TABLES:
    ones = np.broadcast_to(np.int32(1), len(candidate))
    sizes = add_up(ones, ranking.group, candidate, count)
    is_small = sizes < -(-len(candidate) // _TABLES)
    _select_groups(ranking, candidate, budget, is_small, last)
    passed = np.flatnonzero(~is_small)
  else:
    passed = np.arange(count)
  _pass_by_digits(ranking, candidate, budget, passed, last)
  return last


def _select_groups(
  ranking: Ranking,
  candidate: np.ndarray,
  budget: np.ndarray,
  chosen: np.ndarray,
  last: _Last,
) -> None:
  """Finds where the budgets of some groups run out, one at a time.

  Args:
    ranking: The examples.
    candidate: [examples] bool.
    budget: [G] int64.
    chosen: [G] bool, which groups.
    last: Of these groups it is set.
  """
  key, index, weight, group, seed = ranking
  order, starts = by_group(group, candidate, chosen)
  salt = hashing.offset(seed)

  def sort(some: slice) -> None:
    numbers = np.arange(some.start, some.stop)[chosen[some]]
    _select_each(
      numbers, starts, order, key, index, weight, budget, salt, *last
    )

  side_by_side(sort, group_slices(starts))


def _pass_by_digits(
  ranking: Ranking,
  candidate: np.ndarray,
  budget: np.ndarray,
  numbers: np.ndarray,
  last: _Last,
) -> None:
  """Finds where the budgets of some groups run out, digit by digit.

  Args:
    ranking: The examples.
    candidate: [examples] bool.
    budget: [G] int64.
    numbers: The groups.
    last: Of these groups it is set.
  """
  left = budget.astype(np.int64)
  open_groups = numbers
  for of_key, shift in itertools.product((True, False), range(48, -1, -_BITS)):
    if not len(open_groups):
      break
    digit = _Digit(of_key, np.uint64(shift))
    sums = _sums_of_digits(ranking, candidate, last, open_groups, digit)
    open_groups = _narrow(last, left, open_groups, sums, digit)


def _sums_of_digits(
  ranking: Ranking,
  candidate: np.ndarray,
  last: _Last,
  numbers: np.ndarray,
  digit: _Digit,
) -> np.ndarray:
  """`_add_up_digits` by threads, [groups, digits, 2]: weights and counts."""
  *columns, seed = ranking
  arrays = (*columns, candidate)
  shape = len(numbers), 1 << _BITS, 2
  row = np.full(len(last.key), -1, np.int32)
  row[numbers] = np.arange(len(numbers))
  options = (row, last.key, last.tie, hashing.offset(seed), *digit)

  def add(some: slice) -> np.ndarray:
    sums = np.zeros(shape, np.int64)
    _add_up_digits(*(array[some] for array in arrays), *options, sums)
    return sums

  return functools.reduce(
    np.add, side_by_side(add, slices(len(candidate), math.prod(shape)))
  )


def _narrow(
  last: _Last,
  left: np.ndarray,
  numbers: np.ndarray,
  sums: np.ndarray,
  digit: _Digit,
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


_scramble = numba.njit(hashing.scramble, inline='always')


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
      value, known = _scramble(np.uint64(index[n]) + salt), last_tie[g]
    if above < 64 and value >> above != known >> above:
      continue
    here = sums[row[g], (value >> shift) & mask]
    here[0] += weight[n]
    here[1] += 1


@numba.njit(cache=True, nogil=True)
def _equal_keys(keys, members, weight, budget):
  """Finds the key at which a budget runs out, by a quickselect.

  Args:
    keys: [n], put into another order.
    members: [n] positions of examples, put into the same order.
    weight: [examples].
    budget: Of all of them.

  Returns:
    The first and the end of the examples with that key, no example if the
    budget takes all; and what smaller keys leave of the budget.
  """
  low, high = 0, len(keys)
  while low < high:
    middle = keys[(low + high) // 2]
    ends = (keys[low], keys[high - 1])
    pivot = max(min(ends[0], ends[1]), min(max(ends[0], ends[1]), middle))
    # Smaller keys are before `below`, larger ones from `above` on.
    below, n, above = low, low, high
    smaller = equal = 0
    while n < above:
      here = weight[members[n]]
      if keys[n] < pivot:
        smaller += here
        _swap(keys, members, below, n)
        below, n = below + 1, n + 1
      elif keys[n] > pivot:
        above -= 1
        _swap(keys, members, n, above)
      else:
        equal, n = equal + here, n + 1
    if below > low and smaller > budget:
      high = below
    elif smaller + equal > budget:
      return below, above, budget - smaller
    else:
      budget, low = budget - smaller - equal, above
  return high, high, budget


@numba.njit(inline='always')
def _swap(keys, members, a, b):
  keys[a], keys[b] = keys[b], keys[a]
  members[a], members[b] = members[b], members[a]


@numba.njit(cache=True, nogil=True)
def _select_each(
  numbers,
  starts,
  order,
  key,
  index,
  weight,
  budget,
  salt,
  last_key,
  last_tie,
  complete,
):
  """Sets the last example of groups, whose positions are in `order`."""
  for g in numbers:
    members = order[starts[g] : starts[g + 1]]
    keys = np.empty(len(members), np.uint64)
    for n in range(len(members)):
      keys[n] = key[members[n]]
    first, end, left = _equal_keys(keys, members, weight, budget[g])
    complete[g] = first == end
    last_key[g] = last_tie[g] = np.uint64(2**64 - 1)
    ties = np.empty(end - first, np.uint64)
    for n in range(first, end):
      ties[n - first] = _scramble(np.uint64(index[members[n]]) + salt)
    for n in np.argsort(ties):
      left -= weight[members[first + n]]
      if left < 0:
        last_key[g], last_tie[g] = keys[first], ties[n]
        break


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
      and _scramble(np.uint64(index[n]) + salt) <= last_tie[g]
    )
