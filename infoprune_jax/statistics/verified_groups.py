"""Groups of near-duplicates whose pairs are compared again, shingle by shingle."""

import collections
from collections.abc import Callable, Sequence

import numpy as np

from infoprune_jax.runtime.progress import Progress


def buckets(keys: np.ndarray) -> np.ndarray:
  """Which documents have equal keys in a band.

  Args:
    keys: [documents] uint64.

  Returns:
    [documents] int32, equal numbers for equal keys; -1 for a key of one document.
  """
  _, number, count = np.unique(keys, return_inverse=True, return_counts=True)
  return np.where(count[number] > 1, number, -1).astype(np.int32)


def jaccard(first: np.ndarray, second: np.ndarray, least: float) -> float:
  """The fraction of the shingles of two documents that both have.

  Args:
    first: Distinct shingles in ascending order, [n] uint32.
    second: Of the other document, likewise.
    least: A fraction. Below it, 0.0 may stand for the true one.
  """
  few, many = sorted((len(first), len(second)))
  if not many:
    return 1.0
  if few < least * many:  # The fraction is at most few / many.
    return 0.0
  common = len(np.intersect1d(first, second, assume_unique=True))
  return common / (few + many - common)


class Groups:
  """Puts documents into groups, one after another in the order of the store.

  A document is compared with those before it that share the key of a band. In
  a 'star' it joins the earliest first document of a group that is similar
  enough, or begins a group. So each is similar to the first of its group. If
  groups are 'connected', it joins the groups of all documents that are similar
  enough, and these become one.
  """

  def __init__(
    self,
    shingles_of: Callable[[int], np.ndarray],
    min_jaccard: float,
    is_star: bool,
  ):
    """Begins without groups.

    Args:
      shingles_of: The distinct shingles of a document in ascending order, [n]
        uint32.
      min_jaccard: From which fraction of common shingles two are similar enough.
      is_star: Whether groups are stars.
    """
    self._shingles_of, self._min_jaccard = shingles_of, min_jaccard
    self._is_star = is_star
    self._parent: dict[int, int] = {}  # of documents that joined another
    self.compared = 0  # pairs

  def find(
    self, by_band: Sequence[np.ndarray], first_copy: np.ndarray, name: str
  ) -> np.ndarray:
    """The first document of each document's group.

    Args:
      by_band: For each band its `buckets`.
      first_copy: [documents] int64, the first document with the same text. It
        decides for its copies.
      name: Of the work, for its progress.

    Returns:
      [documents] int64.
    """
    numbers = np.arange(len(first_copy))
    shared = np.zeros(len(first_copy), bool)
    for bucket in by_band:
      shared |= bucket >= 0
    to_do = np.flatnonzero(shared & (first_copy == numbers))
    progress = Progress(name, 'documents', len(to_do))
    members = [collections.defaultdict(list) for _ in by_band]
    for document in to_do.tolist():
      beside = [
        in_band[number]
        for in_band, bucket in zip(members, by_band, strict=True)
        if (number := int(bucket[document])) >= 0
      ]
      candidates = sorted(set().union(*beside))
      if not self._join(document, candidates) or not self._is_star:
        for some in beside:
          some.append(document)
      progress.add(1)
    progress.finish(f'{self.compared} pairs compared')
    first = numbers.copy()
    for document in self._parent:
      first[document] = self._first(document)
    return first[first_copy]

  def _join(self, document: int, candidates: list[int]) -> bool:
    """Joins a document to what is similar enough; whether anything was."""
    joined = False
    for candidate in candidates:
      one, other = self._first(document), self._first(candidate)
      if one == other or not self._similar(document, candidate):
        continue
      self._parent[max(one, other)] = min(one, other)
      joined = True
      if self._is_star:
        break
    return joined

  def _similar(self, document: int, candidate: int) -> bool:
    self.compared += 1
    least = self._min_jaccard
    both = self._shingles_of(document), self._shingles_of(candidate)
    return jaccard(*both, least) >= least

  def _first(self, document: int) -> int:
    """The first document of the group so far."""
    first = document
    while first in self._parent:
      first = self._parent[first]
    while document != first:  # Shortens the way for the next time.
      following = self._parent[document]
      self._parent[document] = first
      document = following
    return first
