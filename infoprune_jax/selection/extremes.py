"""Finds few of many examples: those with the lowest keys, or at both ends."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from infoprune_jax.selection.arrays import side_by_side, steps
from infoprune_jax.selection.computed import HERE, Column
from infoprune_jax.selection.examples import Examples

# Of examples: their positions, ascending by key; and their keys.
_Few = tuple[np.ndarray, np.ndarray]
# See `lowest_of_each`.
_Choose = Callable[..., tuple[np.ndarray, Mapping[Any, np.ndarray]]]


def _lowest(positions: np.ndarray, keys: np.ndarray, count: int) -> _Few:
  """The positions with the lowest keys, ascending by key, and their keys.

  Args:
    positions: [n] int64; they order equal keys.
    keys: [n].
    count: How many to return, at most.
  """
  if len(keys) > count:
    few = keys <= np.partition(keys, count - 1)[count - 1]
    positions, keys = positions[few], keys[few]
  order = np.lexsort((positions, keys))[:count]
  return positions[order], keys[order]


def lowest_of_each(
  examples: Examples,
  choose: _Choose,
  columns: Sequence[Column],
  count: int,
) -> dict[Any, np.ndarray]:
  """The positions with the lowest keys in each class of examples.

  Args:
    examples: The examples.
    choose: Of module level. For stretches of n of the columns, returns the keys
      of examples, [n], and by the name of a class which are in it, [n] bool.
    columns: Its arguments.
    count: How many of each class to return, at most.
  """
  of_parts = examples.map(_own_lowest, HERE, choose, count, *columns)
  return {
    name: positions
    for name, (positions, _) in _lowest_of_all(of_parts, count).items()
  }


def _own_lowest(
  examples: Examples,
  choose: _Choose,
  count: int,
  *columns: np.ndarray,
) -> dict[Any, _Few]:
  """As `_lowest_of_each`, of the examples of a part, with their keys."""

  def lowest_of(some: slice) -> dict[Any, _Few]:
    keys, classes = choose(*(column[some] for column in columns))
    here = {name: np.flatnonzero(mask) for name, mask in classes.items()}
    first = examples.first + some.start
    return {
      name: _lowest(first + n, keys[n], count) for name, n in here.items()
    }

  stretches = list(steps(len(examples))) or [slice(0, 0)]
  return _lowest_of_all(side_by_side(lowest_of, stretches), count)


def _lowest_of_all(
  of_parts: Iterable[dict[Any, _Few]], count: int
) -> dict[Any, _Few]:
  """The lowest of the positions and keys of parts, by the name of a class."""
  of_parts = list(of_parts)
  lowest = {}
  for name in of_parts[0]:
    pairs = zip(*(each[name] for each in of_parts), strict=True)
    lowest[name] = _lowest(*map(np.concatenate, pairs), count)
  return lowest


def ends(
  examples: Examples, scores: Column, count: int
) -> tuple[np.ndarray, np.ndarray]:
  """The positions with the lowest scores, and those with the highest.

  Args:
    examples: The examples.
    scores: [examples] float64.
    count: How many of each to return, at most.

  Returns:
    Two arrays of int64, ascending by score. Equal scores are in store order.
  """
  least, most = zip(*examples.map(_own_ends, HERE, scores, count), strict=True)
  return _ascending(least)[:count], _ascending(most)[-count:]


def _own_ends(
  examples: Examples, scores: np.ndarray, count: int
) -> tuple[_Few, _Few]:
  """As `ends`, of the examples of a part, with their scores."""
  least = most = np.zeros(0, np.int64)
  for some in steps(len(scores)):
    here = scores[some]
    number = min(count, len(here))
    bounds = np.partition(here, (number - 1, len(here) - number))
    low = np.flatnonzero(here <= bounds[number - 1]) + some.start
    high = np.flatnonzero(here >= bounds[len(here) - number]) + some.start
    least = _sorted(np.concatenate([least, low]), scores)[:count]
    most = _sorted(np.concatenate([most, high]), scores)[-count:]
  first = examples.first
  return (first + least, scores[least]), (first + most, scores[most])


def _sorted(positions: np.ndarray, scores: np.ndarray) -> np.ndarray:
  """Positions in ascending order of their scores."""
  return positions[np.argsort(scores[positions], kind='stable')]


def _ascending(of_parts: Iterable[_Few]) -> np.ndarray:
  """The positions of parts in ascending order of their scores."""
  positions, scores = map(np.concatenate, zip(*of_parts, strict=True))
  return positions[np.lexsort((positions, scores))]


def values_at(
  examples: Examples, column: Column, positions: np.ndarray
) -> np.ndarray:
  """A column of numbers at some positions, [n] float64."""
  values = np.zeros(len(positions))
  shards = np.unique(np.searchsorted(examples.starts, positions, 'right') - 1)
  for here, taken in examples.map(_pick, HERE, column, positions, only=shards):
    values[here] = taken
  return values


def _pick(
  examples: Examples, column: np.ndarray, positions: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  """Which positions are in a part, and the values of its column there."""
  own = positions - examples.first
  here = np.flatnonzero((own >= 0) & (own < len(column)))
  return here, column[own[here]]
