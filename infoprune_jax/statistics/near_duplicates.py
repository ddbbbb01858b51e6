"""The stage that finds groups of near-duplicate documents. No JAX.

Documents whose MinHash signatures agree in all rows of a band are joined, and so
are those joined to them, see `signatures`. The defaults for shingles, bands and rows are those of FineWeb (arXiv
2406.17557), for documents with three quarters in common. As in FineWeb, no pair
is compared again, unless the config says so: see `verified_groups`.

Groups are those of the scored examples alone. For held-out documents the stage
looks for near-copies in all other text: see `heldout_copies`.
"""

import dataclasses
import functools
from collections.abc import Mapping

import numpy as np

from infoprune_jax.config.experiment import Config
from infoprune_jax.corpus import minhash
from infoprune_jax.runtime import (
  artifacts,
  files,
  filesystems,
  resumable,
  workers,
)
from infoprune_jax.runtime.manifests import Marker
from infoprune_jax.runtime.options import options_of
from infoprune_jax.runtime.progress import Progress, logger
from infoprune_jax.runtime.workdir import near_duplicates_dir
from infoprune_jax.statistics import (
  heldout_copies,
  signatures as signatures_lib,
  verified_groups,
)
from infoprune_jax.statistics.signatures import Signatures
from infoprune_jax.tokens import folds as folds_lib, tables
from infoprune_jax.tokens.token_store import Shard, TokenStore

JOB = 'near_duplicates'


def run(config: Config, workdir: str) -> None:
  """Writes the group of every scored example.

  Raises:
    UserError: the token store is missing, or the table there has other inputs.
  """
  store = TokenStore.open(workdir)
  inputs = {'token_store': store.fingerprint}
  table = describe(config, workdir, inputs)
  copies = heldout_copies.describe(config, workdir, inputs)
  signatures = dataclasses.replace(
    table,
    path=f'{table.path}/signatures',
    kind='signatures',
    options={**table.options, 'documents': 'all'},
  )
  with files.lock(table.path):
    to_do = [one for one in (table, copies) if not one.finished()]
    if not to_do:
      logger.info('%s: finished before, skipped', JOB)
      return
    with workers.shared_pool(config.corpus, workdir, JOB):
      signed = signatures_lib.write(
        signatures,
        workdir,
        store,
        config.near_duplicates,
        config.corpus.num_workers,
      )
      if table in to_do:
        columns = _groups(config, store, signed)
        _write_table(config, workdir, store, table.begin(), columns)
      if copies in to_do:
        heldout_copies.write(config, workdir, store, copies, signed)
    # Signatures are much larger than the table, and no longer needed.
    filesystems.delete_folder(signatures.path)


def describe(
  config: Config, workdir: str, inputs: Mapping[str, str]
) -> artifacts.Artifact:
  """The table, made from these inputs."""
  options = {
    **options_of(config.near_duplicates),
    'scheme': minhash.SCHEME,
    'folds': config.reference.folds,
  }
  return artifacts.Artifact(
    near_duplicates_dir(workdir),
    'table of near-duplicates',
    JOB,
    options,
    inputs,
    sections={'': 'near_duplicates', 'folds': 'reference.folds'},
  )


@dataclasses.dataclass(frozen=True)
class _ShardTask:
  """What a worker needs to write one shard."""

  artifact: artifacts.Artifact
  workdir: str
  shard: int
  folds: int
  columns: dict[str, np.ndarray]  # of the table: [documents] each


def _doc_indices(shard: Shard, folds: int) -> np.ndarray:
  """The documents of a shard in the table, the same as in the score table."""
  return np.flatnonzero(folds_lib.fold_of_documents(shard, folds) >= 0)


def _pairs(task: tuple[Signatures, int, int]) -> np.ndarray:
  """Neighbours of equal keys in one band, [2, pairs] int64."""
  keys = _keys(*task)
  order = np.argsort(keys, kind='stable')
  same = np.flatnonzero(keys[order[1:]] == keys[order[:-1]])
  return np.stack([order[same], order[same + 1]])


def _buckets(task: tuple[Signatures, int, int]) -> np.ndarray:
  return verified_groups.buckets(_keys(*task))


def _keys(signed: Signatures, band: int, folds: int) -> np.ndarray:
  return signed.keys(band, functools.partial(_doc_indices, folds=folds))


def _groups(
  config: Config, store: TokenStore, signed: Signatures
) -> dict[str, np.ndarray]:
  """The table's columns: the first document of each group, and its size."""
  settings, folds = config.near_duplicates, config.reference.folds
  tasks = [(signed, band, folds) for band in range(settings.bands)]
  document = signatures_lib.numbers(
    store, functools.partial(_doc_indices, folds=folds)
  )
  if settings.min_jaccard or settings.groups == 'star':
    group = _verified(config, store, document, tasks)
  else:
    group = _unverified(config, tasks, len(document))
  logger.info(
    '%s: %d of %d examples are near-duplicates of an earlier one',
    *(JOB, np.count_nonzero(group != np.arange(len(group))), len(group)),
  )
  return {
    'near_duplicate_group': document[group],
    'near_duplicates': np.bincount(group)[group].astype(np.int32),
  }


def _unverified(
  config: Config, tasks: list[tuple[Signatures, int, int]], count: int
) -> np.ndarray:
  """The first document of each group of documents that bands join."""
  progress = Progress(f'{JOB}: groups', 'bands', len(tasks))
  pairs = np.zeros((2, 0), np.int64)
  for of_band in workers.run_all(_pairs, tasks, config.corpus.num_workers):
    # Most pairs are in many bands.
    pairs = np.unique(np.concatenate([pairs, of_band], axis=1), axis=1)
    progress.add(1)
  progress.finish()
  return minhash.joined(pairs, count)


def _verified(
  config: Config,
  store: TokenStore,
  document: np.ndarray,
  tasks: list[tuple[Signatures, int, int]],
) -> np.ndarray:
  """The first document of each group of documents that are compared.

  Args:
    config: The experiment.
    store: The token store.
    document: The number in the store of each document of the table.
    tasks: For `_buckets`.
  """
  settings, num_workers = config.near_duplicates, config.corpus.num_workers
  read = signatures_lib.shingle_reader(store, settings.ngram)
  texts = np.concatenate(
    [
      shard.column('content_hash')[_doc_indices(shard, config.reference.folds)]
      for shard in map(store.shard, range(store.num_shards))
    ]
  )
  _, first, inverse = np.unique(texts, return_index=True, return_inverse=True)
  groups = verified_groups.Groups(
    lambda number: read(int(document[number])),
    settings.min_jaccard,
    settings.groups == 'star',
  )
  by_band = list(workers.run_all(_buckets, tasks, num_workers))
  return groups.find(by_band, first[inverse], f'{JOB}: compared')


def _write_shard(task: _ShardTask) -> Marker:
  """Writes one shard of the table, and returns its marker."""
  store = signatures_lib.opened(task.workdir)
  shard = store.shard(task.shard)
  made = tables.shard_table(
    tables.NEAR_DUPLICATES_SCHEMA,
    task.shard,
    _doc_indices(shard, task.folds),
    shard.table('num_tokens'),
    **task.columns,
  )
  return tables.write_shard(task.artifact, made, task.shard, store.num_shards)


def _write_table(
  config: Config,
  workdir: str,
  store: TokenStore,
  artifact: artifacts.Artifact,
  columns: dict[str, np.ndarray],
) -> None:
  """Writes the missing shards, then the manifest."""
  folds = config.reference.folds
  tasks, start = [], 0
  for shard in range(store.num_shards):
    end = start + len(_doc_indices(store.shard(shard), folds))
    own = {name: values[start:end] for name, values in columns.items()}
    tasks.append(_ShardTask(artifact, workdir, shard, folds, own))
    start = end
  groups = columns['near_duplicate_group']
  work = resumable.ShardWork(
    JOB, _write_shard, tasks, 'documents', store.documents_per_shard
  )
  markers = resumable.write_missing_shards(
    artifact, work, config.corpus.num_workers
  )
  resumable.finish_from_markers(
    artifact,
    markers,
    num_examples=len(groups),
    num_groups=len(np.unique(groups)),
  )
