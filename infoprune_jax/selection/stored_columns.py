"""Columns of examples on disk, which are read one shard at a time."""

import functools
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from infoprune_jax.corpus import parquet
from infoprune_jax.runtime import manifests
from infoprune_jax.selection.arrays import side_by_side
from infoprune_jax.tokens import tables
from infoprune_jax.tokens.token_store import TokenStore

KEY = ('shard', 'doc_index')


class ScoredTable:
  """A finished table with a record for each scored example, in shards."""

  def __init__(
    self, path: str, job: str, prefix: str, only: Sequence[int] | None
  ):
    # What stands before the names of columns, except those of the key.
    self.path, self.job, self._prefix = path, job, prefix
    self._manifest = manifests.open_finished(path, 'table', job)
    names = tables.data_files(self._manifest)
    self._names = names if only is None else [names[n] for n in only]
    stored = pq.read_schema(self._file(0))
    self.schema = pa.schema(
      [
        field if field.name in KEY else field.with_name(prefix + field.name)
        for field in stored
      ]
    )

  def _file(self, shard: int) -> str:
    return manifests.verified(self.path, self._manifest, self._names[shard])

  @functools.cached_property
  def sizes(self) -> list[int]:
    """The number of examples of each shard."""
    return side_by_side(
      lambda shard: pq.read_metadata(self._file(shard)).num_rows,
      range(len(self._names)),
    )

  def _stored(self, columns: Sequence[str]) -> list[str]:
    return [name.removeprefix(self._prefix) for name in columns]

  def read(self, shard: int, columns: Sequence[str]) -> pa.Table:
    """These columns of one shard."""
    with parquet.open_file(self._file(shard), memory_map=True) as file:
      read = file.read(columns=self._stored(columns))
    return read.select(self._stored(columns))

  def pick(
    self, shard: int, doc_indices: np.ndarray, columns: Sequence[str]
  ) -> pa.Table:
    """Some documents, by reading the groups that they are in."""
    with parquet.open_file(self._file(shard), memory_map=True) as file:
      sizes = [
        file.metadata.row_group(n).num_rows for n in range(file.num_row_groups)
      ]
      ends = np.cumsum(sizes)
      group = np.searchsorted(ends, doc_indices, 'right')
      needed = np.unique(group)
      stored = self._stored(columns)
      read = file.read_row_groups(needed.tolist(), columns=stored)
      read = read.select(stored)
    # Where each group begins in the shard, and in what was read.
    first = (ends - sizes)[group]
    here = np.cumsum([0, *np.array(sizes)[needed]])
    return read.take(doc_indices - first + here[np.searchsorted(needed, group)])


class KeptColumns:
  """The columns that a token store keeps of its sources, of scored documents."""

  def __init__(self, store: TokenStore, scores: ScoredTable):
    self._store, self._scores = store, scores
    self.schema = pa.schema([*store.kept_columns])

  def read(self, shard: int, columns: Sequence[str]) -> pa.Table:
    """These columns of one shard."""
    scored = self._scores.read(shard, KEY)
    [number] = set(scored['shard'].unique().to_pylist()) or {0}
    table = self._store.shard(number).table(*columns)
    return table.take(scored['doc_index'])

  def pick(
    self, shard: int, doc_indices: np.ndarray, columns: Sequence[str]
  ) -> pa.Table:
    """These columns of some documents of one shard, which ascend."""
    return self.read(shard, columns).take(doc_indices)
