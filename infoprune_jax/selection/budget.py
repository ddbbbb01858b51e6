"""Which examples a budget takes, without a sort.

A radix selection: each pass over keys adds up weights by the next digit of the
keys, and finds the digit at which the budget runs out. What ties is told apart
by a seeded hash, in the same way. Of all budgets at once, one for each group.
"""

import functools
import math
from typing import Any, NamedTuple

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


def lowest(
  key: np.ndarray,
  index: np.ndarray,
  weight: np.ndarray,
  group: np.ndarray,
  candidate: np.ndarray,
  budget: np.ndarray,
  seed: int,
) -> np.ndarray:
  """The longest prefix of each group, in the order of keys, that its budget takes.

  Args:
    key: [examples] uint64.
    index: [examples] int64, unlike; its hash decides between equal keys.
    weight: [examples] int32, not negative.
    group: [examples] int32, below G.
    candidate: [examples] bool, what may be taken.
    budget: [G] int64, the most that a prefix may weigh.
    seed: Of the hash.

  Returns:
    [examples] bool.
  """
  bits = _BITS if len(budget) <= _MANY else _BITS // 2
  left = budget.astype(np.int64)
  zeros = np.zeros(len(left), np.uint64)
  last = _Last(zeros, zeros.copy(), np.zeros(len(left), bool))
  salt = hashing.offset(seed)
  for of_key in (True, False):
    for shift in range(64 - bits, -1, -bits):
      if not last.complete.all():
        place = (of_key, np.uint64(shift), np.uint64(bits))
        sums = _sums_of_digits(
          (key, index, weight, group, candidate), (*last, salt, *place)
        )
        _narrow(last, left, sums, *place)
  # What a budget ran out at is not taken: the last is the one before.
  ran_out = ~last.complete
  none = ran_out & (last.key == 0) & (last.tie == 0)
  last.key[ran_out & (last.tie == 0)] -= np.uint64(1)
  last.tie[ran_out] -= np.uint64(1)
  taken = scratch(len(key), np.bool_)

  def take(some: slice) -> None:
    arrays = (key[some], index[some], group[some], candidate[some])
    _take(*arrays, *last, none, salt, taken[some])

  side_by_side(take, slices(len(key)))
  return taken


class _Last(NamedTuple):
  """The last example that each budget takes, as far as its digits are known."""

  key: np.ndarray  # [G] uint64
  tie: np.ndarray  # [G] uint64
  complete: np.ndarray  # [G] bool: all that begins with these digits is taken


def _sums_of_digits(
  arrays: tuple[np.ndarray, ...], options: tuple[Any, ...]
) -> np.ndarray:
  """`_add_up_digits` by threads, [G, digits]."""
  shape = len(options[0]), 1 << int(options[-1])

  def add(some: slice) -> np.ndarray:
    sums = np.zeros(shape, np.int64)
    arguments = [*(array[some] for array in arrays), *options, sums]
    _add_up_digits(*arguments)
    return sums

  return functools.reduce(
    np.add, side_by_side(add, slices(len(arrays[0]), math.prod(shape)))
  )


def _narrow(
  last: _Last,
  left: np.ndarray,
  sums: np.ndarray,
  of_key: bool,
  shift: np.uint64,
  bits: np.uint64,
) -> None:
  """Finds the digit of each group at which its budget runs out."""
  rest = np.uint64((1 << int(shift)) - 1)  # the digits after this one
  ones = np.uint64(2**64 - 1)
  for group in np.flatnonzero(~last.complete):
    total = np.cumsum(sums[group])
    digit = int(np.searchsorted(total, left[group], side='right'))
    value = last.key if of_key else last.tie
    if digit == len(total):
      digits = np.uint64((1 << int(bits)) - 1) << shift
      value[group] |= digits | rest
      last.tie[group] = ones if of_key else last.tie[group]
      last.complete[group] = True
      continue
    left[group] -= total[digit - 1] if digit else 0
    value[group] |= np.uint64(digit) << shift


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
