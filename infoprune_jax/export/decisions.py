"""One table of all documents: their scores, and which arms keep them."""

import dataclasses
import functools
from typing import Any

import numpy as np
import pyarrow as pa

from infoprune_jax.config.corpus import SPLITS
from infoprune_jax.config.validation import UserError
from infoprune_jax.corpus import parquet
from infoprune_jax.corpus.corpus_index import CorpusIndex
from infoprune_jax.runtime import filesystems, manifests
from infoprune_jax.runtime.artifacts import Artifact
from infoprune_jax.runtime.manifests import Marker
from infoprune_jax.runtime.workdir import data_file, scores_dir, statistics_dir
from infoprune_jax.selection.keep_set import KeepSet
from infoprune_jax.tokens.token_store import TokenStore

KEEP = 'keep_'


@dataclasses.dataclass(frozen=True)
class Tables:
  """Where scores and decisions are."""

  workdir: str
  selections: tuple[str, ...]  # folders of keep_sets/

  def __post_init__(self):
    if len(set(self.keep_columns)) < len(self.selections):
      raise UserError(
        f'Two of the keep sets {", ".join(self.selections)} would share a '
        'column: rename an arm, or export them apart with export.arms.'
      )

  @property
  def keep_columns(self) -> tuple[str, ...]:
    """The column of each selection: 'keep_random_seed_0' of random-seed-0."""
    return tuple(KEEP + name.replace('-', '_') for name in self.selections)

  def inputs(self) -> dict[str, str]:
    """The fingerprints of scores and statistics.

    Raises:
      UserError: one is not finished, or of another token store.
    """
    store = TokenStore.open(self.workdir)
    fingerprints = {}
    for name, path, kind, job in _tables(self.workdir):
      manifest = manifests.open_finished(path, kind, job)
      manifests.check_made_from(
        manifest, kind, 'token_store', store.manifest, 'token store'
      )
      fingerprints[name] = manifest['fingerprint']
    return fingerprints


def _tables(workdir: str) -> tuple[tuple[str, str, str, str], ...]:
  """The name as an input, folder, kind and job of each table."""
  return (
    ('scores', scores_dir(workdir), 'score table', 'score'),
    (
      'statistics',
      statistics_dir(workdir),
      'table of statistics',
      'statistics',
    ),
  )


@functools.lru_cache(maxsize=1)
def _opened(tables: Tables) -> tuple[TokenStore, list[KeepSet]]:
  store = TokenStore.open(tables.workdir)
  sets = [KeepSet.open(tables.workdir, n, store) for n in tables.selections]
  return store, sets


# Files of the corpus are often smaller than shards, and come one after another.
@functools.lru_cache(maxsize=2)
def shard_table(tables: Tables, number: int) -> pa.Table:
  """Every document of a shard, in store order.

  Columns of scores and statistics are null where a document was not scored.
  """
  store, keep_sets = _opened(tables)
  shard = store.shard(number)
  documents = shard.table()
  size = documents.num_rows
  columns: dict[str, Any] = {
    'example_id': documents['example_id'],
    'source': documents['source'],
    'split': pa.DictionaryArray.from_arrays(
      pa.array(shard.column('split').astype(np.int32)), list(SPLITS)
    ),
    'shard': pa.array(np.full(size, number, np.int32)),
    'doc_index': pa.array(np.arange(size)),
    **{name: documents[name] for name in documents.column_names[3:]},
  }
  for _, path, _, job in _tables(tables.workdir):
    scored = _read_shard(path, job, number, store.num_shards)
    place = np.full(size, -1)
    place[scored['doc_index'].to_numpy()] = np.arange(scored.num_rows)
    # What is taken at null is null.
    places = pa.array(place, mask=place < 0)
    for name in scored.column_names:
      if name not in columns:
        columns[name] = scored[name].take(places)
  for name, keep_set in zip(tables.keep_columns, keep_sets, strict=True):
    kept = np.zeros(size, bool)
    kept[keep_set.doc_indices(number)] = True
    columns[name] = pa.array(kept)
  return pa.table(columns)


def _read_shard(path: str, job: str, number: int, num_shards: int) -> pa.Table:
  manifest = manifests.read_manifest(path, job)
  assert manifest is not None  # `Tables.inputs` opened it.
  name = data_file(number, num_shards)
  return parquet.read_table(manifests.verified(path, manifest, name))


@dataclasses.dataclass(frozen=True)
class ScoresTask:
  """What a worker needs to write one part of the table."""

  artifact: Artifact
  shard: int
  num_shards: int
  tables: Tables
  index: CorpusIndex | None  # of the documents of the shard; to say where


def write_scores(task: ScoresTask) -> Marker:
  """Writes a part of the table as Parquet, and returns its marker."""
  table = shard_table(task.tables, task.shard)
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
  """With the file of each document, and its line or record in it, from 1."""
  paths = [filesystems.printable(file.path) for file in index.files]
  table = table.append_column(
    'file',
    pa.DictionaryArray.from_arrays(
      pa.array(index.file), pa.array(paths, pa.string())
    ),
  )
  return table.append_column('line', pa.array(index.line))
