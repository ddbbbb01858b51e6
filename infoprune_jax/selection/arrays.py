"""Arrays with a number per example, which may be larger than memory."""

import itertools
import mmap
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from concurrent import futures
from typing import Any, TypeVar

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
