"""Tables of all documents: which arms keep them, and their scores."""

import dataclasses
import functools
from typing import Any

import numpy as np
import pyarrow as pa

from infoprune_jax.config.classifier import PREFIX
from infoprune_jax.config.corpus import SPLITS
from infoprune_jax.config.validation import UserError
from infoprune_jax.corpus import parquet
from infoprune_jax.corpus.corpus_index import CorpusIndex
from infoprune_jax.runtime import filesystems, manifests
from infoprune_jax.runtime.artifacts import Artifact
from infoprune_jax.runtime.manifests import Marker
from infoprune_jax.runtime.workdir import (
  classifier_dir,
  data_file,
  scores_dir,
  statistics_dir,
  user_table_dir,
  user_table_input,
)
from infoprune_jax.selection.keep_set import KeepSet
from infoprune_jax.tokens import tables as tables_lib
from infoprune_jax.tokens.token_store import TokenStore

KEEP = 'keep_'
REPEATS = 'repeats_'


@dataclasses.dataclass(frozen=True)
class Tables:
  """The scores and the keep sets to export."""

  workdir: str
  selections: tuple[str, ...]  # folders of keep_sets/
  joined: tuple[str, ...] = ()  # names of tables of the user's
  classifiers: tuple[str, ...] = ()  # their names

  def __post_init__(self):
    if len(set(self.keep_columns)) < len(self.selections):
      raise UserError(
        f'Two of the keep sets {", ".join(self.selections)} would share a '
        'column: rename an arm, or export one at a time with export.arms.'
      )

  @property
  def keep_columns(self) -> tuple[str, ...]:
    """The column of each selection: 'keep_random_seed_0' of random-seed-0."""
    return tuple(KEEP + name.replace('-', '_') for name in self.selections)

  @functools.cached_property
  def repeats_columns(self) -> dict[str, str]:
    """The column 'repeats_...' of each selection that repeats examples."""
    _, keep_sets = _opened(self)
    return {
      name: column.replace(KEEP, REPEATS, 1)
      for name, column, kept in zip(
        self.selections, self.keep_columns, keep_sets, strict=True
      )
      if kept.has_repeats
    }

  def inputs(self) -> dict[str, str]:
    """The fingerprints of scores, statistics, users' tables and classifiers.

    Raises:
      UserError: one is not finished, or of another token store.
    """
    store = TokenStore.open(self.workdir)
    fingerprints = {}
    for name, path, kind, job, _ in _tables(self):
      manifest = manifests.open_finished(path, kind, job)
      manifests.check_made_from(
        manifest, kind, 'token_store', store.manifest, 'token store'
      )
      fingerprints[name] = manifest['fingerprint']
    return fingerprints


def _tables(tables: Tables) -> list[tuple[str, str, str, str, str]]:
  """Of each table: input name, folder, kind, job and prefix of its columns."""
  workdir = tables.workdir
  return [
    ('scores', scores_dir(workdir), 'score table', 'score', ''),
    (
      'statistics',
      statistics_dir(workdir),
      'table of statistics',
      'statistics',
      '',
    ),
    *(
      (
        user_table_input(name),
        user_table_dir(workdir, name),
        f'table {name}',
        'join',
        f'{name}.',
      )
      for name in tables.joined
    ),
    *(
      (
        PREFIX + name,
        classifier_dir(workdir, name),
        f'table of classifier {name}',
        'classify',
        '',
      )
      for name in tables.classifiers
    ),
  ]


@functools.lru_cache(maxsize=1)
def _opened(tables: Tables) -> tuple[TokenStore, list[KeepSet]]:
  store = TokenStore.open(tables.workdir)
  sets = [KeepSet.open(tables.workdir, n, store) for n in tables.selections]
  return store, sets


# Files of the corpus are often smaller than shards, and are read in order.
@functools.lru_cache(maxsize=2)
def shard_table(tables: Tables, number: int) -> pa.Table:
  """Every document of a shard, in store order.

  Columns of scores, statistics, tables of the user's and classifiers are null
  for documents that were not scored.
  """
  store, _ = _opened(tables)
  documents = store.shard(number).table()
  size = documents.num_rows
  columns: dict[str, Any] = {
    **_names(store, number),
    **{name: documents[name] for name in documents.column_names[3:]},
  }
  for _, path, _, job, prefix in _tables(tables):
    scored = _read_shard(path, job, number)
    place = np.full(size, -1)
    place[scored['doc_index'].to_numpy()] = np.arange(scored.num_rows)
    # Taking at a null index gives null.
    places = pa.array(place, mask=place < 0)
    for name in scored.column_names:
      own = name if name in ('shard', 'doc_index') else prefix + name
      if own not in columns:
        columns[own] = scored[name].take(places)
  selections = zip(
    tables.selections,
    tables.keep_columns,
    _repeats(tables, number),
    strict=True,
  )
  for name, column, repeats in selections:
    columns[column] = pa.array(repeats > 0)
    if name in tables.repeats_columns:
      columns[tables.repeats_columns[name]] = _counts(repeats)
  return pa.table(columns)


def _names(store: TokenStore, number: int) -> dict[str, Any]:
  """The columns that say which document it is, of each document of a shard."""
  shard = store.shard(number)
  documents = shard.table()
  return {
    'example_id': documents['example_id'],
    'source': documents['source'],
    'split': pa.DictionaryArray.from_arrays(
      pa.array(shard.column('split').astype(np.int32)), list(SPLITS)
    ),
    'shard': pa.array(np.full(documents.num_rows, number, np.int32)),
    'doc_index': pa.array(np.arange(documents.num_rows)),
  }


def _repeats(tables: Tables, number: int) -> list[np.ndarray]:
  """How often each keep set uses each document of a shard, uint8 arrays."""
  _, keep_sets = _opened(tables)
  return [keep_set.of_shard(number) for keep_set in keep_sets]


def _counts(repeats: np.ndarray) -> pa.Array:
  """A column that every reader of Parquet knows."""
  return pa.array(repeats.astype(np.int32))


def _read_shard(path: str, job: str, number: int) -> pa.Table:
  manifest = manifests.read_manifest(path, job)
  assert manifest is not None  # `Tables.inputs` opened it.
  name = tables_lib.data_files(manifest)[number]
  return parquet.read_table(manifests.verified(path, manifest, name))


@dataclasses.dataclass(frozen=True)
class TableTask:
  """What a worker needs to write one shard of a table."""

  artifact: Artifact
  shard: int
  num_shards: int
  tables: Tables
  index: CorpusIndex | None  # of the documents of the shard, for locations


def write_scores(task: TableTask) -> Marker:
  """Writes a shard of the table of all arms, and returns its marker."""
  return _write(task, shard_table(task.tables, task.shard))


def write_keep_set(task: TableTask) -> Marker:
  """Writes a shard of the table of one keep set, and returns its marker."""
  store, _ = _opened(task.tables)
  [repeats] = _repeats(task.tables, task.shard)
  columns = {**_names(store, task.shard), 'kept': pa.array(repeats > 0)}
  if task.tables.repeats_columns:
    columns['repeats'] = _counts(repeats)
  return _write(task, pa.table(columns))


def _write(task: TableTask, table: pa.Table) -> Marker:
  if task.index is not None:
    table = _with_places(table, task.index)
  return task.artifact.finish_shard(
    task.shard,
    task.num_shards,
    {
      data_file(task.shard, task.num_shards): (
        lambda file: parquet.write_table(table, file, compression='zstd')
      )
    },
    num_documents=table.num_rows,
  )


def _with_places(table: pa.Table, index: CorpusIndex) -> pa.Table:
  """Adds the file of each document, and its line or record in it, from 1."""
  paths = [filesystems.printable(file.path) for file in index.files]
  table = table.append_column(
    'file',
    pa.DictionaryArray.from_arrays(
      pa.array(index.file), pa.array(paths, pa.string())
    ),
  )
  return table.append_column('line', pa.array(index.line))
