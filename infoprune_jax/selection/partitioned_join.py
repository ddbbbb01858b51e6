"""Joins a table of the user's with the scored documents of a token store.

Both sides are cut into partitions by a hash of their keys, and each partition
is joined by itself. The joined records are cut by shards of the token store. So
memory holds a few partitions, and every step goes through a file once.
"""

import itertools
import threading

import numpy as np
import pyarrow as pa

from infoprune_jax.config.validation import UserError
from infoprune_jax.runtime.progress import counted, logger
from infoprune_jax.selection import join_keys, spill as spill_lib, user_tables
from infoprune_jax.selection.arrays import side_by_side
from infoprune_jax.selection.spill import Partitions, Spill
from infoprune_jax.selection.user_tables import UserTable
from infoprune_jax.tokens import folds as folds_lib
from infoprune_jax.tokens.token_store import TokenStore

_PER_PARTITION = 1 << 18  # records or examples, about
_MAX_PARTITIONS = 256  # As many files are open at once, twice.


class Join:
  """The join of one table with the scored documents of a store."""

  def __init__(
    self, store: TokenStore, folds: int, table: UserTable, missing: float | str
  ):
    self.store, self.folds, self.table = store, folds, table
    self.offsets = np.cumsum([0, *store.documents_per_shard])
    self._fill = user_tables.fills(table, missing)
    self._refuses = missing == ''
    self._num_words = 2 if pa.types.is_string(self._key_type) else 1
    self._lock = threading.Lock()
    self._num_missing = self._num_joined = self._num_shared = 0
    self._first_missing = self._first_shared = int(self.offsets[-1])

  @property
  def _key_type(self) -> pa.DataType:
    is_text = 'example_id' in self.table.keys
    return pa.string() if is_text else pa.int64()

  @property
  def _is_by_id(self) -> bool:
    """Whether the table does not say of which source an id is."""
    return self.table.keys == ('example_id',)

  def doc_indices(self, shard: int) -> np.ndarray:
    """The documents of a shard that are joined, ascending."""
    fold = folds_lib.fold_of_documents(self.store.shard(shard), self.folds)
    return np.flatnonzero(fold >= 0)

  def partitions(self, spill: Spill) -> Partitions:
    """The joined records, in partitions of consecutive shards.

    Raises:
      UserError: a key is in the table twice, no key is that of an example, a
        record is about an id of several sources, or an example has no record
        and may not be without one.
    """
    count = int(self.offsets[-1]) // _PER_PARTITION
    count = min(max(count, 1), _MAX_PARTITIONS)
    examples = Partitions(spill, 'examples', count)
    records = Partitions(spill, 'records', count)
    side_by_side(
      lambda cut: cut[0](cut[1]),
      [(self._cut_examples, examples), (self._cut_records, records)],
    )
    num_files = min(self.store.num_shards, _MAX_PARTITIONS)
    joined = Partitions(spill, 'joined', num_files)
    side_by_side(
      lambda n: self._join(examples.pop(n), records.pop(n), joined),
      range(count),
    )
    joined.close()
    self._check()
    return joined

  def _cut_examples(self, partitions: Partitions) -> None:
    """Cuts the keys and positions of all scored documents.

    By ids without sources also those of the others: a record may be about one
    of these, if a scored document of another source has its id.
    """
    for shard in range(self.store.num_shards):
      every = self.doc_indices(shard)
      is_scored = np.zeros(self.store.documents_per_shard[shard], bool)
      is_scored[every] = True
      if self._is_by_id:
        every = np.arange(len(is_scored))
      names = [n for n in self.table.keys if n not in ('shard', 'doc_index')]
      there = self.store.shard(shard).table(*names) if names else None
      for first in range(0, len(every), user_tables.BATCH):
        some = every[first : first + user_tables.BATCH]
        if there is None:
          keys = [pa.array(np.full(len(some), shard)), pa.array(some)]
        else:
          taken = there.take(pa.array(some))
          keys = [spill_lib.plain(taken[name]) for name in self.table.keys]
        words = join_keys.words(keys)
        columns = [*words, some + self.offsets[shard], is_scored[some]]
        partitions.cut(spill_lib.batch_of(map(pa.array, columns)), words)
    partitions.close()

  def _cut_records(self, partitions: Partitions) -> None:
    """Cuts the keys and columns of all records of the table."""
    num_keys = len(self.table.keys)
    for _, _, batch in self.table.batches():
      words = join_keys.words(batch.columns[:num_keys])
      columns = [*map(pa.array, words), *batch.columns[num_keys:]]
      partitions.cut(spill_lib.batch_of(columns), words)
    partitions.close()

  def _join(
    self,
    examples: pa.Table | None,
    records: pa.Table | None,
    joined: Partitions,
  ) -> None:
    """Joins a partition, and adds what it gives to those of its shards."""
    num_words = self._num_words
    word = [pa.uint64()] * num_words
    no_examples = spill_lib.nothing([*word, pa.int64(), pa.bool_()])
    no_records = spill_lib.nothing([*word, *self.table.schema.types])
    left = (no_examples if examples is None else examples).columns
    right = (no_records if records is None else records).columns
    *words, positions, is_scored = (column.to_numpy() for column in left)
    keys = [column.to_numpy() for column in right[: self._num_words]]
    matches = join_keys.match(np.stack(words), np.stack(keys))
    if matches.duplicate is not None:
      raise UserError(_duplicate(self.table, matches.duplicate))
    if self._is_by_id:
      self._count_shared(matches, positions)
      matches = matches.of_examples(is_scored)
      positions = positions[is_scored]
    self._count(matches, positions)
    columns = [pa.array(positions)]
    for column, fill in zip(right[self._num_words :], self._fill, strict=True):
      columns.append(_taken(column, matches, fill))
    self._add(spill_lib.batch_of(columns), positions, joined)

  def _add(
    self, batch: pa.RecordBatch, positions: np.ndarray, joined: Partitions
  ) -> None:
    """Adds records, ascending by position, to the partitions of their shards."""
    first = shards_of(self.store.num_shards, joined.count)
    ends = np.searchsorted(positions, self.offsets[first])
    for number, (start, end) in enumerate(itertools.pairwise(ends.tolist())):
      if start < end:
        joined.add(number, batch.slice(start, end - start))

  def _count_shared(
    self, matches: join_keys.Matches, positions: np.ndarray
  ) -> None:
    """Counts records whose id several documents have, each of its own source."""
    records = matches.records[matches.there]
    shared = np.bincount(records) > 1
    if not shared.any():
      return
    first = positions[matches.there][shared[records]].min()
    with self._lock:
      self._num_shared += int(shared.sum())
      self._first_shared = min(self._first_shared, int(first))

  def _count(self, matches: join_keys.Matches, positions: np.ndarray) -> None:
    missing = positions[~matches.there]
    with self._lock:
      self._num_joined += len(positions) - len(missing)
      self._num_missing += len(missing)
      self._first_missing = min([self._first_missing, *missing[:1].tolist()])

  def _check(self) -> None:
    """Raises `UserError` for keys of several examples, of none, and of some."""
    table, keys = self.table, ', '.join(self.table.keys)
    if self._num_shared:
      raise UserError(
        f'select.tables.{table.name}: several sources have the id of '
        f'{counted(self._num_shared, "record")}, such as '
        f'{self._example(self._first_shared)}: add a column `source` to the '
        "table, and write on=('source', 'example_id')."
      )
    if not self._num_joined:
      raise UserError(
        f'select.tables.{table.name}: no record has the {keys} of a scored '
        f'example: {_first_key(table)} in the table, {self._example(0)} in the '
        'corpus. Name another key in `on`, or other files.'
      )
    if self._num_missing and self._refuses:
      raise UserError(
        f'select.tables.{table.name} has no record of {self._num_missing} '
        'examples that were scored, such as '
        f'{self._example(self._first_missing)}: add them, or give the value of '
        'examples without a record, for instance missing=0.0.'
      )
    if self._num_missing:
      logger.warning(
        'join: %s has no record of %d examples: they get the value of '
        '`missing`',
        table.name,
        self._num_missing,
      )

  def _example(self, position: int) -> str:
    """The id of a document, and where it is in the store."""
    shard = int(np.searchsorted(self.offsets, position, side='right')) - 1
    doc_index = position - int(self.offsets[shard])
    names = ('example_id', 'source', 'content_hash')
    [row] = (
      self.store.shard(shard).table(*names).slice(doc_index, 1).to_pylist()
    )
    return (
      f'{row["example_id"]!r} of the source {row["source"]!r} (shard {shard}, '
      f'doc_index {doc_index}, content_hash {row["content_hash"]})'
    )


def shards_of(num_shards: int, num_partitions: int) -> np.ndarray:
  """The first shard of each partition, and the end, [partitions + 1] int64."""
  return np.arange(num_partitions + 1) * num_shards // num_partitions


def _taken(
  column: pa.ChunkedArray, matches: join_keys.Matches, fill: pa.Scalar
) -> pa.Array:
  """The value of each example: that of its record, or `fill`."""
  values = pa.chunked_array([*column.chunks, pa.repeat(fill, 1)], column.type)
  where = np.where(matches.there, matches.records, len(column))
  return spill_lib.plain(values).take(pa.array(where))


def _first_key(table: UserTable) -> str:
  for _, _, batch in table.batches():
    for record in batch.select([*table.keys]).slice(0, 1).to_pylist():
      return ', '.join(map(repr, record.values()))
  return 'nothing'


def _duplicate(table: UserTable, words: np.ndarray) -> str:
  """The message for a key of two records; reads the table again."""
  places, key = [], ''
  for path, first, batch in table.batches():
    keys = batch.select([*table.keys])
    here = (join_keys.words(keys.columns) == words[:, None]).all(axis=0)
    for number in np.flatnonzero(here).tolist():
      places.append(f'record {first + number} (from 0) of {path}')
      key = ', '.join(map(repr, keys.slice(number, 1).to_pylist()[0].values()))
    if len(places) > 1:
      break
  return (
    f'select.tables.{table.name}: two records have the '
    f'{", ".join(table.keys)} {key}: {" and ".join(places[:2])}. Leave one of '
    'them out.'
  )
