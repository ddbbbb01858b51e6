"""The stage that computes statistics of examples without a model. No JAX.

It needs no accelerator: processes share the parts of the token store. A rule
reads the columns of this table beside those of the score table.
"""

import dataclasses
import functools
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
  """Writes the statistics of every example that is scored.

  Raises:
    UserError: the token store is missing, or what is there is another's.
  """
  store = TokenStore.open(workdir)
  path = statistics_dir(workdir)
  folds = config.reference.folds
  artifact = artifacts.Artifact(
    path,
    'table of statistics',
    'statistics',
    options(folds),
    {'token_store': store.fingerprint},
  )
  with files.lock(path):
    if artifact.finished():
      logger.info('statistics: finished before, skipped')
      return
    artifact = artifact.begin()
    num_workers = config.corpus.num_workers
    with workers.shared_pool(config.corpus, workdir, 'statistics'):
      counts = token_counts(workdir, store, folds, num_workers)
      write(artifact, workdir, store, counts, num_workers)


def options(folds: int) -> dict[str, Any]:
  """The options of the table; tables of older versions had fewer columns."""
  return {'folds': folds, 'columns': tables.STATISTICS_SCHEMA.names}


def token_counts(
  workdir: str, store: TokenStore, folds: int, num_workers: int
) -> np.ndarray:
  """How often tokens occur where each fold trains, [folds, V] int64.

  Args:
    workdir: Of the store.
    store: The tokens to count.
    folds: How many reference models there are.
    num_workers: Processes; 0 for one a core.
  """
  tasks = [(workdir, shard, folds) for shard in range(store.num_shards)]
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
  """Writes the shards that are not done, then the manifest.

  Args:
    artifact: The table, begun.
    workdir: Of the store.
    store: Whose examples they are.
    counts: [folds, V] int64, of tokens, as `token_counts` gives them.
    num_workers: Processes; 0 for one a core.
  """
  tasks = [
    _ShardTask(artifact, workdir, shard, counts)
    for shard in range(store.num_shards)
  ]
  work = resumable.ShardWork(
    'statistics', _write_shard, tasks, 'documents', store.documents_per_shard
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
  """How often tokens occur in a shard where each fold trains, [folds, V]."""
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
  return task.artifact.finish_shard(
    task.shard,
    store.num_shards,
    tables.shard_file(made, task.shard, store.num_shards),
    num_examples=len(doc_indices),
  )
