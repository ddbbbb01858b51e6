"""Overlaps of arms, computed in batches of examples."""

import itertools
from collections.abc import Mapping, Sequence

import numpy as np

from infoprune_jax.selection.examples import Examples
from infoprune_jax.selection.keep_set import KeepSet

_BATCH = 1 << 17  # examples, for all keep sets at once
UNITS = ('tokens', 'examples')


def in_common(
  examples: Examples, keep_sets: Sequence[KeepSet]
) -> dict[str, np.ndarray]:
  """The tokens and examples that each pair of keep sets has in common.

  An example that one repeats n times and the other m times counts min(n, m)
  times.

  Returns:
    By unit, [keep sets, keep sets] int64; the diagonal has the totals of each.
  """
  size = len(keep_sets)
  both = {unit: np.zeros((size, size), np.int64) for unit in UNITS}
  tokens = examples.weight('tokens')
  for start in range(0, len(examples), _BATCH):
    batch = slice(start, start + _BATCH)
    index = examples.index[batch]
    kept = np.stack([one.of_documents(index) for one in keep_sets])
    # Counts as sums of ones: from each count to the next larger one.
    counts = np.unique(np.append(kept, 0)).astype(int)
    for below, count in itertools.pairwise(counts.tolist()):
      ones = (kept >= count).astype(float)  # Sums of one batch are exact.
      of_tokens = ((ones * tokens[batch]) @ ones.T).astype(np.int64)
      both['tokens'] += (count - below) * of_tokens
      both['examples'] += (count - below) * (ones @ ones.T).astype(np.int64)
  return both


def how_many(
  examples: Examples, keep_sets: Sequence[KeepSet], marked: np.ndarray
) -> np.ndarray:
  """How many of the marked examples each keep set keeps, [keep sets] int64.

  Args:
    examples: The scored split.
    keep_sets: Of the whole token store.
    marked: [examples] bool or int8.
  """
  counts = np.zeros(len(keep_sets), np.int64)
  for start in range(0, len(examples), _BATCH):
    batch = slice(start, start + _BATCH)
    index = examples.index[batch][marked[batch].astype(bool)]
    counts += [np.count_nonzero(one.of_documents(index)) for one in keep_sets]
  return counts


def jaccard(
  both: np.ndarray, by_seed: Sequence[Sequence[int]]
) -> list[list[float]]:
  """The Jaccard index: what both arms keep, divided by what either keeps.

  Of examples that arms repeat, it is the sum of the smaller counts divided by
  the sum of the larger ones.

  Arms are compared seed by seed, then averaged. The diagonal compares the draws
  of one arm for different seeds; it is 1 for an arm that does not draw.

  Args:
    both: [keep sets, keep sets], as returned by `in_common`.
    by_seed: For each of S seeds, the index of the keep set of each of A arms.

  Returns:
    [A, A].
  """
  each = np.diag(both).astype(float)
  either = each[:, None] + each[None] - both
  fraction = np.divide(
    both, either, out=np.zeros_like(either), where=either > 0
  )
  mean = np.mean([fraction[np.ix_(arms, arms)] for arms in by_seed], axis=0)
  draws = [fraction[a, b] for a, b in itertools.combinations(by_seed, 2)]
  if draws:
    np.fill_diagonal(mean, np.mean(draws, axis=0))
  return mean.tolist()


def of_arms(
  both: Mapping[str, np.ndarray],
  names: Sequence[str],
  selections: Mapping[tuple[str, int], str],
) -> dict[str, list[list[float]]]:
  """`jaccard` of arms, in the order of `selections`, by unit.

  Args:
    both: As returned by `in_common`.
    names: Its keep sets.
    selections: The keep set of each arm and seed.
  """
  number = {name: n for n, name in enumerate(names)}
  seeds = dict.fromkeys(seed for _, seed in selections)
  by_seed = [
    [number[name] for run, name in selections.items() if run[1] == seed]
    for seed in seeds
  ]
  return {unit: jaccard(both[unit], by_seed) for unit in UNITS}
