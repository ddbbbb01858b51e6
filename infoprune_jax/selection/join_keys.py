"""The keys of a join as numbers, and which record has the key of an example.

A key is one or two 64-bit words. Integers are one word, without loss. A text is
two words of a hash, so that no two texts are confused.
"""

from typing import NamedTuple

import numba
import numpy as np
import pyarrow as pa

from infoprune_jax.runtime import hashing

_SHARD_BITS = np.int64(40)  # A shard has fewer documents than 2^40.
_scramble = numba.njit(hashing.scramble, inline='always')


def words(columns: list[pa.Array]) -> np.ndarray:
  """The words of keys.

  Args:
    columns: One or two, of n texts or int64 numbers, without nulls.

  Returns:
    [2, n] uint64 for texts, [1, n] for numbers, as good as random.
  """
  if pa.types.is_string(columns[0].type):
    hashes = np.zeros((2, len(columns[0])), np.uint64)
    for column in columns:
      _hash_texts(*_buffers(column), hashes)
    return hashes
  number = columns[0].to_numpy()
  if len(columns) == 2:
    number = (number << _SHARD_BITS) ^ columns[1].to_numpy()
  return hashing.mix(number, 0)[None]


def _buffers(column: pa.Array) -> tuple[np.ndarray, np.ndarray]:
  """Where texts begin and end, [n + 1] int32, and their bytes."""
  _, ends, data = column.buffers()
  first = column.offset
  offsets = np.frombuffer(ends, np.int32)[first : first + len(column) + 1]
  return offsets, np.frombuffer(data or b'', np.uint8)


@numba.njit(cache=True, nogil=True)
def _hash_texts(offsets, data, hashes):
  """Adds texts to hashes, [2, n], by two polynomials with odd factors."""
  for n in range(len(offsets) - 1):
    one = hashes[0, n] + np.uint64(offsets[n + 1] - offsets[n])
    two = hashes[1, n] + np.uint64(0x51ED270B)
    for m in range(offsets[n], offsets[n + 1]):
      byte = np.uint64(data[m])
      one = (one ^ byte) * np.uint64(0x100000001B3)
      two = (two + byte) * np.uint64(0x9E3779B97F4A7C15)
      two ^= two >> np.uint64(29)
    hashes[0, n] = _scramble(one)
    hashes[1, n] = _scramble(two)


class Matches(NamedTuple):
  """Which record has the key of each example."""

  records: np.ndarray  # [examples] int64
  there: np.ndarray  # [examples] bool: whether any record has it
  duplicate: np.ndarray | None  # the words of a key of two records; or None

  def of_examples(self, chosen: np.ndarray) -> 'Matches':
    """The same of some examples, [examples] bool."""
    return self._replace(records=self.records[chosen], there=self.there[chosen])


def match(examples: np.ndarray, records: np.ndarray) -> Matches:
  """Finds the record of each example. Several examples may share one.

  Args:
    examples: [words, examples], see `words`.
    records: [words, records].
  """
  count = records.shape[1]
  if not count:
    none = np.zeros(examples.shape[1], np.int64)
    return Matches(none, none.astype(bool), None)
  order = np.argsort(records[0], kind='stable')
  ordered = records[:, order]
  again = np.flatnonzero((ordered[:, 1:] == ordered[:, :-1]).all(axis=0))
  duplicate = ordered[:, again[0]] if len(again) else None
  at = np.minimum(np.searchsorted(ordered[0], examples[0]), count - 1)
  there = (ordered[:, at] == examples).all(axis=0)
  if len(records) > 1 and not there.all():
    # The first words of two texts may be equal; their second words are not.
    after = np.minimum(at + 1, count - 1)
    is_after = ~there & (ordered[:, after] == examples).all(axis=0)
    at, there = np.where(is_after, after, at), there | is_after
  return Matches(order[at], there, duplicate)
