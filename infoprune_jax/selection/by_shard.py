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
from infoprune_jax.selection.computed import HERE, Column, evaluate
from infoprune_jax.selection.examples import Examples, ExampleShards
from infoprune_jax.tokens import tables
from infoprune_jax.tokens.token_store import TokenStore

_MAX_TASKS = 1000  # of a pass: each is two files, if Beam does them
# Of one machine: in scratch files, by rules that rank all examples.
BYTES_PER_EXAMPLE = 64
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
    sizes = self._run(_results, shards, len, HERE)
    return np.cumsum([0, *(size for some in sizes for size in some)])

  def pick(
    self, shard: int, doc_indices: np.ndarray, columns: Sequence[str]
  ) -> pa.Table:
    """These columns of some documents of one shard, which ascend."""
    return self._open_shard(shard).pick(0, doc_indices, columns)

  def map(
    self,
    function: Callable[..., Any],
    *arguments: Any,
    only: Iterable[int] | None = None,
  ) -> Iterator[Any]:
    """Yields the results of a function on each shard, see `Examples.map`."""
    for some in self._run(_results, self._shards(only), function, *arguments):
      yield from some

  def sum(self, function: Callable[..., Any], *arguments: Any) -> Any:
    """The sum of the arrays that a function gives for each shard."""
    total: Any = None
    for part in self._run(_sum, self._shards(), function, *arguments):
      if total is None:
        total = np.zeros(part.shape, part.values.dtype)
      total.reshape(-1)[part.where] += part.values
    return total

  def value(self, column: Column) -> Column:
    """The column: workers compute its arrays."""
    return column

  def _shards(self, only: Iterable[int] | None = None) -> list['_Shard']:
    numbers = range(self._count) if only is None else only
    return [_Shard(number, int(self.starts[number])) for number in numbers]

  def _run(
    self,
    work: Callable[[Iterator[Any]], Any],
    shards: Sequence['_Shard'],
    function: Callable[..., Any],
    *arguments: Any,
  ) -> Iterator[Any]:
    """What `work` makes of the results of some shards next to each other."""
    call = pickle.dumps((function, arguments))
    size = max(1, -(-len(shards) // _MAX_TASKS))
    tasks = [
      _Task(work, self._open_shard, shards[n : n + size], call)
      for n in range(0, len(shards), size)
    ]
    return workers.run_all(_work, tasks, 1)


class _Shard(NamedTuple):
  number: int
  first: int  # the position of its first example


class _Task(NamedTuple):
  """What a worker does with some shards."""

  work: Callable[[Iterator[Any]], Any]
  open_shard: Callable[[int], Examples]
  shards: Sequence[_Shard]
  call: bytes  # the function and its arguments, pickled


def _work(task: _Task) -> Any:
  return task.work(_on_each_shard(task))


def _on_each_shard(task: _Task) -> Iterator[Any]:
  for number, first in task.shards:
    shard = task.open_shard(number)
    shard.first = first
    # Anew: a `Computed` keeps its value of one shard.
    function, arguments = pickle.loads(task.call)
    yield function(*evaluate(arguments, shard))


def _results(results: Iterator[Any]) -> list[Any]:
  return list(results)


class _Sparse(NamedTuple):
  """An array without its zeros."""

  shape: tuple[int, ...]
  where: np.ndarray  # [n], in the flat array
  values: np.ndarray  # [n]


def _sum(results: Iterator[np.ndarray]) -> _Sparse:
  total = functools.reduce(np.add, results)
  where = np.flatnonzero(total)
  return _Sparse(total.shape, where, total.reshape(-1)[where])


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
