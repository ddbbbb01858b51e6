"""Ranks with ties, standard scores, and the correlation of ranks."""

import math
from collections.abc import Callable

import numba
import numpy as np

from infoprune_jax.selection.arrays import scratch, side_by_side, slices, steps

_SORTED = 1 << 18  # values that are sorted at once: caches hold them
_SAMPLED = 64  # values sampled for each bucket, to choose its bounds
_BUCKETS = 1 << 15  # of `bucket_ranks`, at least, where there are more values


def mid_ranks(values: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
  """The fraction of values below each value, plus half of those equal to it.

  This is a bucket sort, so the arrays may be larger than memory: each value is
  moved to its bucket, ranked there, and its rank is moved back.

  Args:
    values: [N] float64, without NaN.
    out: [N] float64, for the result; it may be `values`.

  Returns:
    [N] float64 in (0, 1); their mean is a half.

  >>> mid_ranks(np.array([7.0, 2.0, 7.0, 9.0])).tolist()
  [0.5, 0.125, 0.5, 0.875]
  """
  out = scratch(len(values), np.float64) if out is None else out
  tree = _bucket_bounds(values)
  parts = slices(len(values))  # Each thread moves the values of one.
  counts = np.stack(side_by_side(lambda s: _count(values[s], tree), parts))
  sizes = counts.sum(axis=0)
  starts = np.cumsum(sizes) - sizes
  # Within a bucket the values of earlier parts come first, [parts, buckets].
  positions = starts + np.cumsum(counts, axis=0) - counts
  by_bucket = scratch(len(values), np.float64)

  def move_to_buckets(n: int) -> None:
    _scatter(values[parts[n]], tree, positions[n].copy(), by_bucket)

  def rank(bucket: int) -> None:
    here = by_bucket[starts[bucket] : starts[bucket] + sizes[bucket]]
    # The values of an odd bucket are equal, see `_bucket_of`.
    order = np.arange(len(here)) if bucket % 2 else np.argsort(here)
    _rank(here[order], order, starts[bucket], len(values), here)

  def move_back(n: int) -> None:
    _gather(by_bucket, tree, positions[n], values[parts[n]], out[parts[n]])

  side_by_side(move_to_buckets, range(len(parts)))
  side_by_side(rank, range(len(sizes)))
  side_by_side(move_back, range(len(parts)))
  return out


def _bucket_bounds(values: np.ndarray) -> np.ndarray:
  """Samples the bounds between buckets of about `_SORTED` values.

  Each sampled value is a bound, and so is the next larger float: the values
  that equal a sampled one have a bucket of their own, which needs no sort.

  Returns:
    The bounds as a binary search tree, [2**depth] float64: element 1 is the
    root, and the children of element n are 2n and 2n + 1. The tree is filled
    up with NaN, which is above any value.
  """
  sample = values[:: max(1, _SORTED // _SAMPLED)]
  return _bounds_tree(np.unique(np.sort(sample)[_SAMPLED // 2 :: _SAMPLED]))


def _bounds_tree(chosen: np.ndarray) -> np.ndarray:
  """The tree of `_bucket_bounds` from sampled values, which ascend."""
  with np.errstate(over='ignore'):  # The float after the largest is infinity.
    bounds = np.stack([chosen, np.nextafter(chosen, np.inf)], axis=1).ravel()
  size = 1 << len(bounds).bit_length()
  bounds = np.append(bounds, np.full(size - len(bounds), np.nan))
  tree = np.full(size, np.nan)
  for depth in range(size.bit_length() - 1):
    distance = size >> depth
    tree[1 << depth : 2 << depth] = bounds[distance // 2 - 1 :: distance]
  return tree


@numba.njit(inline='always')
def _bucket_of(value, tree):
  """The number of bounds <= value; odd if the value equals a sampled one."""
  node = np.uint64(1)
  # Without a branch that depends on values: it would be mispredicted.
  while node < len(tree):
    node = np.uint64(2) * node + np.uint64(tree[node] <= value)
  return node - np.uint64(len(tree))


@numba.njit(cache=True, nogil=True)
def _count(values, tree):
  """The number of values in each bucket, [buckets] int64."""
  counts = np.zeros(len(tree), np.int64)
  for n in range(len(values)):
    counts[_bucket_of(values[n], tree)] += 1
  return counts


@numba.njit(cache=True, nogil=True)
def _scatter(values, tree, positions, by_bucket):
  """Writes each value to the next position of its bucket."""
  for n in range(len(values)):
    bucket = _bucket_of(values[n], tree)
    by_bucket[positions[bucket]] = values[n]
    positions[bucket] += 1


@numba.njit(cache=True, nogil=True)
def _gather(by_bucket, tree, positions, values, out):
  """Reads for each value what is now where `_scatter` wrote it."""
  for n in range(len(values)):
    bucket = _bucket_of(values[n], tree)
    out[n] = by_bucket[positions[bucket]]
    positions[bucket] += 1


@numba.njit(cache=True, nogil=True)
def _rank(ascending, order, num_below, total, ranks):
  """Writes the mid-ranks of one bucket.

  Args:
    ascending: [n], the values of the bucket in ascending order.
    order: [n], where each of them lies in the bucket.
    num_below: The number of values in lower buckets.
    total: The number of values in all buckets.
    ranks: [n], for the result, in the order of the bucket.
  """
  first = 0
  while first < len(ascending):
    last = first
    while last < len(ascending) and ascending[last] == ascending[first]:
      last += 1
    for n in range(first, last):
      ranks[order[n]] = (num_below + first + num_below + last) / 2.0 / total
    first = last


def bucket_ranks(
  values: np.ndarray, weight: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  """The rank by weight of each of many buckets of values, without a sort.

  Equal values share a bucket, and up to twice `_BUCKETS` examples no other
  values do.

  Args:
    values: [N] float64, without NaN.
    weight: [N] int, not negative.

  Returns:
    A tree of bounds, for `look_up`; and for each bucket the fraction of the
    weight below it, plus half of its own, [buckets] float64.
  """
  tree = _bounds_tree(np.unique(values[:: max(1, len(values) // _BUCKETS)]))

  def add(some: slice) -> np.ndarray:
    sums = np.zeros(len(tree), np.int64)
    _add_weights(values[some], weight[some], tree, sums)
    return sums

  sums = np.sum(side_by_side(add, slices(len(values), len(tree))), axis=0)
  up_to = np.cumsum(sums)
  return tree, (up_to - sums / 2) / max(up_to[-1], 1)


def look_up(
  values: np.ndarray, tree: np.ndarray, table: np.ndarray, out: np.ndarray
) -> None:
  """Writes to `out`, [N], what a table says for the bucket of each value.

  Args:
    values: [N] float64.
    tree: The bounds of the buckets.
    table: [buckets].
    out: [N], for the result.
  """
  side_by_side(
    lambda some: _look_up(values[some], tree, table, out[some]),
    slices(len(values)),
  )


@numba.njit(cache=True, nogil=True)
def _add_weights(values, weight, tree, sums):
  for n in range(len(values)):
    sums[_bucket_of(values[n], tree)] += weight[n]


@numba.njit(cache=True, nogil=True)
def _look_up(values, tree, table, out):
  for n in range(len(values)):
    out[n] = table[_bucket_of(values[n], tree)]


def weighted_mid_ranks(
  values: np.ndarray, weight: np.ndarray, out: np.ndarray | None = None
) -> np.ndarray:
  """The fraction of the weight below each value, plus half of that at it.

  All values are sorted in memory.

  Args:
    values: [N] float64, without NaN.
    weight: [N] float64, finite, not negative.
    out: [N] float64, for the result; it may be `values`.

  Returns:
    [N] float64 in [0, 1]; zeros if nothing weighs anything.

  >>> values, weight = np.array([7.0, 2.0, 7.0, 9.0]), np.array([1.0, 4, 1, 2])
  >>> weighted_mid_ranks(values, weight).tolist()
  [0.625, 0.25, 0.625, 0.875]
  """
  order = np.argsort(values, kind='stable')
  ordered = values[order]
  is_last = np.append(ordered[1:] != ordered[:-1], True)[: len(values)]
  # At the end of each run of equal values.
  up_to = np.cumsum(weight[order])[is_last]
  below = np.append(0.0, up_to)[: len(up_to)]
  total = up_to[-1] if len(up_to) and up_to[-1] else 1.0
  out = scratch(len(values), np.float64) if out is None else out
  run = np.cumsum(is_last) - is_last
  out[order] = ((below + up_to) / 2.0 / total)[run]
  return out


def z_scores(values: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
  """Values less their mean, over their standard deviation.

  Args:
    values: [N] float64; values that are not finite do not change, and do not
      count.
    out: [N] float64, for the result; it may be `values`.

  Returns:
    [N] float64; zeros if all values are the same.

  >>> z_scores(np.array([1.0, 3.0])).tolist()
  [-1.0, 1.0]
  """
  unit = _scale(values)
  mean = _mean(values, lambda x: x * unit)
  deviation = _mean(values, lambda x: (x * unit - mean) ** 2) ** 0.5
  out = scratch(len(values), np.float64) if out is None else out
  for some in steps(len(values)):
    out[some] = (values[some] * unit - mean) / (deviation or 1.0)
  return out


def _scale(values: np.ndarray) -> float:
  """A power of two that brings the largest finite value to about one.

  The squares of scaled values are then finite. Multiplication by a power of two
  does not round.
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
  """The mean of a function of the finite values.

  `math.fsum` does not round between terms, so the mean is the same on every
  machine.
  """
  sums, count = [], 0
  for some in steps(len(values)):
    finite = values[some][np.isfinite(values[some])]
    sums.append(math.fsum(function(finite).tolist()))
    count += len(finite)
  return math.fsum(sums) / max(count, 1)


def spearman(values: np.ndarray) -> np.ndarray:
  """Spearman's rank correlation of each pair of rows; ties get their mid-rank.

  Args:
    values: [R, N].

  Returns:
    [R, R] in [-1, 1]; NaN if a row has only one value.

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
