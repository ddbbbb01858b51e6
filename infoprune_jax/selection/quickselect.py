"""Compiled: finds the example at which the budget of a small group runs out."""

import numba
import numpy as np

from infoprune_jax.runtime import hashing

scramble = numba.njit(hashing.scramble, inline='always')


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
def select_each(
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
      ties[n - first] = scramble(np.uint64(index[members[n]]) + salt)
    for n in np.argsort(ties):
      left -= weight[members[first + n]]
      if left < 0:
        last_key[g], last_tie[g] = keys[first], ties[n]
        break
