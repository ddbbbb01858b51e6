"""The stage that finds text of benchmarks in the corpus. No JAX.

The token store has no texts, and a vocabulary may lose some of a text, so that
the corpus itself is read again.
"""

import dataclasses
import functools
import posixpath
from collections.abc import Mapping

import numpy as np

from infoprune_jax.config.experiment import Config
from infoprune_jax.corpus import sources
from infoprune_jax.corpus.corpus_index import CorpusIndex
from infoprune_jax.runtime import (
  artifacts,
  files,
  manifests,
  resumable,
  workers,
)
from infoprune_jax.runtime.manifests import Manifest, Marker
from infoprune_jax.runtime.options import options_of
from infoprune_jax.runtime.progress import logger, quantity
from infoprune_jax.runtime.workdir import contamination_dir
from infoprune_jax.statistics import benchmark_ngrams
from infoprune_jax.statistics.benchmark_ngrams import INPUT, BenchmarkNgrams
from infoprune_jax.tokens import (
  folds as folds_lib,
  original_documents,
  tables,
)
from infoprune_jax.tokens.token_store import TokenStore

JOB = 'decontaminate'
_SCHEME = 'nfkc-lower-lmn'  # of words, see `words`
_HASHES, _OWNERS = 'hashes.npy', 'owners.npy'


def check(config: Config) -> None:
  """Reads the benchmarks.

  Raises:
    UserError: as `benchmark_ngrams.read`.
  """
  if config.select.decontaminate.paths:
    benchmark_ngrams.read(config.select.decontaminate)


def run(config: Config, workdir: str) -> None:
  """Counts the n-grams of every scored example that are in a benchmark.

  Raises:
    UserError: the token store is missing, the table there has other inputs, a
      benchmark cannot be read, or the corpus has changed.
  """
  store = TokenStore.open(workdir)
  section = config.select.decontaminate
  if not section.paths:
    logger.info(
      '%s: select.decontaminate names no benchmarks: nothing to do', JOB
    )
    return
  path = contamination_dir(workdir)
  with files.lock(path):
    manifest = manifests.read_manifest(path, JOB)
    # The files may no longer be there.
    read = (
      {n: d for n, d in manifest['inputs'].items() if n.startswith(INPUT)}
      if manifest
      else benchmark_ngrams.digests(section)
    )
    inputs = {'token_store': store.fingerprint, **read}
    artifact = describe(config, workdir, inputs)
    if artifact.finished():
      logger.info('%s: finished before, skipped', JOB)
      return
    # Bad benchmarks are refused before anything is written.
    ngrams = _ngrams(artifact)
    known = None if ngrams.finished() else benchmark_ngrams.read(section)
    with workers.shared_pool(config.corpus, workdir, JOB):
      index = original_documents.read_again(config, store, JOB)
      artifact = artifact.begin()
      if known:
        _save(ngrams, known)
      _write_table(config, workdir, artifact, index)


def describe(
  config: Config, workdir: str, inputs: Mapping[str, str]
) -> artifacts.Artifact:
  """The table, made from these inputs."""
  options = options_of(config.select.decontaminate)
  del options['paths']  # The files count, and not where they are.
  return artifacts.Artifact(
    contamination_dir(workdir),
    'table of contamination',
    JOB,
    {**options, 'scheme': _SCHEME, 'folds': config.reference.folds},
    inputs,
    sections={'': 'select.decontaminate', 'folds': 'reference.folds'},
  )


def _ngrams(table: artifacts.Artifact) -> artifacts.Artifact:
  """The n-grams of the benchmarks, below the table: workers read them."""
  path = posixpath.join(table.path, 'ngrams')
  return dataclasses.replace(table, path=path, kind='n-grams of benchmarks')


class _NgramsManifest(Manifest):
  benchmarks: list[str]  # their names
  ngram: int


def _save(artifact: artifacts.Artifact, ngrams: BenchmarkNgrams) -> None:
  artifact = artifact.begin()
  arrays = {_HASHES: ngrams.hashes, _OWNERS: ngrams.owners}
  written = {
    name: artifact.write_file(
      posixpath.join(artifact.path, name), functools.partial(_dump, array)
    )
    for name, array in arrays.items()
  }
  artifact.finish(written, benchmarks=list(ngrams.names), ngram=ngrams.ngram)
  logger.info(
    '%s: %s of %d benchmarks',
    JOB,
    quantity(len(ngrams.hashes), 'n-grams'),
    len(ngrams.names),
  )


def _dump(array: np.ndarray, file: object) -> None:
  np.save(file, array)  # pyright: ignore[reportArgumentType]


@functools.lru_cache(maxsize=1)
def _loaded(path: str) -> BenchmarkNgrams:
  manifest = manifests.open_finished(path, 'n-grams of benchmarks', JOB)
  hashes, owners = (
    np.load(manifests.verified(path, manifest, name))
    for name in (_HASHES, _OWNERS)
  )
  facts: _NgramsManifest = manifest  # pyright: ignore[reportAssignmentType]
  return BenchmarkNgrams(
    tuple(facts['benchmarks']), hashes, owners, facts['ngram']
  )


@dataclasses.dataclass(frozen=True)
class _ShardTask:
  """What a worker needs to write one shard."""

  artifact: artifacts.Artifact
  workdir: str
  shard: int
  index: CorpusIndex  # of this shard alone
  folds: int


@functools.lru_cache(maxsize=1)
def _opened(workdir: str) -> TokenStore:
  return TokenStore.open(workdir)


def _write_shard(task: _ShardTask) -> Marker:
  """Writes one shard of the table, and returns its marker."""
  store = _opened(task.workdir)
  shard = store.shard(task.shard)
  is_scored = folds_lib.fold_of_documents(shard, task.folds) >= 0
  known = _loaded(_ngrams(task.artifact).path)
  counts = [
    known.count(document.text) for document in task.index.documents(is_scored)
  ]
  made = tables.shard_table(
    tables.CONTAMINATION_SCHEMA,
    task.shard,
    np.flatnonzero(is_scored),
    shard.table('num_tokens'),
    contaminated_ngrams=np.array([count for count, _ in counts], np.int32),
    contaminated_by=np.array([names for _, names in counts], object),
  )
  return tables.write_shard(task.artifact, made, task.shard, store.num_shards)


def _write_table(
  config: Config,
  workdir: str,
  artifact: artifacts.Artifact,
  index: CorpusIndex,
) -> None:
  """Writes the missing shards, then the manifest."""
  folds, num_shards = config.reference.folds, index.generations[-1].num_shards
  tasks = [
    _ShardTask(artifact, workdir, shard, index.restricted_to(shard), folds)
    for shard in range(num_shards)
  ]
  sizes = [int(task.index.num_bytes.sum()) for task in tasks]
  work = resumable.ShardWork(JOB, _write_shard, tasks, 'B', sizes)
  markers = resumable.write_missing_shards(
    artifact,
    work,
    config.corpus.num_workers,
    sources.needs_worker(*(file.config for file in index.files)),
  )
  resumable.finish_from_markers(artifact, markers, sums=['num_examples'])
