"""Windows of tokens that occur several times, by their hashes. No JAX.

A window is so many consecutive tokens of one document. Hashes have 64 bits:
among n different windows, n^2 / 2^65 pairs have equal hashes by chance.
"""

from typing import NamedTuple

import numba
import numpy as np

from infoprune_jax.runtime.hashing import offset, scramble

_PIECE = 1 << 16  # tokens hashed at once; their hashes stay in the cache
DUPLICATED, FIRST = 1, 2  # bits of a mark


def hashes(tokens: np.ndarray, width: int) -> np.ndarray:
  """A hash of each window, also of those that cross documents.

  Args:
    tokens: [T], ids.
    width: Tokens of a window.

  Returns:
    [max(T - width + 1, 0)] uint64.
  """
  result = np.zeros(max(len(tokens) - width + 1, 0), np.uint64)
  for start in range(0, len(result), _PIECE):
    end = min(start + _PIECE, len(result))
    result[start:end] = _piece(tokens[start : end + width - 1], width)
  return result


def _piece(tokens: np.ndarray, width: int) -> np.ndarray:
  """The same, from hashes of 1, 2, 4, ... tokens."""
  power = scramble(tokens.astype(np.uint64) + offset(0))
  size, count = 1, len(tokens) - width + 1
  result, done = np.zeros(count, np.uint64), 0
  while True:
    if width & size:
      result = _joined(result, power[done : done + count])
      done += size
    if done == width:
      return result
    power = _joined(power[:-size], power[size:])
    size *= 2


def _joined(first: np.ndarray, second: np.ndarray) -> np.ndarray:
  """The hashes of texts from those of their first and second parts."""
  return scramble(first * offset(0) + second)


def starts_of_windows(
  ends: np.ndarray, is_read: np.ndarray, width: int, begin: int, end: int
) -> np.ndarray:
  """Where the windows of documents start, within a range of a shard's tokens.

  Args:
    ends: Where each document ends, [documents] int64, ascending.
    is_read: The documents whose windows are asked for, [documents] bool.
    width: Tokens of a window.
    begin: The first token of the range.
    end: The end of the range.

  Returns:
    [windows] int64, ascending, from `begin`.
  """
  first = np.concatenate([[0], ends[:-1]])
  stop = ends - width + 1
  some = is_read & (stop > first) & (first < end) & (stop > begin)
  change = np.zeros(end - begin + 1, np.int8)
  change[np.maximum(first[some] - begin, 0)] += 1
  change[np.minimum(stop[some], end) - begin] -= 1
  return np.flatnonzero(np.cumsum(change, dtype=np.int8))


class Groups(NamedTuple):
  """Equal values, together."""

  values: np.ndarray  # each once, [groups], ascending
  sizes: np.ndarray  # how often it occurs, [groups] int64
  first: np.ndarray  # where it occurs first, [groups] int64
  order: np.ndarray  # the places of all values, group by group, [values] int64

  def spread(self, of_groups: np.ndarray) -> np.ndarray:
    """A value of each group, for each place, [values]."""
    result = np.zeros(len(self.order), of_groups.dtype)
    result[self.order] = np.repeat(of_groups, self.sizes)
    return result


def groups_of(values: np.ndarray) -> Groups:
  """The groups of equal values of an array, [values]."""
  order = np.argsort(values)
  ordered = values[order]
  is_new = np.ones(len(values), bool)
  np.not_equal(ordered[1:], ordered[:-1], out=is_new[1:])
  starts = np.flatnonzero(is_new)
  values = ordered[starts]
  del ordered
  sizes = np.diff(starts, append=len(order))
  first = np.minimum.reduceat(order, starts) if len(starts) else starts
  return Groups(values, sizes, first, order)


def marks(values: np.ndarray) -> np.ndarray:
  """The bits `DUPLICATED` and `FIRST` of each value, [values] uint8."""
  groups = groups_of(values)
  result = groups.spread((groups.sizes > 1).astype(np.uint8) * DUPLICATED)
  result[groups.first] |= FIRST
  return result


@numba.njit(cache=True, nogil=True)
def add_covered(is_start, ends, width, begin, covered_until, counts):
  """Counts the tokens of each document that lie in some of its windows.

  Args:
    is_start: Whether such a window starts at each token of a range, [T] bool.
    ends: Where each document ends, [documents] int64, ascending.
    width: Tokens of a window.
    begin: The first token of the range.
    covered_until: The end of the last such window before the range.
    counts: [documents] int32, to which the numbers are added.

  Returns:
    The end of the last such window.
  """
  document = np.searchsorted(ends, begin, side='right')
  for place in range(len(is_start)):
    token = begin + place
    while token >= ends[document]:
      document += 1
    if is_start[place]:
      covered_until = token + width
    if token < covered_until:
      counts[document] += 1
  return covered_until
