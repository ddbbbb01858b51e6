"""Finds few of many examples: those with the lowest keys, or at both ends."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from infoprune_jax.selection.arrays import side_by_side, steps
from infoprune_jax.selection.computed import HERE, Column
from infoprune_jax.selection.examples import Examples

# For stretches of n of some columns: the keys of examples, [n], and by the name
# of a class which are in it, [n] bool.
Choose = Callable[..., tuple[np.ndarray, Mapping[Any, np.ndarray]]]


class Few(NamedTuple):
  """Some of the examples."""

  positions: np.ndarray  # [n] int64
  keys: np.ndarray  # [n], in ascending order
  scores: np.ndarray  # [n] float64; zeros if none are asked for


def lowest_of_each(
  examples: Examples,
  choose: Choose,
  columns: Sequence[Column],
  count: int,
  scores: Column | None = None,
) -> dict[Any, Few]:
  """The examples with the lowest keys in each class; positions order equal ones.

  Args:
    examples: The examples.
    choose: A module-level function.
    columns: Its arguments.
    count: How many of each class to return, at most.
    scores: [examples] float64, to return those of the few.
  """
  of_parts = examples.map(_own_lowest, HERE, choose, count, scores, *columns)
  return _lowest_of_all(of_parts, count)


def _own_lowest(
  examples: Examples,
  choose: Choose,
  count: int,
  scores: np.ndarray | None,
  *columns: np.ndarray,
) -> dict[Any, Few]:
  """As `lowest_of_each`, of the examples of a part."""

  def lowest_of(some: slice) -> dict[Any, Few]:
    keys, classes = choose(*(column[some] for column in columns))
    return {
      name: few(some.start + np.flatnonzero(mask), keys[mask])
      for name, mask in classes.items()
    }

  def few(here: np.ndarray, keys: np.ndarray) -> Few:
    none = np.zeros(len(here))
    of_each = none if scores is None else scores[here]
    return _lowest(Few(examples.first + here, keys, of_each), count)

  stretches = list(steps(len(examples))) or [slice(0, 0)]
  return _lowest_of_all(side_by_side(lowest_of, stretches), count)


def _lowest_of_all(
  of_parts: Iterable[dict[Any, Few]], count: int
) -> dict[Any, Few]:
  """The lowest of the examples of parts, by the name of a class."""
  of_parts = list(of_parts)
  return {
    name: _lowest(_joined(each[name] for each in of_parts), count)
    for name in of_parts[0]
  }


def _joined(of_parts: Iterable[Few]) -> Few:
  return Few(*map(np.concatenate, zip(*of_parts, strict=True)))


def _lowest(few: Few, count: int) -> Few:
  """Those with the lowest keys."""
  if len(few.keys) > count:
    is_low = few.keys <= np.partition(few.keys, count - 1)[count - 1]
    few = Few(*(array[is_low] for array in few))
  return _ascending(few, slice(count))


def _ascending(few: Few, which: slice) -> Few:
  """Some of them, in the order of keys."""
  order = np.lexsort((few.positions, few.keys))[which]
  return Few(*(array[order] for array in few))


def ends(examples: Examples, scores: Column, count: int) -> tuple[Few, Few]:
  """The examples with the lowest scores, and those with the highest.

  Args:
    examples: The examples.
    scores: [examples] float64, which are the keys.
    count: How many of each to return, at most.
  """
  of_parts = list(examples.map(_own_ends, HERE, scores, count))
  least, most = map(_joined, zip(*of_parts, strict=True))
  return _ascending(least, slice(count)), _ascending(most, slice(-count, None))


def _own_ends(
  examples: Examples, scores: np.ndarray, count: int
) -> tuple[Few, Few]:
  """As `ends`, of the examples of a part."""
  least = most = np.zeros(0, np.int64)
  for some in steps(len(scores)):
    here = scores[some]
    number = min(count, len(here))
    bounds = np.partition(here, (number - 1, len(here) - number))
    low = np.flatnonzero(here <= bounds[number - 1]) + some.start
    high = np.flatnonzero(here >= bounds[len(here) - number]) + some.start
    least = _sorted(np.concatenate([least, low]), scores)[:count]
    most = _sorted(np.concatenate([most, high]), scores)[-count:]
  low, high = (
    Few(examples.first + here, scores[here], scores[here])
    for here in (least, most)
  )
  return low, high


def _sorted(positions: np.ndarray, scores: np.ndarray) -> np.ndarray:
  """Positions in ascending order of their scores."""
  return positions[np.argsort(scores[positions], kind='stable')]
