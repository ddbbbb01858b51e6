"""Held-out documents that have a near-copy in text that is not held out.

If the split goes by the hash of a text, only copies are sure to be on one side. A loss on a document whose near-copy a model has read is too low. The
report therefore gives losses without such documents, too.

A near-copy agrees with the document in all rows of a band, and has at least
`near_duplicates.min_jaccard` of the shingles in common with it. The relation is
not transitive, as it is for groups.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from infoprune_jax.config.corpus import SPLITS
from infoprune_jax.config.experiment import Config
from infoprune_jax.corpus import minhash
from infoprune_jax.runtime import artifacts, resumable, workers
from infoprune_jax.runtime.manifests import Manifest, Marker
from infoprune_jax.runtime.options import options_of
from infoprune_jax.runtime.progress import Progress, logger
from infoprune_jax.runtime.workdir import heldout_copies_dir
from infoprune_jax.statistics import signatures, verified_groups
from infoprune_jax.statistics.signatures import Signatures
from infoprune_jax.tokens import tables
from infoprune_jax.tokens.token_store import Shard, TokenStore

JOB = 'near_duplicates'
NONE = -1  # the near-copy of a document that has none


class CopiesManifest(Manifest):
  """A finished table of near-copies."""

  num_examples: int  # held-out documents
  with_near_copy: int  # those of them that have one


def describe(
  config: Config, workdir: str, inputs: Mapping[str, str]
) -> artifacts.Artifact:
  """The table, made from these inputs."""
  options = options_of(config.near_duplicates)
  del options['groups']  # It is about groups of scored documents.
  return artifacts.Artifact(
    heldout_copies_dir(workdir),
    'table of near-copies',
    JOB,
    {**options, 'scheme': minhash.SCHEME},
    inputs,
    sections={'': 'near_duplicates'},
  )


def write(
  config: Config,
  workdir: str,
  store: TokenStore,
  artifact: artifacts.Artifact,
  signed: Signatures,
) -> None:
  """Writes the near-copy of every held-out document, and logs how many have one.

  Args:
    config: The experiment.
    workdir: Of the token store.
    store: The token store.
    artifact: The table.
    signed: The signatures of the store.
  """
  artifact = artifact.begin()
  num_workers = config.corpus.num_workers
  near_copy = _near_copies(config, store, signed)
  tasks, start = [], 0
  for number in range(store.num_shards):
    end = start + len(heldout(store.shard(number)))
    tasks.append(_ShardTask(artifact, workdir, number, near_copy[start:end]))
    start = end
  sizes = [len(task.near_copy) for task in tasks]
  work = resumable.ShardWork(
    f'{JOB}: held out', _write_shard, tasks, 'documents', sizes
  )
  markers = resumable.write_missing_shards(artifact, work, num_workers)
  count = int(np.count_nonzero(near_copy != NONE))
  resumable.finish_from_markers(
    artifact, markers, sums=['num_examples'], with_near_copy=count
  )
  if not count:
    logger.info(
      '%s: none of %d held-out documents has a near-copy in other text',
      *(JOB, len(near_copy)),
    )
    return
  hint = " corpus.split_by='near_duplicate_group' keeps most in one split."
  logger.warning(
    '%s: %d of %d held-out documents have a near-copy in text that is not held '
    'out. The report gives losses without them, too.%s',
    *(JOB, count, len(near_copy)),
    '' if config.split_groups else hint,
  )


def heldout(shard: Shard) -> np.ndarray:
  """The documents of a shard that are held out, ascending int64."""
  return shard.documents_of('heldout')


def not_held_out(shard: Shard) -> np.ndarray:
  """The other documents that have tokens, ascending int64."""
  is_other = shard.column('split') != SPLITS.index('heldout')
  return np.flatnonzero(is_other & (shard.column('num_tokens') > 0))


def _near_copies(
  config: Config, store: TokenStore, signed: Signatures
) -> np.ndarray:
  """The number of the first near-copy in the store, or NONE.

  Returns:
    [held-out documents] int64.
  """
  settings = config.near_duplicates
  numbers = signatures.numbers(store, not_held_out)
  compares = settings.min_jaccard > 0
  tasks = [(signed, band, compares) for band in range(settings.bands)]
  by_band = workers.run_all(_candidates, tasks, config.corpus.num_workers)
  if compares:
    read = signatures.shingle_reader(store, settings.ngram)
    heldout_numbers = signatures.numbers(store, heldout)

    def is_similar(document: int, candidate: int) -> bool:
      both = read(int(heldout_numbers[document])), read(int(numbers[candidate]))
      least = settings.min_jaccard
      return verified_groups.jaccard(*both, least) >= least

    first = _first_similar(list(by_band), is_similar)
  else:
    first = functools.reduce(np.minimum, (found.firsts() for found in by_band))
  near_copy = np.append(numbers, NONE)[np.minimum(first, len(numbers))]
  has_tokens = np.concatenate(
    [
      shard.column('num_tokens')[heldout(shard)] > 0
      for shard in map(store.shard, range(store.num_shards))
    ]
  )
  return np.where(has_tokens, near_copy, NONE)


@dataclasses.dataclass(frozen=True)
class _Candidates:
  """The documents with the key of each held-out document in one band."""

  starts: np.ndarray  # [held-out documents + 1] int64, into `documents`
  documents: np.ndarray  # int64, positions in `not_held_out` of the whole store

  def of(self, document: int) -> np.ndarray:
    return self.documents[self.starts[document] : self.starts[document + 1]]

  def firsts(self) -> np.ndarray:
    """The first candidate of each document, or a number above all of them."""
    none = np.iinfo(np.int64).max
    first = np.append(self.documents, none)[self.starts[:-1]]
    return np.where(np.diff(self.starts) > 0, first, none)


def _candidates(task: tuple[Signatures, int, bool]) -> _Candidates:
  """The candidates in one band: all of them, or the first of each document."""
  signed, band, every = task
  own, others = signed.keys(band, heldout), signed.keys(band, not_held_out)
  order = np.argsort(others, kind='stable')
  others = others[order]
  low = np.searchsorted(others, own, side='left')
  count = np.searchsorted(others, own, side='right') - low
  if not every:
    count = np.minimum(count, 1)
  starts = np.concatenate([[0], np.cumsum(count)])
  places = np.repeat(low - starts[:-1], count) + np.arange(starts[-1])
  return _Candidates(starts, order[places])


def _first_similar(
  by_band: Sequence[_Candidates], is_similar: Callable[[int, int], bool]
) -> np.ndarray:
  """The first similar candidate of each document, or a number above all."""
  count = len(by_band[0].starts) - 1
  first = np.full(count, np.iinfo(np.int64).max)
  progress = Progress(f'{JOB}: held out, compared', 'documents', count)
  for document in range(count):
    candidates = np.unique(
      np.concatenate([found.of(document) for found in by_band])
    )
    for candidate in candidates.tolist():
      if is_similar(document, candidate):
        first[document] = candidate
        break
    progress.add(1)
  progress.finish()
  return first


@dataclasses.dataclass(frozen=True)
class _ShardTask:
  """What a worker needs to write one shard."""

  artifact: artifacts.Artifact
  workdir: str
  shard: int
  near_copy: np.ndarray  # of its held-out documents, [documents] int64


def _write_shard(task: _ShardTask) -> Marker:
  """Writes one shard of the table, and returns its marker."""
  store = signatures.opened(task.workdir)
  shard = store.shard(task.shard)
  made = tables.shard_table(
    tables.HELDOUT_COPIES_SCHEMA,
    task.shard,
    heldout(shard),
    shard.table('content_hash'),
    near_copy=task.near_copy,
  )
  return tables.write_shard(task.artifact, made, task.shard, store.num_shards)


def copied_texts(path: str) -> Any:
  """The texts with a near-copy, by `content_hash`, of a finished table.

  Args:
    path: The folder of the table.

  Returns:
    [texts] int64, each once.
  """
  table = tables.read_table(path, ('content_hash', 'near_copy'))
  is_copied = table['near_copy'].to_numpy() != NONE
  return np.unique(table['content_hash'].to_numpy()[is_copied])
