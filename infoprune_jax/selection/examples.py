"""The scored split, as rules and summaries see it: a shard at a time.

A corpus has more examples than memory has room for what is known of them. What
a pass needs of all of them at once, a number each, is in scratch files, which
the system keeps in memory while there is room.
"""

import functools
import itertools
from collections.abc import Callable, Hashable, Iterator, Sequence
from concurrent import futures
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from infoprune_jax.config.validation import UserError
from infoprune_jax.corpus import parquet
from infoprune_jax.runtime import manifests
from infoprune_jax.runtime.workdir import (
  near_duplicates_dir,
  scores_dir,
  statistics_dir,
)
from infoprune_jax.selection.arrays import scratch, side_by_side, steps
from infoprune_jax.tokens.token_store import TokenStore

WEIGHTS = {'tokens': 'num_tokens', 'bytes': 'num_bytes', 'examples': None}
_KEY = ('shard', 'doc_index')


class Examples:
  """Scored examples in store order, in one table or in parts.

  Attributes:
    schema: Of their columns.
    starts: Positions at which shards begin, and the end, [shards + 1] int64.
  """

  schema: pa.Schema
  starts: np.ndarray

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
    """What each example takes of a budget, [examples] int32."""
    name = WEIGHTS[unit]
    if name is None:
      return np.broadcast_to(np.int32(1), len(self))
    return self.once(name, lambda: self.column(name, np.int32))

  def once(self, what: Hashable, compute: Callable[[], Any]) -> Any:
    """What is computed of all examples, computed once; not to be changed."""
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

  def groups(self, per: str) -> tuple[int, np.ndarray]:
    """How many budgets there are, and which each example shares, int32."""
    if not per:
      return 1, np.broadcast_to(np.int32(0), len(self))
    names, codes = self.sources
    return len(names), codes

  @functools.cached_property
  def folds(self) -> tuple[list[int], np.ndarray]:
    """Which folds there are, and each example's, int8."""
    fold = self.column('fold', np.int8)
    numbers = side_by_side(lambda s: np.unique(fold[s]), steps(len(fold)))
    return np.unique(np.concatenate([*numbers, fold[:0]])).tolist(), fold

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

  def __init__(self, workdir: str, documents_per_shard: Sequence[int]):
    """Opens scores, statistics, and groups of near-duplicates if there are any.

    Args:
      workdir: Where they are.
      documents_per_shard: Of the token store.

    Raises:
      UserError: one is missing or damaged, or they hold other examples.
    """
    self._scores = _Table(scores_dir(workdir), 'score')
    self._others = [_Table(statistics_dir(workdir), 'statistics')]
    groups = near_duplicates_dir(workdir)
    if manifests.read_manifest(groups, 'near_duplicates') is not None:
      self._others.append(_Table(groups, 'near_duplicates'))
    for other in self._others:
      if other.sizes != self._scores.sizes:
        raise _differ(other, self._scores)
    self.starts = np.cumsum([0, *self._scores.sizes])
    self._table_of = {
      field.name: table
      for table in self._others
      for field in table.schema
      if field.name not in _KEY
    }
    self.schema = pa.schema(
      [
        *self._scores.schema,
        *(table.schema.field(name) for name, table in self._table_of.items()),
      ]
    )
    self._offsets = np.cumsum([0, *documents_per_shard])

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
    read: Callable[['_Table', list[str]], pa.Table],
  ) -> pa.Table:
    """Columns side by side, each from the table that has it."""
    table = read(
      self._scores, [name for name in columns if name not in self._table_of]
    )
    for name in columns:
      if name in self._table_of:
        column = read(self._table_of[name], [name])[name]
        table = table.append_column(name, column)
    return table.select(list(columns))

  @functools.cached_property
  def index(self) -> np.ndarray:
    """The number of each document in the store, [examples]."""
    small = self._offsets[-1] < 2**32
    positions = scratch(len(self), np.uint32 if small else np.int64)

    def fill(shard: int) -> None:
      keys = self._scores.read(shard, _KEY)
      for other in self._others:
        if not keys.equals(other.read(shard, _KEY)):
          raise _differ(other, self._scores)
      shard_index, doc_index = (keys[name].to_numpy() for name in _KEY)
      where = slice(self.starts[shard], self.starts[shard + 1])
      positions[where] = self._offsets[shard_index] + doc_index

    side_by_side(fill, range(len(self.starts) - 1))
    return positions

  def table(self) -> pa.Table:
    """All of it, in memory."""
    shards = [shard for _, shard in self.shards(self.schema.names)]
    return pa.concat_tables(shards).unify_dictionaries().combine_chunks()


class _Table:
  """The Parquet parts of a finished table."""

  def __init__(self, path: str, job: str):
    self.path, self.job = path, job
    manifest = manifests.open_finished(path, 'table', job)
    self._files = side_by_side(
      lambda name: manifests.verified(path, manifest, name),
      sorted(manifest['files']),
    )
    self.sizes = [pq.read_metadata(file).num_rows for file in self._files]
    self.schema = pq.read_schema(self._files[0])

  def read(self, shard: int, columns: Sequence[str]) -> pa.Table:
    with parquet.open_file(self._files[shard], memory_map=True) as file:
      return file.read(columns=list(columns))

  def pick(
    self, shard: int, doc_indices: np.ndarray, columns: Sequence[str]
  ) -> pa.Table:
    """Some documents, by reading the groups that they are in."""
    with parquet.open_file(self._files[shard], memory_map=True) as file:
      sizes = [
        file.metadata.row_group(n).num_rows for n in range(file.num_row_groups)
      ]
      ends = np.cumsum(sizes)
      group = np.searchsorted(ends, doc_indices, 'right')
      needed = np.unique(group)
      read = file.read_row_groups(needed.tolist(), columns=list(columns))
    # Where each group begins in the shard, and in what was read.
    first = (ends - sizes)[group]
    here = np.cumsum([0, *np.array(sizes)[needed]])
    return read.take(doc_indices - first + here[np.searchsorted(needed, group)])


def _differ(table: _Table, scores: _Table) -> UserError:
  return UserError(
    f'{table.path} holds other examples than {scores.path}: delete '
    f'{table.path} and run --job={table.job} again.'
  )


def scored_examples(workdir: str, store: TokenStore) -> ExampleTable:
  """Scores and statistics of a workdir, in memory.

  Raises:
    UserError: a table is missing or damaged, or they hold other examples.
  """
  shards = ExampleShards(workdir, store.documents_per_shard)
  return ExampleTable(shards.table(), shards.index)
