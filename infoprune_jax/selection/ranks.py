"""Ranks with ties, standard scores, and the correlation of ranks."""

import math
from collections.abc import Callable

import numba
import numpy as np

from infoprune_jax.selection.arrays import scratch, side_by_side, slices, steps

_SORTED = 1 << 18  # values that are sorted at once: caches hold them
_SAMPLED = 64  # values looked at for each bound between those


def mid_ranks(values: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
  """The fraction of values below each, and half of those equal to it.

  A bucket sort: values go to buckets between some of them, which are sorted by
  themselves, and each takes the rank at its place there.

  Args:
    values: [N] float64, without NaN.
    out: [N] float64, for the result; it may be `values`.

  Returns:
    [N] float64 in (0, 1); their mean is a half.

  >>> mid_ranks(np.array([7.0, 2.0, 7.0, 9.0])).tolist()
  [0.5, 0.125, 0.5, 0.875]
  """
  out = scratch(len(values), np.float64) if out is None else out
  tree = _bounds(values)
  each = slices(len(values))

  def counted(some: slice) -> np.ndarray:
    counts = np.zeros(len(tree), np.int64)
    _count(values[some], tree, counts)
    return counts

  counts = np.stack(side_by_side(counted, each))  # [slices, buckets]
  ends = np.cumsum(counts.sum(axis=0))
  starts = ends - counts.sum(axis=0)
  # Of each slice in each bucket: the order of values stays theirs.
  places = starts + np.cumsum(counts, axis=0) - counts
  ranks = scratch(len(values), np.float64)
  side_by_side(
    lambda n: _put(values[each[n]], tree, places[n].copy(), ranks),
    range(len(each)),
  )

  def rank(bucket: int) -> None:
    here = ranks[starts[bucket] : ends[bucket]]
    # What equals a bound needs no order.
    order = np.argsort(here) if bucket % 2 == 0 else np.arange(len(here))
    _rank(here[order], order, starts[bucket], len(values), here)

  side_by_side(rank, range(len(ends)))
  side_by_side(
    lambda n: _get(ranks, tree, places[n], values[each[n]], out[each[n]]),
    range(len(each)),
  )
  return out


def _bounds(values: np.ndarray) -> np.ndarray:
  """Some of the values, about `_SORTED` apart, and what is next to each.

  Returns:
    A search tree, [2**depth]: the root is the first, and the children of n are
    2n and 2n + 1. NaN, which no value reaches, fills it up.
  """
  few = values[:: max(1, _SORTED // _SAMPLED)]
  chosen = np.unique(np.sort(few)[_SAMPLED // 2 :: _SAMPLED])
  with np.errstate(over='ignore'):  # What is next to the last is infinity.
    bounds = np.stack([chosen, np.nextafter(chosen, np.inf)], axis=1).ravel()
  size = 1 << len(bounds).bit_length()
  bounds = np.append(bounds, np.full(size - len(bounds), np.nan))
  tree = np.full(size, np.nan)
  for depth in range(len(bounds).bit_length() - 1):
    apart = size >> depth
    tree[1 << depth : 2 << depth] = bounds[apart // 2 - 1 :: apart]
  return tree


@numba.njit(inline='always')
def _bucket(value, tree):
  """How many bounds are up to a value. Odd: it equals one of those chosen."""
  node = np.uint64(1)
  while node < len(tree):  # No branch that values decide.
    node = np.uint64(2) * node + np.uint64(tree[node] <= value)
  return node - np.uint64(len(tree))


@numba.njit(cache=True, nogil=True)
def _count(values, tree, counts):
  for n in range(len(values)):
    counts[_bucket(values[n], tree)] += 1


@numba.njit(cache=True, nogil=True)
def _put(values, tree, place, ordered):
  """Puts values into their buckets, each at the bucket's next place."""
  for n in range(len(values)):
    bucket = _bucket(values[n], tree)
    ordered[place[bucket]] = values[n]
    place[bucket] += 1


@numba.njit(cache=True, nogil=True)
def _get(ordered, tree, place, values, out):
  """Gets what is where `_put` put each value."""
  for n in range(len(values)):
    bucket = _bucket(values[n], tree)
    out[n] = ordered[place[bucket]]
    place[bucket] += 1


@numba.njit(cache=True, nogil=True)
def _rank(ascending, order, below, total, ranks):
  """The mid-ranks of a bucket that has `below` values below it."""
  first = 0
  while first < len(ascending):
    last = first
    while last < len(ascending) and ascending[last] == ascending[first]:
      last += 1
    for n in range(first, last):
      ranks[order[n]] = (below + first + below + last) / 2.0 / total
    first = last


def z_scores(values: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
  """Values less their mean, over their standard deviation.

  Args:
    values: [N] float64; what is not finite stays as it is, and counts for
      nothing.
    out: [N] float64, for the result; it may be `values`.

  Returns:
    [N] float64; zeros where all values are the same.

  >>> z_scores(np.array([1.0, 3.0])).tolist()
  [-1.0, 1.0]
  """
  unit = _unit(values)
  mean = _mean(values, lambda x: x * unit)
  deviation = _mean(values, lambda x: (x * unit - mean) ** 2) ** 0.5
  out = scratch(len(values), np.float64) if out is None else out
  for some in steps(len(values)):
    out[some] = (values[some] * unit - mean) / (deviation or 1.0)
  return out


def _unit(values: np.ndarray) -> float:
  """A power of two that makes values about one: their squares are finite then.

  To multiply by it rounds nothing.
  """
  largest = max(
    (
      float(np.abs(finite).max())
      for some in steps(len(values))
      if len(finite := values[some][np.isfinite(values[some])])
    ),
    default=0.0,
  )
  exponent = math.frexp(largest)[1]
  return math.ldexp(1.0, min(max(-exponent, -1000), 1000))


def _mean(values: np.ndarray, function: Callable[..., np.ndarray]) -> float:
  """Exact sums: the same on any machine, whatever its vector units."""
  sums, count = [], 0
  for some in steps(len(values)):
    finite = values[some][np.isfinite(values[some])]
    sums.append(math.fsum(function(finite).tolist()))
    count += len(finite)
  return math.fsum(sums) / max(count, 1)


def spearman(values: np.ndarray) -> np.ndarray:
  """Spearman's rank correlation of each pair of rows, ties at their mid-rank.

  Args:
    values: [R, N].

  Returns:
    [R, R] in [-1, 1]; NaN where a row has one value only.

  >>> rows = np.array([[1.0, 2.0, 3.0], [9.0, 4.0, 1.0], [5.0, 5.0, 5.0]])
  >>> spearman(rows)[0].round(6).tolist()
  [1.0, -1.0, nan]
  """
  ranks = np.stack([mid_ranks(row) for row in values]) - 0.5
  length = np.sqrt((ranks**2).sum(axis=1, keepdims=True))
  unit = np.divide(
    ranks, length, out=np.full_like(ranks, np.nan), where=length > 0.0
  )
  return np.clip(unit @ unit.T, -1.0, 1.0)
