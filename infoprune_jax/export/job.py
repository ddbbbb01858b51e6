"""The job that exports kept documents and scores for other programs. No JAX.

Each arm and format is an artifact of its own, whose shards processes write.
"""

import dataclasses
import posixpath
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from infoprune_jax.config.experiment import ARM_EXPORTS, Config
from infoprune_jax.corpus import quiet_tensorflow, sources
from infoprune_jax.corpus.corpus_index import CorpusIndex
from infoprune_jax.corpus.records import InputFile
from infoprune_jax.export import (
  decisions,
  documents,
  dolma,
  levanter,
  mds,
  megatron,
  records,
  tfds_writer,
)
from infoprune_jax.export.kept_tokens import KeptTokens, TokenTask
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
from infoprune_jax.tokens import original_documents
from infoprune_jax.tokens.token_store import TokenStore

# No arm has this name: it is not an identifier.
EVERY_ARM = 'every-arm'
_TABLES = {
  'scores': decisions.write_scores,
  'keep_set': decisions.write_keep_set,
}
_WRITERS: dict[str, Callable[[documents.ShardTask], Marker]] = {
  'jsonl': documents.write_jsonl,
  'parquet': documents.write_parquet,
  'array_record': records.write_array_record,
  'tfds': records.write_tfds,
  'mds': mds.write_mds,
}
_TOKENS = ('megatron', 'levanter')  # formats of token ids
# Formats with as many copies of an example as an epoch uses.
_WITH_COPIES = (*_TOKENS, 'mds')


@dataclasses.dataclass(frozen=True)
class _Export:
  """One folder to write."""

  artifact: Artifact
  format: str
  selections: tuple[str, ...]  # the keep sets that it exports

  @property
  def name(self) -> str:
    """The name in the log, such as 'export: top/jsonl'."""
    return 'export: ' + '/'.join(self.artifact.path.split('/')[-2:])


@dataclasses.dataclass(frozen=True)
class _Source:
  """The artifacts to export."""

  workdir: str
  store: TokenStore
  keep_sets: dict[str, KeepSet]
  index: CorpusIndex | None  # of the whole corpus, if a format needs it
  num_workers: int
  include_locations: bool  # of the formats in _TABLES
  joined: tuple[str, ...]  # names of tables of the user's
  classifiers: tuple[str, ...]  # their names

  def tables(self, selections: tuple[str, ...]) -> decisions.Tables:
    """The tables of all documents, with these keep sets."""
    return decisions.Tables(
      self.workdir, selections, self.joined, self.classifiers
    )


def run(config: Config, workdir: str) -> None:
  """Writes the exports of `config.export`; finished ones are skipped.

  Raises:
    UserError: an artifact is missing, the corpus changed since it was
      tokenized, or a record does not fit a format.
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
      index = original_documents.read_again(config, store, 'export')
    source = _Source(
      workdir,
      store,
      keep_sets,
      index,
      config.corpus.num_workers,
      config.export.include_locations,
      tuple(config.select.tables),
      tuple(config.classifiers),
    )
    planned = [(export, _work(export, source)) for export in todo]
    for export, work in planned:
      with files.lock(export.artifact.path):
        _write(export, source, work)


def refusals(config: Config, inputs: Sequence[InputFile]) -> list[str]:
  """A sentence for each source that a format of `config.export` cannot hold.

  Args:
    config: The experiment.
    inputs: The units of the corpus. The first one of each source is read.

  Raises:
    UserError: a file cannot be read.
  """
  first = {file.source: file for file in reversed(inputs)}
  files = list(first.values())[::-1]
  problems = []
  for format in config.export.formats:
    if format in ('jsonl', 'parquet'):
      problems += documents.refusals(files, format)
  if 'dolma_attributes' in config.export.formats:
    problems += filter(None, map(dolma.not_jsonl, files))
  return problems


def _folder(config: Config, workdir: str) -> str:
  return filesystems.canonical(config.export.folder or export_dir(workdir))


def _selections(config: Config) -> tuple[str, ...]:
  """The keep sets to export; for arms that draw at random, one per seed."""
  names = [
    keep_set.selection_name(config.select, arm, seed)
    for arm in config.export.arms or config.selected
    for seed in config.train.seeds
  ]
  return tuple(dict.fromkeys(names))


def _needs_corpus(config: Config, format: str) -> bool:
  if format in _TABLES:
    return config.export.include_locations
  return format not in _TOKENS


def folders(config: Config) -> list[tuple[str, str, tuple[str, ...]]]:
  """The format, name and keep sets of each export, in the config's order."""
  names = _selections(config)
  return [
    (format, name, selections)
    for format in dict.fromkeys(config.export.formats)
    for name, selections in (
      [(name, (name,)) for name in names]
      if format in ARM_EXPORTS
      else [(EVERY_ARM, names)]
    )
  ]


def describe(
  config: Config,
  workdir: str,
  format: str,
  name: str,
  inputs: Mapping[str, str],
) -> Artifact:
  """The export of a format, to a folder of this name, made from these inputs."""
  options: dict[str, Any] = {'format': format}
  if format in _TABLES:
    options['include_locations'] = options_of(config.export)[
      'include_locations'
    ]
  path = posixpath.join(_folder(config, workdir), name, format)
  sections = {'': 'export'}
  return Artifact(path, 'export', 'export', options, inputs, sections)


def _exports(
  config: Config,
  workdir: str,
  store: TokenStore,
  keep_sets: dict[str, KeepSet],
) -> list[_Export]:
  """The exports to write, in the order of the config."""
  made = []
  for format, name, selections in folders(config):
    inputs = {'token_store': store.fingerprint}
    if name == EVERY_ARM:
      others = tuple(config.select.tables), tuple(config.classifiers)
      inputs |= decisions.Tables(workdir, selections, *others).inputs()
    for selection in selections:
      kept = keep_sets[selection].manifest['fingerprint']
      inputs[f'keep_set/{selection}'] = kept
    artifact = describe(config, workdir, format, name, inputs)
    made.append(_Export(artifact, format, selections))
  return made


def _work(export: _Export, source: _Source) -> ShardWork:
  """The work for each shard.

  Raises:
    UserError: a record does not fit the format.
  """
  unit = 'documents'
  if export.format in _TABLES:
    write, tasks = _TABLES[export.format], _table_tasks(export, source)
    sizes = source.store.documents_per_shard
  elif export.format == 'levanter':
    kept = _kept_tokens(export, source, with_bos=True)
    write = levanter.write_chunk
    tasks = levanter.tasks(export.artifact, kept, source.store.num_shards)
    sizes, unit = [task.last - task.first for task in tasks], 'values'
  elif export.format == 'megatron':
    write, tasks = megatron.write_megatron, _token_tasks(export, source)
    sizes = [len(task.kept.ends(task.shard)) for task in tasks]
  else:
    write, tasks = _document_tasks(export, source)
    sizes = [len(task.index.line) for task in tasks]
  return ShardWork(export.name, write, tasks, unit, sizes)


def _token_tasks(export: _Export, source: _Source) -> list[TokenTask]:
  store = source.store
  kept = _kept_tokens(export, source, with_bos=False)
  return [
    TokenTask(export.artifact, shard, store.num_shards, kept, store.vocab_size)
    for shard in range(store.num_shards)
  ]


def _kept_tokens(
  export: _Export, source: _Source, with_bos: bool
) -> KeptTokens:
  [selection] = export.selections
  fingerprint = source.keep_sets[selection].manifest['fingerprint']
  return KeptTokens(source.workdir, selection, fingerprint, with_bos)


def _table_tasks(export: _Export, source: _Source) -> list[decisions.TableTask]:
  tables = source.tables(export.selections)
  num_shards = source.store.num_shards
  index = source.index if source.include_locations else None
  return [
    decisions.TableTask(
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
  """The writer of a shard from the documents of the corpus, and its tasks."""
  index = source.index
  assert index is not None  # `_needs_corpus` says so.
  if export.format == 'dolma_attributes':
    tables = source.tables(export.selections)
    return dolma.write_attributes, dolma.tasks(export.artifact, index, tables)
  chosen = source.keep_sets[export.selections[0]]
  kept, repeats = _kept(chosen, source.store, index)
  num_shards = source.store.num_shards
  tasks = [
    documents.ShardTask(
      export.artifact,
      shard,
      num_shards,
      kept.restricted_to(shard),
      {},
      repeats[kept.shard == shard] if chosen.has_repeats else None,
    )
    for shard in range(num_shards)
  ]
  if chosen.has_repeats and export.format not in _WITH_COPIES:
    logger.info(
      '%s: each example is written once; how often an epoch uses it is in '
      'its field %r',
      export.name,
      documents.REPEATS,
    )
  if export.format in ('jsonl', 'parquet'):
    documents.check_columns(kept, export.format)
    if chosen.has_repeats:
      documents.check_repeats(kept)
  if export.format == 'parquet':
    original_documents.source_names(kept)
    types = workers.run_all(documents.record_types, tasks, source.num_workers)
    schemas = documents.schemas_of(kept, types, chosen.has_repeats)
    if len(set(schemas.values())) > 1:
      logger.info(
        '%s: the sources have different columns: read those of one, '
        'data/*.SOURCE.parquet',
        export.name,
      )
    tasks = [dataclasses.replace(task, schemas=schemas) for task in tasks]
  return _WRITERS[export.format], tasks


def _kept(
  chosen: KeepSet, store: TokenStore, index: CorpusIndex
) -> tuple[CorpusIndex, np.ndarray]:
  """The documents of the corpus that a keep set keeps.

  Also returns how often an epoch uses each, [kept] uint8.
  """
  repeats = np.concatenate(
    [chosen.of_shard(shard) for shard in range(store.num_shards)]
  )
  kept = np.flatnonzero(repeats)
  return index.only(kept), repeats[kept]


def _write(export: _Export, source: _Source, work: ShardWork) -> None:
  """Writes the missing shards, then the manifest."""
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
    with_repeats = source.keep_sets[export.selections[0]].has_repeats
    more_files = records.finish_tfds(artifact, name, markers, with_repeats)
  elif export.format == 'mds':
    more_files = {mds.INDEX: mds.write_index(artifact, markers)}
  elif export.format == 'levanter':
    more_files = levanter.write_metadata(artifact, markers)
  finish_from_markers(
    artifact, markers, sums=['num_documents'], more_files=more_files
  )
