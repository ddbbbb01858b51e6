"""The stage that computes statistics of examples without a model. No JAX.

It needs no accelerator: each process takes shards of the token store. Rules
read the columns of this table together with those of the score table.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import numpy as np

from infoprune_jax.config.experiment import Config
from infoprune_jax.runtime import artifacts, files, resumable, workers
from infoprune_jax.runtime.manifests import Marker
from infoprune_jax.runtime.progress import logger
from infoprune_jax.runtime.workdir import statistics_dir
from infoprune_jax.tokens import folds as folds_lib, tables
from infoprune_jax.tokens.token_store import TokenStore


def sums_by_document(values: np.ndarray, num_tokens: np.ndarray) -> np.ndarray:
  """Sums consecutive stretches of token values in float64, in token order.

  Args:
    values: [tokens].
    num_tokens: [documents], the length of each stretch; zero gives zero.

  Returns:
    [documents] float64.

  >>> sums_by_document(np.array([1., 2., 4.]), np.array([2, 0, 1])).tolist()
  [3.0, 0.0, 4.0]
  """
  sums = np.zeros(len(num_tokens), np.float64)
  filled = num_tokens > 0
  if filled.any():
    starts = (np.cumsum(num_tokens) - num_tokens)[filled]
    sums[filled] = np.add.reduceat(values.astype(np.float64), starts)
  return sums


def unigram_nll(counts: np.ndarray) -> np.ndarray:
  """-log of each token's frequency, in nats, with one added to every count.

  The logarithm of the inverse word frequency of arXiv 2406.14124, with tokens
  for words.

  Args:
    counts: [V] int64, in the reference split.

  Returns:
    [V] float64; exp(-result) sums to one.
  """
  smoothed = counts.astype(np.float64) + 1.0
  return np.log(smoothed.sum()) - np.log(smoothed)


def token_values(counts: np.ndarray) -> dict[str, np.ndarray]:
  """The values that are summed over a document's tokens, by column.

  They are `unigram_nll`, the frequencies and their squares. arXiv 2509.18577
  takes the deviation of frequencies within a document.

  Args:
    counts: [V] int64, in the reference split.

  Returns:
    [V] float64 each.
  """
  smoothed = counts.astype(np.float64) + 1.0
  frequency = smoothed / smoothed.sum()
  return {
    'unigram_nll_sum': unigram_nll(counts),
    'unigram_frequency_sum': frequency,
    'unigram_frequency_square_sum': frequency**2,
  }


def run(config: Config, workdir: str) -> None:
  """Writes the statistics of every scored example.

  Raises:
    UserError: the token store is missing, or the table there has other inputs.
  """
  store = TokenStore.open(workdir)
  folds = config.reference.folds
  artifact = dataclasses.replace(
    describe(config, workdir, {'token_store': store.fingerprint}),
    earlier_stores=store.earlier,
  )
  with files.lock(artifact.path):
    if artifact.finished():
      logger.info('statistics: finished before, skipped')
      return
    artifact = artifact.begin()
    if folds == 1 and not folds_lib.has_reference(store):
      logger.info(
        'statistics: there is no reference split: token frequencies are those '
        'of the scored documents themselves'
      )
    num_workers = config.corpus.num_workers
    with workers.shared_pool(config.corpus, workdir, 'statistics'):
      counts = token_counts(workdir, store, folds, num_workers)
      write(artifact, workdir, store, counts, num_workers)


def describe(
  config: Config, workdir: str, inputs: Mapping[str, str]
) -> artifacts.Artifact:
  """The table, made from these inputs."""
  return artifacts.Artifact(
    statistics_dir(workdir),
    'table of statistics',
    'statistics',
    options(config.reference.folds),
    inputs,
    sections={'folds': 'reference.folds'},
  )


def options(folds: int) -> dict[str, Any]:
  """The options of the table; tables of older versions had fewer columns."""
  return {'folds': folds, 'columns': tables.STATISTICS_SCHEMA.names}


def token_counts(
  workdir: str, store: TokenStore, folds: int, num_workers: int
) -> np.ndarray:
  """How often tokens occur in the training text of each fold, [folds, V] int64.

  Documents that were added to a corpus are no training text.

  Args:
    workdir: The workdir of the store.
    store: The token store.
    folds: Number of reference models.
    num_workers: Processes; 0 for one per core.
  """
  tasks = [(workdir, shard, folds) for shard in range(store.first.num_shards)]
  counts = np.zeros((folds, store.vocab_size), np.int64)
  for of_shard in workers.run_all(_count, tasks, num_workers):
    counts += of_shard
  return counts


def write(
  artifact: artifacts.Artifact,
  workdir: str,
  store: TokenStore,
  counts: np.ndarray,
  num_workers: int,
) -> None:
  """Writes the missing shards, then the manifest.

  Args:
    artifact: The table, begun.
    workdir: The workdir of the store.
    store: The token store with the examples.
    counts: [folds, V] int64, the result of `token_counts`.
    num_workers: Processes; 0 for one per core.
  """
  tasks = [
    _ShardTask(artifact, workdir, shard, counts)
    for shard in range(store.num_shards)
  ]
  work = resumable.ShardWork(
    'statistics',
    _write_shard,
    tasks,
    'documents',
    store.documents_per_shard,
    store.totals,
  )
  markers = resumable.write_missing_shards(artifact, work, num_workers)
  resumable.finish_from_markers(artifact, markers, sums=['num_examples'])


@dataclasses.dataclass(frozen=True)
class _ShardTask:
  """What a worker needs to write one shard."""

  artifact: artifacts.Artifact
  workdir: str
  shard: int
  counts: np.ndarray  # [folds, V] int64


@functools.lru_cache(maxsize=1)
def _opened(workdir: str) -> TokenStore:
  return TokenStore.open(workdir)


def _count(task: tuple[str, int, int]) -> np.ndarray:
  """Token counts of each fold's training text in a shard, [folds, V]."""
  workdir, shard, folds = task
  store = _opened(workdir)
  return np.stack(
    [
      folds_lib.unigram_counts(store, fold, folds, [shard])
      for fold in range(folds)
    ]
  )


def _write_shard(task: _ShardTask) -> Marker:
  """Writes one shard, and returns its marker."""
  store = _opened(task.workdir)
  shard = store.shard(task.shard)
  fold = folds_lib.fold_of_documents(shard, len(task.counts))
  num_tokens = shard.column('num_tokens')
  sums = {name: np.zeros(len(fold)) for name in tables.TOKEN_SUMS}
  for number, counts in enumerate(task.counts):
    here = fold == number
    for name, values in token_values(counts).items():
      of_all = sums_by_document(values[shard.tokens], num_tokens)
      sums[name][here] = of_all[here]
  doc_indices = np.flatnonzero(fold >= 0)
  made = tables.shard_table(
    tables.STATISTICS_SCHEMA,
    task.shard,
    doc_indices,
    shard.table('compressed_bytes'),
    **{name: values[doc_indices] for name, values in sums.items()},
  )
  total = store.totals[task.shard]
  return tables.write_shard(task.artifact, made, task.shard, total)
