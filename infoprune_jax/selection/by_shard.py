"""Examples in shards that workers open, so that no machine holds all of them.

A pass over the examples is a task for each shard, done by processes or by Beam.
It gives a little: the weights of the next digit of the keys, counts, a few
examples, keep bits. The results are those of one machine, bit for bit.
"""

import functools
import pickle
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from infoprune_jax.config.selection import RuleConfig
from infoprune_jax.runtime import manifests, workers
from infoprune_jax.runtime.workdir import scores_dir
from infoprune_jax.selection import budget, groups, parser, rules as rules_lib
from infoprune_jax.selection.computed import HERE, Column
from infoprune_jax.selection.examples import Call, Examples, ExampleShards, each
from infoprune_jax.tokens import tables
from infoprune_jax.tokens.token_store import TokenStore

_MAX_TASKS = 1000  # of a pass: each is two files, if Beam does them
# In scratch files, if one machine selects. Measured: 20 to 33 of 2 million.
BYTES_PER_EXAMPLE = 40
# What compares examples of all shards with each other.
_COMPARES_ALL = {
  'distinct': 'it compares the texts of all shards',
  'repeat': 'it has a count for each document of the store',
  'all_plus_reference': 'it adds documents of the token store',
}


class ExamplesByShard(Examples):
  """Examples of which a worker opens a shard at a time."""

  def __init__(self, open_shard: Callable[[int], Examples], count: int):
    """Opens the first shard, for its columns.

    Args:
      open_shard: Opens the shard of a number. It pickles.
      count: The number of shards.
    """
    self._open_shard, self._count = open_shard, count
    first = open_shard(0)
    self.schema, self.users = first.schema, first.users

  @functools.cached_property
  def starts(self) -> np.ndarray:
    """Positions at which shards begin, and the end, [shards + 1] int64."""
    shards = [_Shard(number, 0) for number in range(self._count)]
    sizes = [
      size for [some] in self._pass([each(len, HERE)], shards) for size in some
    ]
    return np.cumsum([0, *sizes])

  def pick(
    self, shard: int, doc_indices: np.ndarray, columns: Sequence[str]
  ) -> pa.Table:
    """These columns of some documents of one shard, which ascend."""
    return self._open_shard(shard).pick(0, doc_indices, columns)

  def run(self, calls: Sequence[Call]) -> list[Any]:
    """The results of calls, in one pass; see `Examples.run`."""
    results: list[Any] = [None if call.is_sum else [] for call in calls]
    for of_task in self._pass(calls, self._shards()):
      for n, (call, result) in enumerate(zip(calls, of_task, strict=True)):
        if not call.is_sum:
          results[n] += result
          continue
        if results[n] is None:
          results[n] = np.zeros(result.shape, result.values.dtype)
        results[n].reshape(-1)[result.where] += result.values
    return results

  def map(self, function: Callable[..., Any], *arguments: Any) -> Iterator[Any]:
    """Yields the results of a function on each shard as soon as they are there."""
    for [some] in self._pass([each(function, *arguments)], self._shards()):
      yield from some

  def value(self, column: Column) -> Any:
    """The column: workers compute its arrays."""
    return column

  def _shards(self) -> list['_Shard']:
    firsts = self.starts[:-1].tolist()
    return [_Shard(number, first) for number, first in enumerate(firsts)]

  def _pass(
    self, calls: Sequence[Call], shards: Sequence['_Shard']
  ) -> Iterator[list[Any]]:
    """The results of calls on shards next to each other, see `_work`."""
    size = -(-len(shards) // _MAX_TASKS)
    tasks = [
      _Task(self._open_shard, shards[n : n + size], pickle.dumps(calls))
      for n in range(0, len(shards), size)
    ]
    return workers.run_all(_work, tasks, 1)


class _Shard(NamedTuple):
  number: int
  first: int  # the position of its first example


class _Task(NamedTuple):
  """What a worker does with some shards."""

  open_shard: Callable[[int], Examples]
  shards: Sequence[_Shard]
  calls: bytes  # pickled


class _Sparse(NamedTuple):
  """An array without its zeros."""

  shape: tuple[int, ...]
  where: np.ndarray  # [n], in the flat array
  values: np.ndarray  # [n]


def _work(task: _Task) -> list[Any]:
  """For each call its results on the shards, or their sum as `_Sparse`."""
  results: Any = None
  for number, first in task.shards:
    shard = task.open_shard(number)
    shard.first = first
    # Anew: a `Computed` keeps its value of one shard.
    calls = pickle.loads(task.calls)
    here = shard.run(calls)
    if results is None:
      results = here
    else:
      results = [a + b for a, b in zip(results, here, strict=True)]
  return [
    _sparse(result) if call.is_sum else result
    for call, result in zip(pickle.loads(task.calls), results, strict=True)
  ]


def _sparse(array: np.ndarray) -> _Sparse:
  where = np.flatnonzero(array)
  return _Sparse(array.shape, where, array.reshape(-1)[where])


def of_workdir(
  workdir: str, store: TokenStore, names: Iterable[str]
) -> ExamplesByShard:
  """The examples of a workdir.

  Args:
    workdir: Which.
    store: Its token store.
    names: Of joined tables to open.

  Raises:
    UserError: as `ExampleShards` raises it.
  """
  manifest = manifests.open_finished(scores_dir(workdir), 'table', 'score')
  open_shard = functools.partial(
    _open_shard, workdir, store.fingerprint, tuple(names)
  )
  return ExamplesByShard(open_shard, len(tables.data_files(manifest)))


def _open_shard(
  workdir: str, fingerprint: str, names: Sequence[str], number: int
) -> ExampleShards:
  store = _open_store(workdir, fingerprint)
  return ExampleShards(workdir, store, names, [number])


@functools.lru_cache(maxsize=1)
def _open_store(workdir: str, fingerprint: str) -> TokenStore:
  """Opened once by a worker; the fingerprint tells apart what was there."""
  del fingerprint
  return TokenStore.open(workdir)


def why_not(rules: Sequence[RuleConfig], examples: Examples) -> str:
  """Why rules need all examples on one machine; '' if they do not.

  Args:
    rules: Of an arm.
    examples: The scored split.

  Raises:
    UserError: an expression of a group cannot be evaluated.
  """
  for rule in rules:
    if rule.keep in _COMPARES_ALL:
      return f'keep={rule.keep!r}: {_COMPARES_ALL[rule.keep]}'
    per = rule.per.strip()
    read = [parser.parse(rule.score, examples.schema)] if rule.has_score else []
    if per not in ('', 'source'):
      read += parser.parse_groups(per, examples.schema)
    for expression in read:
      if expression.calls or expression.whole:
        return f'{expression.text!r}: its values depend on all examples'
    if rules_lib.ranked_within_folds(examples, rule.score):
      return f'{rule.score!r}: with two reference models it is ranked by fold'
    count = len(groups.names(examples, per))
    if count > budget.MAX_TABLES:
      return f'per={per!r}: more than {budget.MAX_TABLES} groups ({count})'
  return ''
