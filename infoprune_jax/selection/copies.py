"""Finds equal examples by a hash."""

from collections.abc import Iterator

import numpy as np

from infoprune_jax.selection.arrays import steps

# Hashes that are sorted at once: those of all examples may not fit in memory.
_SORTED = 1 << 24


def groups(
  content: np.ndarray, candidates: np.ndarray
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
  """Groups the candidates whose hashes are equal.

  Args:
    content: [examples] uint64, hashes.
    candidates: [examples] bool, which examples to group.

  Yields:
    [n] int64, the positions of some candidates, those of one group next to each
    other; and [groups] int64, where in this array each group begins.
  """
  turns = 1 + len(content) // _SORTED
  for turn in range(turns):
    positions = [
      some.start
      + np.flatnonzero(
        candidates[some] & (content[some] % np.uint64(turns) == turn)
      )
      for some in steps(len(content))
    ]
    here = np.concatenate([np.zeros(0, np.int64), *positions])
    if len(here):
      hashes = content[here]
      order = np.argsort(hashes)
      differs = np.diff(hashes[order]) != 0
      yield here[order], np.append(0, 1 + np.flatnonzero(differs))
