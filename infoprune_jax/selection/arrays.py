"""Arrays with a number per example, which may be larger than memory."""

import itertools
import mmap
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from concurrent import futures
from typing import Any, TypeVar

import numba
import numpy as np

Item = TypeVar('Item')
Result = TypeVar('Result')

STEP = 1 << 18  # numbers that array programs go through at a time
# Of threads, each with temporary arrays of its own.
_THREADS = min(os.cpu_count() or 1, 16)
_IN_MEMORY = 1 << 24  # bytes
_TABLES = 1 << 24  # numbers in the tables that threads add up in


def scratch(size: int, dtype: Any) -> np.ndarray:
  """An array of zeros, [size]; a large one is in a file that has no name."""
  num_bytes = size * np.dtype(dtype).itemsize
  if num_bytes <= _IN_MEMORY:
    return np.zeros(size, dtype)
  with tempfile.TemporaryFile(prefix='infoprune-') as file:
    # Now: of a disk that is full later, a process dies without a word.
    os.posix_fallocate(file.fileno(), 0, num_bytes)
    # Its space is given back with the array, or with the process.
    return np.frombuffer(mmap.mmap(file.fileno(), num_bytes), dtype)


def steps(size: int) -> Iterator[slice]:
  """Stretches of an array, small enough to compute with."""
  for first in range(0, size, STEP):
    yield slice(first, min(first + STEP, size))


def slices(size: int, table: int = 1) -> list[slice]:
  """A stretch of an array for each thread, of at least a step.

  Args:
    size: Of the array.
    table: Numbers that a thread keeps; of large ones there are fewer threads.
  """
  count = max(1, min(_THREADS, size // STEP, _TABLES // table))
  bounds = [size * n // count for n in range(count + 1)]
  return [slice(*pair) for pair in itertools.pairwise(bounds)]


def side_by_side(
  function: Callable[[Item], Result], items: Iterable[Item]
) -> list[Result]:
  """The results of a function on each item, in order, computed by threads.

  It should spend its time where Python's lock is not held, as array programs
  and compiled functions that say so do.
  """
  items = list(items)
  if len(items) < 2:
    return [function(item) for item in items]
  with futures.ThreadPoolExecutor(_THREADS) as threads:
    return list(threads.map(function, items))


def by_group(
  group: np.ndarray, candidate: np.ndarray, chosen: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  """Sorts the positions of examples by their group.

  Args:
    group: [examples] int32, below G.
    candidate: [examples] bool, which examples to sort.
    chosen: [G] bool, of which groups.

  Returns:
    The positions, ascending within each group; and where each group begins
    among them, and the end, [G + 1] int64.
  """
  starts = np.zeros(len(chosen) + 1, np.int64)
  _count_members(group, candidate, chosen, starts[1:])
  starts = np.cumsum(starts)
  small = len(group) < 2**32
  order = scratch(int(starts[-1]), np.uint32 if small else np.int64)
  _sort_by_group(group, candidate, chosen, starts[:-1].copy(), order)
  return order, starts


@numba.njit(cache=True, nogil=True)
def _count_members(group, candidate, chosen, sizes):
  for n in range(len(group)):
    sizes[group[n]] += candidate[n] and chosen[group[n]]


@numba.njit(cache=True, nogil=True)
def _sort_by_group(group, candidate, chosen, free, order):
  """Writes each position to the next free place of its group."""
  for n in range(len(group)):
    g = group[n]
    if candidate[n] and chosen[g]:
      order[free[g]] = n
      free[g] += 1


def group_slices(starts: np.ndarray) -> list[slice]:
  """A stretch of groups for each thread, of about as many examples each.

  Args:
    starts: [G + 1] int64, as from `by_group`.
  """
  ends = [stretch.stop for stretch in slices(int(starts[-1]))]
  bounds = np.searchsorted(starts, [0, *ends[:-1]]).tolist()
  return [
    slice(*pair) for pair in itertools.pairwise([*bounds, len(starts) - 1])
  ]
