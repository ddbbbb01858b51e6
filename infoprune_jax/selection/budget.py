"""Selects the examples that fit a budget, without a sort.

This is a radix selection: each pass over the keys adds up weights by the next
digit of the keys, and finds the digit at which the budget runs out. A seeded
hash orders equal keys in the same way. All groups are selected at once, each
with its own budget.
"""

import functools
import itertools
import math
from typing import NamedTuple

import numba
import numpy as np

from infoprune_jax.runtime import hashing
from infoprune_jax.selection.arrays import scratch, side_by_side, slices

_BITS = 16  # of a digit; 8 where there are many groups, each with a table
_MANY = 256


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
  bits: np.uint64


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
  bits = _BITS if len(budget) <= _MANY else _BITS // 2
  left = budget.astype(np.int64)
  zeros = np.zeros(len(left), np.uint64)
  last = _Last(zeros, zeros.copy(), np.zeros(len(left), bool))
  shifts = range(64 - bits, -1, -bits)
  for of_key, shift in itertools.product((True, False), shifts):
    if last.complete.all():
      break
    digit = _Digit(of_key, np.uint64(shift), np.uint64(bits))
    sums = _sums_of_digits(ranking, candidate, last, digit)
    _narrow(last, left, sums, digit)
  return last


def _sums_of_digits(
  ranking: Ranking, candidate: np.ndarray, last: _Last, digit: _Digit
) -> np.ndarray:
  """`_add_up_digits` by threads, [G, digits]."""
  *columns, seed = ranking
  arrays = (*columns, candidate)
  shape = len(last.key), 1 << int(digit.bits)
  options = (*last, hashing.offset(seed), *digit)

  def add(some: slice) -> np.ndarray:
    sums = np.zeros(shape, np.int64)
    arguments = [*(array[some] for array in arrays), *options, sums]
    _add_up_digits(*arguments)
    return sums

  return functools.reduce(
    np.add, side_by_side(add, slices(len(candidate), math.prod(shape)))
  )


def _narrow(
  last: _Last, left: np.ndarray, sums: np.ndarray, digit: _Digit
) -> None:
  """Finds the digit of each group at which its budget runs out.

  Args:
    last: The digits before; this one is added to them.
    left: [G] int64, of each budget; what smaller digits weigh is taken off.
    sums: [G, digits] int64, what each digit weighs.
    digit: Which one.
  """
  value = last.key if digit.of_key else last.tie
  for group in np.flatnonzero(~last.complete):
    total = np.cumsum(sums[group])
    position = int(np.searchsorted(total, left[group], side='right'))
    if position < len(total):
      left[group] -= total[position - 1] if position else 0
      value[group] |= np.uint64(position) << digit.shift
      continue
    # All is taken that begins so: this digit and those after are the largest.
    value[group] |= np.uint64((1 << int(digit.shift + digit.bits)) - 1)
    if digit.of_key:
      last.tie[group] = np.uint64(2**64 - 1)
    last.complete[group] = True


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
  last_key,
  last_tie,
  complete,
  salt,
  of_key,
  shift,
  bits,
  sums,
):
  """Adds weights to [G, digits], of what begins as the last example does."""
  mask = (np.uint64(1) << bits) - np.uint64(1)
  above = shift + bits
  for n in range(len(key)):
    g = group[n]
    if not candidate[n] or complete[g]:
      continue
    value, known = key[n], last_key[g]
    if not of_key:
      if value != known:
        continue
      value, known = _scramble(np.uint64(index[n]) + salt), last_tie[g]
    if above < 64 and value >> above != known >> above:
      continue
    sums[g, (value >> shift) & mask] += weight[n]


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
