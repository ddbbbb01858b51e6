"""What two arms both keep, a step of the examples at a time."""

import itertools
from collections.abc import Mapping, Sequence

import numpy as np

from infoprune_jax.selection.examples import Examples
from infoprune_jax.selection.keep_set import KeepSet

_STEP = 1 << 17  # examples, of all keep sets at once
UNITS = ('tokens', 'examples')


def in_common(
  examples: Examples, keep_sets: Sequence[KeepSet]
) -> dict[str, np.ndarray]:
  """What each pair of keep sets both keeps of the examples.

  Returns:
    By unit, [keep sets, keep sets] int64; on the diagonal what each keeps.
  """
  found = {
    unit: np.zeros((len(keep_sets), len(keep_sets)), np.int64) for unit in UNITS
  }
  tokens = examples.weight('tokens')
  for first in range(0, len(examples), _STEP):
    some = slice(first, first + _STEP)
    index = examples.index[some]
    kept = np.stack([keep_set.holds(index) for keep_set in keep_sets])
    ones = kept.astype(float)  # Sums of a step are exact.
    found['tokens'] += ((ones * tokens[some]) @ ones.T).astype(np.int64)
    found['examples'] += (ones @ ones.T).astype(np.int64)
  return found


def how_many(
  examples: Examples, keep_sets: Sequence[KeepSet], marked: np.ndarray
) -> np.ndarray:
  """How many of the marked examples each keep set keeps, [keep sets] int64.

  Args:
    examples: The scored split.
    keep_sets: Of all that is in the store.
    marked: [examples] bool or int8.
  """
  found = np.zeros(len(keep_sets), np.int64)
  for first in range(0, len(examples), _STEP):
    some = slice(first, first + _STEP)
    index = examples.index[some][marked[some].astype(bool)]
    found += [np.count_nonzero(keep_set.holds(index)) for keep_set in keep_sets]
  return found


def jaccard(
  both: np.ndarray, by_seed: Sequence[Sequence[int]]
) -> list[list[float]]:
  """What two arms both keep, over what either keeps.

  Arms are compared seed by seed, then averaged. On the diagonal are draws of
  one arm for different seeds, so 1 for an arm that draws nothing.

  Args:
    both: [keep sets, keep sets], as `in_common` gives it.
    by_seed: For each of S seeds, the number of each of A arms' keep set.

  Returns:
    [A, A].
  """
  each = np.diag(both).astype(float)
  either = each[:, None] + each[None] - both
  fraction = np.divide(
    both, either, out=np.zeros_like(either), where=either > 0
  )
  mean = np.mean([fraction[np.ix_(some, some)] for some in by_seed], axis=0)
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
    both: As `in_common` gives it.
    names: Of its keep sets.
    selections: The keep set of each arm and seed.
  """
  number = {name: n for n, name in enumerate(names)}
  seeds = dict.fromkeys(seed for _, seed in selections)
  by_seed = [
    [number[name] for run, name in selections.items() if run[1] == seed]
    for seed in seeds
  ]
  return {unit: jaccard(both[unit], by_seed) for unit in UNITS}
