"""Selects up to a budget where no machine holds all examples.

Each pass is a function of a shard, which processes or Beam call: its weights by
the next digit of the keys. Their sums say at which example the budget runs out,
so that the last pass writes the keep bits of each shard. The result is that of
`budget.lowest` on all examples, bit for bit.
"""

import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from infoprune_jax.config.validation import UserError
from infoprune_jax.runtime import workers
from infoprune_jax.selection import budget


class Shards(NamedTuple):
  """Examples in shards; a worker makes the ranking of one at a time."""

  # Of the number of a shard. It pickles, and gives the same each time.
  ranking: Callable[[int], budget.Ranking]
  count: int
  groups: int
  num_workers: int  # see `workers.run_all`


def totals(shards: Shards) -> np.ndarray:
  """The weight of each group, [groups] int64.

  Raises:
    UserError: there are too many groups, or as `workers.run_all` does.
  """
  if shards.groups > budget.MAX_TABLES:
    raise UserError(
      f'A selection by shards has at most {budget.MAX_TABLES} groups, got '
      f'{shards.groups}: use fewer groups, or select on one machine.'
    )
  return functools.reduce(np.add, _run_all(shards, _totals, ()))


def lowest(shards: Shards, most: np.ndarray) -> Iterator[np.ndarray]:
  """What the budget of each group takes, in the order of keys.

  Args:
    shards: The examples.
    most: [groups] int64, the budgets.

  Yields:
    The bits of each shard, [ceil(examples / 8)] uint8, as in a keep set.

  Raises:
    UserError: as `workers.run_all` does.
  """
  last = budget.Last.first(shards.groups)

  def sums_of(
    last: budget.Last, numbers: np.ndarray, digit: budget.Digit
  ) -> np.ndarray:
    sums = np.zeros((len(numbers) * budget.NUM_DIGITS, 2), np.int64)
    for there, values in _run_all(shards, _sums, (last, numbers, digit)):
      sums[there] += values
    return sums.reshape(len(numbers), budget.NUM_DIGITS, 2)

  budget.pass_by_digits(sums_of, most, np.arange(shards.groups), last)
  yield from _run_all(shards, _bits, (last,))


def _run_all(
  shards: Shards, function: Callable[..., Any], arguments: tuple[Any, ...]
) -> Iterator[Any]:
  """The results of a function of each shard's ranking, in order."""
  tasks = [
    (function, shards.ranking, number, shards.groups, arguments)
    for number in range(shards.count)
  ]
  return workers.run_all(_work, tasks, shards.num_workers)


def _work(task: tuple[Any, ...]) -> Any:
  function, ranking_of, number, groups, arguments = task
  ranking = ranking_of(number)
  everything = np.broadcast_to(np.True_, len(ranking.key))
  return function(ranking, everything, groups, *arguments)


def _totals(
  ranking: budget.Ranking, everything: np.ndarray, groups: int
) -> np.ndarray:
  return budget.add_up(ranking.weight, ranking.group, everything, groups)


def _sums(
  ranking: budget.Ranking,
  everything: np.ndarray,
  groups: int,
  *digit: Any,
) -> tuple[np.ndarray, np.ndarray]:
  """`budget.sums_of_digits` without zeros, and where they are."""
  del groups
  sums = budget.sums_of_digits(ranking, everything, *digit).reshape(-1, 2)
  there = np.flatnonzero(sums[:, 1])
  return there, sums[there]


def _bits(
  ranking: budget.Ranking,
  everything: np.ndarray,
  groups: int,
  last: budget.Last,
) -> np.ndarray:
  del groups
  return np.packbits(budget.taken(ranking, everything, last))
