"""The order of copies in an epoch, where examples are used several times.

An epoch is a series of passes, as many as the example with most copies has. No
pass has two copies of an example. The copies of an example are spread evenly
over the passes, from a first one by a seeded hash. So copies are far apart, and
the mix of examples is the same from the first to the last pass.
"""

import numpy as np

from infoprune_jax.runtime.hashing import mix

# Added to the seed: selections hash the same numbers by seeds below 2**34.
_PASSES = 2**34
_BITS = 20  # of the hash


def split(
  copies: np.ndarray, document: np.ndarray, seed: int
) -> list[np.ndarray]:
  """The copies of each pass of an epoch that has any, in order.

  Args:
    copies: [copies], anything.
    document: [copies] int64, the document of each; equal ones are adjacent.
    seed: Of the hash.
  """
  is_first = document[1:] != document[:-1]
  if is_first.all():
    return [copies]
  passes = _passes(document, np.append(True, is_first), seed)
  order = np.argsort(passes.astype(np.uint8), kind='stable')  # A radix sort.
  bounds = np.flatnonzero(np.diff(passes[order])) + 1
  return np.split(copies[order], bounds)


def _passes(
  document: np.ndarray, is_first: np.ndarray, seed: int
) -> np.ndarray:
  """The pass in which each copy comes, from 0, [copies] int64."""
  first = np.flatnonzero(is_first)
  count = np.diff(first, append=len(document))
  nth = np.arange(len(document)) - np.repeat(first, count)
  chance = mix(document, seed + _PASSES) >> np.uint64(64 - _BITS)
  place = (nth << _BITS) + chance.astype(np.int64)
  return place * count.max() // (np.repeat(count, count) << _BITS)
