"""The stage that finds text which several examples have in common. No JAX.

Windows of 50 tokens, as in "Deduplicating Training Data Makes Language Models
Better" (arXiv 2107.06499), which are found there by suffix arrays. Here their
hashes are sorted: those of a block of tokens, and then those of all blocks in
one range of hashes. A worker holds one block, or one such range.

The token store has no texts, and a vocabulary may lose some of a text, so that
tokens are counted, and not bytes.
"""

import dataclasses
import itertools
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from infoprune_jax.config.experiment import Config
from infoprune_jax.runtime import (
  artifacts,
  files,
  filesystems,
  resumable,
  workers,
)
from infoprune_jax.runtime.manifests import Marker
from infoprune_jax.runtime.options import options_of
from infoprune_jax.runtime.progress import logger, quantity
from infoprune_jax.runtime.workdir import data_file, duplicated_text_dir
from infoprune_jax.statistics import text_windows
from infoprune_jax.statistics.signatures import opened
from infoprune_jax.tokens import folds as folds_lib, tables
from infoprune_jax.tokens.token_store import TokenStore

JOB = 'duplicated_text'
# The tokens of a block, and about as many hashes in a range. A worker takes 100
# bytes for each, 0.8 GB.
_BLOCK = 1 << 23
_HASHES, _MARKS = 'hashes', 'marks'  # folders of arrays


class _HashesMarker(Marker):
  """The sorted hashes of one shard, block by block."""

  # How many each block has in each range, [blocks][ranges].
  sizes: list[list[int]]


class _TableMarker(tables.TableMarker):
  """A finished shard of the table."""

  duplicated_tokens: int
  repeated_tokens: int


@dataclasses.dataclass(frozen=True)
class _Job:
  """What all workers need."""

  table: artifacts.Artifact
  hashes: artifacts.Artifact
  marks: artifacts.Artifact
  workdir: str
  num_shards: int
  window: int
  folds: int
  num_ranges: int
  block: int


def run(config: Config, workdir: str) -> None:
  """Writes how many tokens of every scored example occur elsewhere, too.

  Raises:
    UserError: the token store is missing, or the table there has other inputs.
  """
  opened.cache_clear()  # The store may have grown in this process.
  store = TokenStore.open(workdir)
  table = describe(config, workdir, {'token_store': store.fingerprint})
  with files.lock(table.path):
    if table.finished():
      logger.info('%s: finished before, skipped', JOB)
      return
    hashes, marks = (
      dataclasses.replace(
        table,
        path=f'{table.path}/{name}',
        kind=f'{name} of windows',
        options={**table.options, 'block': _BLOCK},
      )
      for name in (_HASHES, _MARKS)
    )
    job = _Job(
      *(table.begin(), hashes, marks),
      workdir,
      store.num_shards,
      config.select.duplicated_text.window,
      config.reference.folds,
      max(-(-store.manifest['num_tokens'] // _BLOCK), 1),
      _BLOCK,
    )
    with workers.shared_pool(config.corpus, workdir, JOB):
      _write(job, store, config.corpus.num_workers)
    # Hashes are much larger than the table, and no longer needed.
    for one in (job.hashes, job.marks):
      filesystems.delete_folder(one.path)


def describe(
  config: Config, workdir: str, inputs: Mapping[str, str]
) -> artifacts.Artifact:
  """The table, made from these inputs."""
  return artifacts.Artifact(
    duplicated_text_dir(workdir),
    'table of duplicated text',
    JOB,
    {
      **options_of(config.select.duplicated_text),
      'folds': config.reference.folds,
    },
    inputs,
    sections={'': 'select.duplicated_text', 'folds': 'reference.folds'},
  )


def _write(job: _Job, store: TokenStore, num_workers: int) -> None:
  """Writes hashes, marks and the table: what is missing of each."""
  tokens = [int(store.shard(n).offsets[-1]) for n in range(store.num_shards)]
  shards = range(store.num_shards)
  job = dataclasses.replace(
    job, hashes=job.hashes.begin(), marks=job.marks.begin()
  )
  work = resumable.ShardWork(
    f'{JOB}: hashes',
    _write_hashes,
    [(job, n) for n in shards],
    'tokens',
    tokens,
  )
  hashed: list[_HashesMarker] = resumable.write_missing_shards(
    job.hashes, work, num_workers
  )
  # [blocks, ranges] of each shard.
  sizes = [
    np.array(one['sizes'], np.int64).reshape(-1, job.num_ranges)
    for one in hashed
  ]
  slices = [_slices(of_shard) for of_shard in sizes]
  tasks = [
    _RangeTask(job, number, [one[:, :, number] for one in slices])
    for number in range(job.num_ranges)
  ]
  every = np.concatenate(sizes)
  work = resumable.ShardWork(
    f'{JOB}: marks', _write_marks, tasks, 'hashes', every.sum(axis=0).tolist()
  )
  resumable.write_missing_shards(job.marks, work, num_workers)
  # A file of marks has those of all blocks, in order.
  before = np.cumsum(every, axis=0) - every
  ends = np.cumsum([0, *map(len, sizes)]).tolist()
  tasks = [
    _ShardTask(job, number, np.stack([before[start:end], every[start:end]]))
    for number, (start, end) in enumerate(itertools.pairwise(ends))
  ]
  work = resumable.ShardWork(JOB, _write_shard, tasks, 'tokens', tokens)
  markers: list[_TableMarker] = resumable.write_missing_shards(
    job.table, work, num_workers
  )
  sums = ['num_examples', 'duplicated_tokens', 'repeated_tokens']
  resumable.finish_from_markers(job.table, markers, sums=sums)
  logger.info(
    '%s: %s are in windows of %d that occur more than once; %s repeat an '
    'earlier one',
    JOB,
    quantity(sum(one['duplicated_tokens'] for one in markers), 'tokens'),
    job.window,
    quantity(sum(one['repeated_tokens'] for one in markers), 'tokens'),
  )


class _Block(NamedTuple):
  """The windows of a range of a shard's tokens."""

  begin: int
  end: int
  starts: np.ndarray  # where windows start, from `begin`, [windows] int64
  groups: text_windows.Groups  # of their hashes

  @property
  def copies(self) -> np.ndarray:
    """How often each hash is written: twice if it occurs more than once."""
    return np.minimum(self.groups.sizes, 2)


def _ranges(job: _Job, number: int) -> list[tuple[int, int]]:
  """The tokens of each block of a shard: the first, and the end."""
  total = int(opened(job.workdir).shard(number).offsets[-1])
  return [
    (begin, min(begin + job.block, total))
    for begin in range(0, total, job.block)
  ]


def _block(job: _Job, number: int, begin: int, end: int) -> _Block:
  """A block of a shard."""
  shard = opened(job.workdir).shard(number)
  is_scored = folds_lib.fold_of_documents(shard, job.folds) >= 0
  starts = text_windows.starts_of_windows(
    shard.offsets[1:], is_scored, job.window, begin, end
  )
  tokens = np.asarray(shard.tokens[begin : end + job.window - 1])
  hashed = text_windows.hashes(tokens, job.window)[starts]
  return _Block(begin, end, starts, text_windows.groups_of(hashed))


def _hashes_of(block: _Block) -> np.ndarray:
  """The hashes that are written of a block, ascending, [hashes] uint64."""
  return np.repeat(block.groups.values, block.copies)


def _write_hashes(task: tuple[_Job, int]) -> Marker:
  """Writes the hashes of one shard, and returns its marker."""
  job, number = task
  sizes: list[list[int]] = []
  # The first hash of each range but the first.
  bounds = [(n << 64) // job.num_ranges for n in range(1, job.num_ranges)]

  def write(file: Any) -> None:
    sizes.clear()
    for begin, end in _ranges(job, number):
      hashed = _hashes_of(_block(job, number, begin, end))
      places = np.searchsorted(hashed, np.array(bounds, np.uint64))
      sizes.append(np.diff(places, prepend=0, append=len(hashed)).tolist())
      file.write(hashed.astype('<u8').tobytes())

  name = data_file(number, job.num_shards, '.bin', _HASHES)
  # Writing the file fills `sizes`, before the marker is made.
  return job.hashes.finish_shard(
    number, job.num_shards, {name: write}, sizes=sizes
  )


# The slices of a file: where each starts, and its length, in values, [2, blocks].
_Slices = np.ndarray


def _slices(sizes: np.ndarray) -> _Slices:
  """The slices of the file of one shard, [2, blocks, ranges], by their sizes."""
  ends = np.cumsum(sizes).reshape(sizes.shape)
  return np.stack([ends - sizes, sizes])


def _read(path: str, slices: _Slices, dtype: str) -> Iterator[np.ndarray]:
  """Yields slices of a file, each [length]."""
  width = np.dtype(dtype).itemsize
  with filesystems.open_file(path) as file:
    for start, length in slices.T.tolist():
      file.seek(start * width)
      yield np.frombuffer(file.read(length * width), dtype)


@dataclasses.dataclass(frozen=True)
class _RangeTask:
  """What a worker needs to mark the hashes of one range."""

  job: _Job
  number: int
  slices: list[_Slices]  # of each shard


def _write_marks(task: _RangeTask) -> Marker:
  """Writes the marks of one range of hashes, and returns its marker."""
  job = task.job
  parts = [np.zeros(0, np.uint64)]
  for shard, slices in enumerate(task.slices):
    name = data_file(shard, job.num_shards, '.bin', _HASHES)
    if slices.size:
      parts += _read(f'{job.hashes.path}/{name}', slices, '<u8')
  marks = text_windows.marks(np.concatenate(parts))
  name = data_file(task.number, job.num_ranges, '.bin', _MARKS)
  return job.marks.finish_shard(
    task.number,
    job.num_ranges,
    {name: lambda file: file.write(marks.tobytes())},
  )


@dataclasses.dataclass(frozen=True)
class _ShardTask:
  """What a worker needs to write one shard of the table."""

  job: _Job
  shard: int
  # The marks of each block in the file of each range: where they start, and how
  # many there are, [2, blocks, ranges] int64.
  slices: np.ndarray


def _write_shard(task: _ShardTask) -> Marker:
  """Writes one shard of the table, and returns its marker."""
  job = task.job
  shard = opened(job.workdir).shard(task.shard)
  ends = shard.offsets[1:]
  duplicated, repeated = np.zeros((2, len(ends)), np.int32)
  until = [0, 0]
  for (begin, end), slices in zip(
    _ranges(job, task.shard), task.slices.swapaxes(0, 1), strict=True
  ):
    is_start = _is_start(job, _block(job, task.shard, begin, end), slices)
    for kind, counts in enumerate((duplicated, repeated)):
      until[kind] = text_windows.add_covered(
        is_start[kind], ends, job.window, begin, until[kind], counts
      )
  doc_indices = np.flatnonzero(
    folds_lib.fold_of_documents(shard, job.folds) >= 0
  )
  made = tables.shard_table(
    tables.DUPLICATED_TEXT_SCHEMA,
    task.shard,
    doc_indices,
    shard.table('num_tokens'),
    duplicated_tokens=duplicated[doc_indices],
    repeated_tokens=repeated[doc_indices],
  )
  return job.table.finish_shard(
    task.shard,
    job.num_shards,
    tables.shard_file(made, task.shard, job.num_shards),
    num_examples=made.num_rows,
    duplicated_tokens=int(duplicated.sum(dtype=np.int64)),
    repeated_tokens=int(repeated.sum(dtype=np.int64)),
  )


def _is_start(job: _Job, block: _Block, slices: np.ndarray) -> np.ndarray:
  """Where windows start that are duplicated or repeated, [2, tokens] bool.

  Args:
    job: The job.
    block: The block.
    slices: Its marks in the file of each range, [2, ranges] int64.
  """
  parts = []
  for number in range(job.num_ranges):
    name = data_file(number, job.num_ranges, '.bin', _MARKS)
    parts += _read(
      f'{job.marks.path}/{name}', slices[:, number : number + 1], 'u1'
    )
  copies = block.copies
  marks = np.concatenate(parts)[np.cumsum(copies) - copies]
  result = np.zeros((2, block.end - block.begin), bool)
  result[:, block.starts] = block.groups.spread(
    (marks & text_windows.DUPLICATED) > 0
  )
  is_first = (marks & text_windows.FIRST) > 0
  result[1, block.starts[block.groups.first[is_first]]] = False
  return result
