"""The scored split, which rules and summaries read one shard at a time.

The columns of all examples may not fit in memory. If a pass needs a number of
every example at once, the numbers are in scratch files, which the system keeps
in memory while there is room.
"""

import functools
import itertools
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from concurrent import futures
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from infoprune_jax.config.validation import UserError
from infoprune_jax.runtime import filesystems, manifests
from infoprune_jax.runtime.workdir import (
  classifier_dir,
  contamination_dir,
  duplicated_text_dir,
  near_duplicates_dir,
  scores_dir,
  statistics_dir,
  user_table_dir,
)
from infoprune_jax.selection.arrays import scratch, side_by_side, steps
from infoprune_jax.selection.computed import HERE, Column, evaluate
from infoprune_jax.selection.stored_columns import KEY, KeptColumns, ScoredTable
from infoprune_jax.tokens.token_store import TokenStore

WEIGHTS = {'tokens': 'num_tokens', 'bytes': 'num_bytes', 'examples': None}


class Call(NamedTuple):
  """What a pass does with each part of the examples."""

  function: Callable[..., Any]  # of module level
  arguments: tuple[Any, ...]  # Each `Computed` has its value of the part.
  is_sum: bool


def each(function: Callable[..., Any], *arguments: Any) -> Call:
  """A call whose results on the parts are kept."""
  return Call(function, arguments, is_sum=False)


def sum_of(function: Callable[..., Any], *arguments: Any) -> Call:
  """A call that gives an array for each part, which are added up."""
  return Call(function, arguments, is_sum=True)


class Examples:
  """Scored examples in store order, in one table or in shards.

  Attributes:
    schema: Of their columns.
    starts: Positions at which shards begin, and the end, [shards + 1] int64.
    users: The columns that the user added: kept ones, and those of tables.
    first: The position of the first of them among all examples.
  """

  schema: pa.Schema
  starts: np.ndarray
  users: Sequence[str] = ()
  first: int = 0

  def __len__(self) -> int:
    return int(self.starts[-1])

  def read(self, shard: int, columns: Sequence[str]) -> pa.Table:
    """These columns of one shard."""
    raise NotImplementedError

  def pick(
    self, shard: int, doc_indices: np.ndarray, columns: Sequence[str]
  ) -> pa.Table:
    """These columns of some documents of one shard, which ascend."""
    return self.read(shard, columns).select(list(columns)).take(doc_indices)

  @functools.cached_property
  def index(self) -> np.ndarray:
    """The number of each document in the store, [examples], an integer."""
    raise NotImplementedError

  def shards(self, columns: Sequence[str]) -> Iterator[tuple[slice, pa.Table]]:
    """Yields the positions of each shard, and these columns of it."""
    bounds = list(itertools.pairwise(self.starts.tolist()))
    with futures.ThreadPoolExecutor(1) as reader:
      ahead = None
      for number, (first, last) in enumerate(bounds):
        shard = ahead.result() if ahead else self.read(number, columns)
        if number + 1 < len(bounds):
          ahead = reader.submit(self.read, number + 1, columns)
        yield slice(first, last), shard

  def column(self, name: str, dtype: Any) -> np.ndarray:
    """A column of numbers, [examples]."""
    values = scratch(len(self), dtype)

    def fill(shard: int) -> None:
      column = self.read(shard, [name])[name]
      values[self.starts[shard] : self.starts[shard + 1]] = column.to_numpy()

    side_by_side(fill, range(len(self.starts) - 1))
    return values

  def weight(self, unit: str) -> np.ndarray:
    """The weight of each example in a budget, [examples] int32."""
    name = WEIGHTS[unit]
    if name is None:
      return np.broadcast_to(np.int32(1), len(self))
    return self.once(name, lambda: self.column(name, np.int32))

  def run(self, calls: Sequence['Call']) -> list[Any]:
    """The results of calls, in one pass over the examples.

    Here all of them are one part; `by_shard` has others.

    Returns:
      For each call the list of its results on the parts, in order; or the sum.
    """
    results = [call.function(*evaluate(call.arguments, self)) for call in calls]
    return [
      result if call.is_sum else [result]
      for call, result in zip(calls, results, strict=True)
    ]

  def map(self, function: Callable[..., Any], *arguments: Any) -> Iterable[Any]:
    """The results of a function on each part of the examples, see `each`."""
    [results] = self.run([each(function, *arguments)])
    return results

  def sum(self, function: Callable[..., Any], *arguments: Any) -> Any:
    """The sum of the arrays that a function gives for parts, see `sum_of`."""
    [result] = self.run([sum_of(function, *arguments)])
    return result

  def value(self, column: Column) -> Any:
    """The array of a column, if the examples are here; or else the column."""
    [array] = evaluate([column], self)
    return array

  def once(self, what: Hashable, compute: Callable[[], Any]) -> Any:
    """The result of `compute`, which is computed once; do not change it."""
    if what not in self._computed:
      self._computed[what] = compute()
    return self._computed[what]

  @functools.cached_property
  def _computed(self) -> dict[Hashable, Any]:
    return {}

  @functools.cached_property
  def sources(self) -> tuple[list[str], np.ndarray]:
    """The names of sources, and the number of each example's, int32."""
    names: dict[str, int] = {}
    codes = scratch(len(self), np.int32)
    for where, shard in self.shards(['source']):
      column = shard['source'].combine_chunks().dictionary_encode()
      known = [
        names.setdefault(name, len(names))
        for name in column.dictionary.to_pylist()
      ]
      local = column.indices.to_numpy(zero_copy_only=False)
      codes[where] = np.array(known, np.int32)[local]
    return list(names), codes

  @functools.cached_property
  def folds(self) -> tuple[list[int], np.ndarray]:
    """The folds, and the fold of each example, int8."""
    fold = self.column('fold', np.int8)
    numbers = side_by_side(lambda s: np.unique(fold[s]), steps(len(fold)))
    return np.unique(np.concatenate([*numbers, fold[:0]])).tolist(), fold

  @functools.cached_property
  def fold_numbers(self) -> list[int]:
    """The folds that have examples."""
    return sorted(set().union(*self.map(_folds, HERE)))

  def take(self, positions: np.ndarray, columns: Sequence[str]) -> pa.Table:
    """Some examples, in the order of these positions."""
    order = np.argsort(positions, kind='stable')
    wanted = positions[order]
    bounds = np.searchsorted(wanted, self.starts)
    taken = [
      self.pick(shard, wanted[first:last] - self.starts[shard], columns)
      for shard, (first, last) in enumerate(itertools.pairwise(bounds))
      if first < last
    ]
    if not taken:
      return pa.schema([self.schema.field(c) for c in columns]).empty_table()
    return pa.concat_tables(taken).take(np.argsort(order))


def _folds(examples: Examples) -> list[int]:
  return examples.folds[0]


class ExampleTable(Examples):
  """Examples in memory."""

  def __init__(self, table: pa.Table, index: np.ndarray):
    self.table, self.schema, self.index = table, table.schema, index
    self.starts = np.array([0, table.num_rows])

  def read(self, shard: int, columns: Sequence[str]) -> pa.Table:
    """The table."""
    del shard, columns
    return self.table


class ExampleShards(Examples):
  """Examples on disk: the tables of a workdir, side by side."""

  def __init__(
    self,
    workdir: str,
    store: TokenStore,
    tables: Iterable[str] = (),
    only: Sequence[int] | None = None,
    scores: str = '',
  ):
    """Opens scores and statistics, and what there is of optional tables.

    These are groups of near-duplicates, contamination by benchmarks, and log
    odds of classifiers. Their files are compared with manifests when they are
    first read.

    Args:
      workdir: Where they are.
      store: The token store, whose kept columns are columns, too.
      tables: Names of joined tables to open.
      only: Numbers of shards; None for all.
      scores: The folder of another score table; '' for that of the workdir.

    Raises:
      UserError: one is missing or damaged.
    """
    job = 'own_scores' if scores else 'score'
    self._scores = ScoredTable(scores or scores_dir(workdir), job, '', only)
    self._others = [
      ScoredTable(*table, only) for table in _others(workdir, tables)
    ]
    kept = KeptColumns(store, self._scores)
    self.users = [
      *(name for t in self._others for name in t.schema.names if '.' in name),
      *kept.schema.names,
    ]
    self._table_of: dict[str, ScoredTable | KeptColumns] = {
      field.name: table
      for table in (*self._others, kept)
      for field in table.schema
      if field.name not in KEY
    }
    self.schema = pa.schema(
      [
        *self._scores.schema,
        *(table.schema.field(name) for name, table in self._table_of.items()),
      ]
    )
    self._offsets = np.cumsum([0, *store.documents_per_shard])

  @functools.cached_property
  def starts(self) -> np.ndarray:
    """Positions at which shards begin, and the end, [shards + 1] int64.

    Raises:
      UserError: a file is missing or damaged, or tables hold other examples.
    """
    for other in self._others:
      if other.sizes != self._scores.sizes:
        raise _differ(other, self._scores)
    return np.cumsum([0, *self._scores.sizes])

  def read(self, shard: int, columns: Sequence[str]) -> pa.Table:
    """These columns of one shard."""
    return self._joined(columns, lambda table, own: table.read(shard, own))

  def pick(
    self, shard: int, doc_indices: np.ndarray, columns: Sequence[str]
  ) -> pa.Table:
    """These columns of some documents of one shard, which ascend."""
    return self._joined(
      columns, lambda table, own: table.pick(shard, doc_indices, own)
    )

  def _joined(
    self,
    columns: Sequence[str],
    read: Callable[[Any, list[str]], pa.Table],
  ) -> pa.Table:
    """Columns side by side, each from the table that has it."""
    of_tables: dict[Any, list[str]] = {}
    for name in columns:
      table = self._table_of.get(name, self._scores)
      of_tables.setdefault(table, []).append(name)
    arrays = {
      name: column
      for table, names in of_tables.items()
      for name, column in zip(names, read(table, names).columns, strict=True)
    }
    return pa.table({name: arrays[name] for name in columns})

  @functools.cached_property
  def index(self) -> np.ndarray:
    """The number of each document in the store, [examples]."""
    small = self._offsets[-1] < 2**32
    positions = scratch(len(self), np.uint32 if small else np.int64)

    def fill(shard: int) -> None:
      keys = self._scores.read(shard, KEY)
      for other in self._others:
        if not keys.equals(other.read(shard, KEY)):
          raise _differ(other, self._scores)
      shard_index, doc_index = (keys[name].to_numpy() for name in KEY)
      where = slice(self.starts[shard], self.starts[shard + 1])
      positions[where] = self._offsets[shard_index] + doc_index

    side_by_side(fill, range(len(self.starts) - 1))
    return positions

  def table(self) -> pa.Table:
    """All of it, in memory."""
    shards = [shard for _, shard in self.shards(self.schema.names)]
    return pa.concat_tables(shards).unify_dictionaries().combine_chunks()


def _others(
  workdir: str, joined: Iterable[str]
) -> Iterator[tuple[str, str, str]]:
  """Tables beside the scores: the folder, the job and a prefix of columns."""
  yield statistics_dir(workdir), 'statistics', ''
  for path, job in (
    (near_duplicates_dir(workdir), 'near_duplicates'),
    (contamination_dir(workdir), 'decontaminate'),
    (duplicated_text_dir(workdir), 'duplicated_text'),
  ):
    if manifests.read_manifest(path, job) is not None:
      yield path, job, ''
  for name in joined:
    yield user_table_dir(workdir, name), 'join', f'{name}.'
  for path in filesystems.matching(classifier_dir(workdir, ''), '*'):
    if manifests.read_manifest(path, 'classify') is not None:
      yield path, 'classify', ''


def _differ(table: ScoredTable, scores: ScoredTable) -> UserError:
  return UserError(
    f'{table.path} holds other examples than {scores.path}: delete '
    f'{table.path} and run --job={table.job} again.'
  )


def scored_examples(workdir: str, store: TokenStore) -> ExampleTable:
  """Scores and statistics of a workdir, in memory.

  Raises:
    UserError: a table is missing or damaged, or they hold other examples.
  """
  shards = ExampleShards(workdir, store)
  return ExampleTable(shards.table(), shards.index)
