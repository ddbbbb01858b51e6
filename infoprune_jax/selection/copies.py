"""Which examples are equal to another, by a hash, without sorting all of them."""

from collections.abc import Iterator

import numba
import numpy as np

from infoprune_jax.selection.arrays import scratch, steps

# Bits for each example, to find the few whose hashes are worth comparing.
_SLOTS = 8
# Examples whose hashes are sorted at once.
_SORTED = 1 << 24


def groups(
  content: np.ndarray, candidates: np.ndarray
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
  """Candidates that may be equal to another, each with all that are.

  Those left out are equal to none; some that are yielded are alone, too.

  Args:
    content: [examples] uint64, hashes: all of their bits differ.
    candidates: [examples] bool, which to compare.

  Yields:
    Positions, equal ones next to each other, and at which of these each group
    begins.
  """
  bits = 1 << max(20, (_SLOTS * len(content)).bit_length())
  seen, again = scratch(bits // 8, np.uint8), scratch(bits // 8, np.uint8)
  _mark(content, candidates, seen, again)
  worth = scratch(len(content), np.bool_)
  turns = 1 + _marked(content, candidates, again, worth) // _SORTED
  del seen, again
  for turn in range(turns):
    here = np.concatenate(
      [np.zeros(0, np.int64)]
      + [
        some.start
        + np.flatnonzero(
          worth[some] & (content[some] // np.uint64(bits) % turns == turn)
        )
        for some in steps(len(content))
      ]
    )
    if len(here):
      order = here[np.argsort(content[here])]
      differs = np.diff(content[order]) != 0
      yield order, np.append(0, 1 + np.flatnonzero(differs))


@numba.njit(cache=True)
def _mark(content, candidates, seen, again):
  """Sets the bit of each hash in `seen`, and in `again` where it was set."""
  for n in range(len(content)):
    if candidates[n]:
      slot = content[n] & np.uint64(8 * len(seen) - 1)
      bit = np.uint8(1 << (slot & np.uint64(7)))
      place = slot >> np.uint64(3)
      again[place] |= seen[place] & bit
      seen[place] |= bit


@numba.njit(cache=True)
def _marked(content, candidates, again, worth):
  """Whether the bit of each hash is set in `again`; how many are."""
  count = 0
  for n in range(len(content)):
    if candidates[n]:
      slot = content[n] & np.uint64(8 * len(again) - 1)
      worth[n] = (again[slot >> np.uint64(3)] >> (slot & np.uint64(7))) & 1
      count += worth[n]
  return count
