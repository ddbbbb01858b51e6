"""The job that exports what arms keep, and why, for other programs. No JAX.

Each arm and format is an artifact of its own, of shards that processes write.
"""

import dataclasses
import posixpath
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from infoprune_jax.config.experiment import ARM_EXPORTS, Config
from infoprune_jax.corpus import quiet_tensorflow, sources
from infoprune_jax.corpus.corpus_index import CorpusIndex
from infoprune_jax.export import (
  corpus,
  decisions,
  documents,
  dolma,
  records,
  tfds_writer,
)
from infoprune_jax.runtime import files, filesystems, workers
from infoprune_jax.runtime.artifacts import Artifact
from infoprune_jax.runtime.manifests import Marker
from infoprune_jax.runtime.options import options_of
from infoprune_jax.runtime.progress import logger
from infoprune_jax.runtime.resumable import (
  ShardWork,
  finish_from_markers,
  write_missing_shards,
)
from infoprune_jax.runtime.workdir import export_dir
from infoprune_jax.selection import keep_set
from infoprune_jax.selection.keep_set import KeepSet
from infoprune_jax.tokens.token_store import TokenStore

# No arm has this name: it is no identifier.
EVERY_ARM = 'every-arm'
_WRITERS: dict[str, Callable[[documents.ShardTask], Marker]] = {
  'jsonl': documents.write_jsonl,
  'parquet': documents.write_parquet,
  'array_record': records.write_array_record,
  'tfds': records.write_tfds,
}


@dataclasses.dataclass(frozen=True)
class _Export:
  """One folder to write."""

  artifact: Artifact
  format: str
  selections: tuple[str, ...]  # the keep sets that it is of

  @property
  def name(self) -> str:
    """For the log, such as 'export: top/jsonl'."""
    return 'export: ' + '/'.join(self.artifact.path.split('/')[-2:])


@dataclasses.dataclass(frozen=True)
class _Source:
  """What there is to export."""

  workdir: str
  store: TokenStore
  keep_sets: dict[str, KeepSet]
  index: CorpusIndex | None  # of the whole corpus, where a format needs it
  num_workers: int
  include_locations: bool  # of the format 'scores'


def run(config: Config, workdir: str) -> None:
  """Writes what `config.export` asks for; what is finished is skipped.

  Raises:
    UserError: something to export is missing, changed since it was tokenized,
      or does not fit a format.
  """
  store = TokenStore.open(workdir)
  names = _selections(config)
  keep_sets = {name: KeepSet.open(workdir, name, store) for name in names}
  if 'tfds' in config.export.formats:
    tfds_writer.check()
  if 'array_record' in config.export.formats:
    records.check_array_record()
  files.check_writable(_folder(config, workdir), 'folder', 'export.folder')
  todo = []
  for export in _exports(config, workdir, store, keep_sets):
    with files.lock(export.artifact.path):
      if export.artifact.finished():
        logger.info('%s: finished before, skipped', export.name)
      else:
        todo.append(export)
  with workers.shared_pool(config.corpus, workdir, 'export'):
    index = None
    if any(_needs_corpus(config, export.format) for export in todo):
      index = corpus.read_again(config, store)
    source = _Source(
      workdir,
      store,
      keep_sets,
      index,
      config.corpus.num_workers,
      config.export.include_locations,
    )
    planned = [(export, _work(export, source)) for export in todo]
    for export, work in planned:
      with files.lock(export.artifact.path):
        _write(export, source, work)


def _folder(config: Config, workdir: str) -> str:
  return filesystems.canonical(config.export.folder or export_dir(workdir))


def _selections(config: Config) -> tuple[str, ...]:
  """The keep sets to export: of arms that draw, one for each seed."""
  names = [
    keep_set.selection_name(config.select.arms[arm], arm, seed)
    for arm in config.export.arms or config.arms
    for seed in config.train.seeds
  ]
  return tuple(dict.fromkeys(names))


def _needs_corpus(config: Config, format: str) -> bool:
  return format != 'scores' or config.export.include_locations


def _exports(
  config: Config,
  workdir: str,
  store: TokenStore,
  keep_sets: dict[str, KeepSet],
) -> list[_Export]:
  """What to write, in the order of the config."""
  folder = _folder(config, workdir)
  made = []
  for format in dict.fromkeys(config.export.formats):
    groups: Sequence[tuple[str, tuple[str, ...]]]
    groups = [(name, (name,)) for name in keep_sets]
    inputs = {'token_store': store.fingerprint}
    options: dict[str, Any] = {'format': format}
    if format not in ARM_EXPORTS:
      groups = [(EVERY_ARM, tuple(keep_sets))]
      inputs |= decisions.Tables(workdir, tuple(keep_sets)).inputs()
    if format == 'scores':
      options['include_locations'] = options_of(config.export)[
        'include_locations'
      ]
    for name, selections in groups:
      kept = {
        f'keep_set/{selection}': keep_sets[selection].manifest['fingerprint']
        for selection in selections
      }
      path = posixpath.join(folder, name, format)
      artifact = Artifact(path, 'export', 'export', options, inputs | kept)
      made.append(_Export(artifact, format, selections))
  return made


def _work(export: _Export, source: _Source) -> ShardWork:
  """What is written for each shard.

  Raises:
    UserError: what is to be written does not fit the format.
  """
  if export.format == 'scores':
    write, tasks = decisions.write_scores, _score_tasks(export, source)
    sizes = source.store.documents_per_shard
  else:
    write, tasks = _document_tasks(export, source)
    sizes = [len(task.index.line) for task in tasks]
  return ShardWork(export.name, write, tasks, 'documents', sizes)


def _score_tasks(
  export: _Export, source: _Source
) -> list[decisions.ScoresTask]:
  tables = decisions.Tables(source.workdir, export.selections)
  num_shards = source.store.num_shards
  index = source.index if source.include_locations else None
  return [
    decisions.ScoresTask(
      export.artifact,
      shard,
      num_shards,
      tables,
      index.restricted_to(shard) if index else None,
    )
    for shard in range(num_shards)
  ]


def _document_tasks(
  export: _Export, source: _Source
) -> tuple[Callable[[Any], Marker], list[Any]]:
  """What writes a shard from the documents of the corpus, and its tasks."""
  index = source.index
  assert index is not None  # `_needs_corpus` says so.
  if export.format == 'dolma_attributes':
    tables = decisions.Tables(source.workdir, export.selections)
    return dolma.write_attributes, dolma.tasks(export.artifact, index, tables)
  kept = _kept(source.keep_sets[export.selections[0]], source.store, index)
  num_shards = source.store.num_shards
  tasks = [
    documents.ShardTask(
      export.artifact, shard, num_shards, kept.restricted_to(shard), {}
    )
    for shard in range(num_shards)
  ]
  if export.format == 'jsonl':
    documents.check_json(kept)
  if export.format == 'parquet':
    corpus.source_names(kept)
    types = workers.run_all(documents.record_types, tasks, source.num_workers)
    schemas = documents.schemas_of(kept, types)
    tasks = [dataclasses.replace(task, schemas=schemas) for task in tasks]
  return _WRITERS[export.format], tasks


def _kept(
  chosen: KeepSet, store: TokenStore, index: CorpusIndex
) -> CorpusIndex:
  """The documents of the corpus that a keep set keeps."""
  first = np.cumsum([0, *store.documents_per_shard])
  return index.only(
    np.concatenate(
      [
        first[shard] + chosen.doc_indices(shard)
        for shard in range(store.num_shards)
      ]
    )
  )


def _write(export: _Export, source: _Source, work: ShardWork) -> None:
  """Writes the shards that are not done, then the manifest."""
  artifact = export.artifact.begin()
  tasks = [dataclasses.replace(t, artifact=artifact) for t in work.tasks]
  work = dataclasses.replace(work, tasks=tasks)
  inputs = source.index.files if source.index else ()
  force_subprocess = sources.needs_worker(
    *(file.config for file in inputs)
  ) or (export.format == 'tfds' and quiet_tensorflow.needs_subprocess())
  markers = write_missing_shards(
    artifact, work, source.num_workers, force_subprocess
  )
  more_files = {}
  if export.format == 'tfds':
    name = export.selections[0].replace('-', '_')
    more_files = records.finish_tfds(artifact, name, markers)
  finish_from_markers(
    artifact, markers, sums=['num_documents'], more_files=more_files
  )
