"""The parts of a score table that one host has to make."""

import dataclasses
import functools
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent import futures
from typing import Any

import jax
import numpy as np

from infoprune_jax.batches import packing
from infoprune_jax.model import partitioning
from infoprune_jax.runtime import artifacts, distributed
from infoprune_jax.runtime.manifests import Marker
from infoprune_jax.runtime.progress import Progress, quantity
from infoprune_jax.score import scorer as scorer_lib, stream
from infoprune_jax.tokens import folds as folds_lib, tables
from infoprune_jax.tokens.token_store import TokenStore

_WRITING = 2  # shards that may wait for the disk while the device goes on


@dataclasses.dataclass(frozen=True)
class Model:
  """A model that is ready to score."""

  column: str  # of the table
  scorer: scorer_lib.Scorer
  params: Any  # on the mesh, as `Scorer.prepare` gives them


@dataclasses.dataclass(frozen=True)
class Fold:
  """The models that score the documents of one fold, batch by batch."""

  number: int
  models: tuple[Model, ...]


@dataclasses.dataclass(frozen=True)
class _WorkBlock:
  """Steps of one fold, of which all hosts run equally many.

  Where parameters are spread over hosts, all must use the same at once.
  """

  fold: Fold
  shards: list[int]  # of this group
  steps: int  # padding follows the shards up to here
  max_segments: int  # of any sequence of any group; 0 to go by each batch


class _ShardScores:
  """The columns of one shard, filled fold by fold."""

  def __init__(self, store: TokenStore, number: int, columns: Sequence[str]):
    self._store, self._number = store, number
    self._part = store.shard(number)
    self._num_tokens = self._part.column('num_tokens')
    size = len(self._num_tokens)
    self._fold = np.full(size, -1, np.int8)  # -1 is scored by none.
    self._nll_sum = {column: np.zeros(size) for column in columns}
    self._flops = 0.0

  def add(
    self,
    fold: Fold,
    doc_indices: np.ndarray,
    documents: scorer_lib.Documents,
  ) -> None:
    """Takes the sums of what the models of a fold scored.

    Raises:
      UserError: an NLL is not finite.
    """
    for model, sums in zip(fold.models, documents.sums(), strict=True):
      self._nll_sum[model.column][doc_indices] = sums
      self._flops += model.scorer.flops(documents)
    self._fold[doc_indices] = fold.number

  def write(self, scores: artifacts.Artifact) -> Marker:
    """Writes the shard, and returns its marker."""
    doc_indices = np.flatnonzero(self._fold >= 0)
    written = tables.shard_table(
      tables.score_schema(list(self._nll_sum)),
      self._number,
      doc_indices,
      self._part.table(*scorer_lib.DOCUMENT_COLUMNS),
      fold=self._fold[doc_indices],
      **{column: sums[doc_indices] for column, sums in self._nll_sum.items()},
    )
    return scores.finish_shard(
      self._number,
      self._store.num_shards,
      tables.shard_file(written, self._number, self._store.num_shards),
      num_examples=len(doc_indices),
      num_tokens=int(self._num_tokens[doc_indices].sum()),
      num_bytes=int(self._part.column('num_bytes')[doc_indices].sum()),
      flops=self._flops,
    )


class ShardScorer:
  """Scores the shards that fall to this host, and writes them if it should."""

  def __init__(
    self,
    store: TokenStore,
    folds: list[Fold],
    scores: artifacts.Artifact,
    to_do: list[int],
  ):
    """Takes the parts of this host's group.

    Args:
      store: What is scored.
      folds: Their models, all for one mesh and one shape of batch, in the
        order of the table's columns.
      scores: The table.
      to_do: The shards that are not done, for all hosts together.
    """
    self._store, self._scores = store, scores
    self._folds, self._to_do = folds, to_do
    # Any of them: they share the mesh and the batch.
    self._scorer = scorer = folds[0].models[0].scorer
    processes, _ = scorer.groups[scorer.group]
    self._writes = processes[0] == distributed.index()
    self._begun: dict[int, _ShardScores] = {}
    self._written: list[futures.Future] = []
    self._times = stream.Times()
    self._slots = 0
    self._progress = self._start_progress()

  def _start_progress(self) -> Progress:
    groups = len(self._scorer.groups)
    what = 'score' if groups == 1 else f'score, 1 of {groups} groups of hosts'
    splits = self._store.manifest['splits']
    scored = ('scored', 'reference')[: len(self._folds)]
    tokens = sum(splits[name]['tokens'] for name in scored)
    # Shards have about equal bytes, and texts go into splits by hash: each
    # shard has about as many tokens to score.
    fraction = len(self._own_shards()) / self._store.num_shards
    return Progress(what, 'tokens', round(tokens * fraction))

  def _own_shards(self) -> list[int]:
    return self._to_do[self._scorer.group :: len(self._scorer.groups)]

  def run(self) -> dict[str, float]:
    """Scores and writes; returns what it took, for `summary`.

    Raises:
      UserError: an NLL is not finite, or a shard cannot be written.
    """
    start = time.monotonic()
    writer = futures.ThreadPoolExecutor(1, 'writer')
    try:
      self._times = stream.Times()
      # The one with the largest program says what fits beside all others.
      models = [model for fold in self._folds for model in fold.models]
      largest = max(models, key=lambda model: model.scorer.flops_per_token)
      others = [m.params for m in models if m is not largest]
      largest.scorer.run(
        self._items(self._schedule(), writer),
        self._times,
        partitioning.bytes_per_device(others),
      )
      markers = [future.result() for future in self._written]
    finally:
      writer.shutdown(cancel_futures=True)
    markers = [marker for marker in markers if marker]
    return {
      **{
        name: sum(marker[name] for marker in markers)
        for name in ('num_examples', 'num_tokens', 'flops')
      },
      'slots': self._slots,
      'seconds': time.monotonic() - start,
      'computing': self._times.computing,
      'waiting': self._times.waiting,
      'devices': jax.local_device_count(),
    }

  def _schedule(self) -> list[_WorkBlock]:
    """The same number of segments and of steps on all hosts."""
    groups = len(self._scorer.groups)
    own = self._own_shards()
    if len(self._folds) == 1:
      rounds = [own]
    else:  # A shard is done when all folds have been scored: one after another.
      most = -(-len(self._to_do) // groups)
      rounds = [own[number : number + 1] for number in range(most)]
    blocks = [
      _WorkBlock(fold, shards, 0, 0)
      for shards in rounds
      for fold in self._folds
    ]
    if groups == 1:
      return blocks
    sizes = [self._size(block) for block in blocks]
    most = np.max(distributed.all_gather('the plan of scoring', sizes), axis=0)
    return [
      dataclasses.replace(block, steps=int(steps), max_segments=int(segments))
      for block, (steps, segments) in zip(blocks, most, strict=True)
    ]

  def _size(self, block: _WorkBlock) -> tuple[int, int]:
    """Steps, and the most segments of a sequence, that its shards take."""
    size = self._scorer.batch_size
    planned = [self._documents(block.fold, shard)[1] for shard in block.shards]
    return (
      sum(-(-len(documents.sequences) // size) for documents in planned),
      max((documents.max_segments() for documents in planned), default=1),
    )

  def _documents(
    self, fold: Fold, number: int
  ) -> tuple[np.ndarray, scorer_lib.Documents]:
    """The sequences of a shard that are of a fold, and them packed."""
    doc_indices = folds_lib.scored_documents(
      self._store.shard(number), fold.number, len(self._folds)
    )
    return doc_indices, scorer_lib.Documents(
      self._store,
      np.full(len(doc_indices), number),
      doc_indices,
      self._scorer.scoring,
      len(fold.models),
    )

  def _items(
    self, blocks: list[_WorkBlock], writer: futures.Executor
  ) -> Iterator[stream.Item]:
    """All batches of this host; each call takes what comes back."""
    size, length = self._scorer.batch_size, self._scorer.scoring.sequence_length
    for block in blocks:
      steps = 0
      for number in block.shards:
        doc_indices, documents = self._documents(block.fold, number)
        for chosen, batch in documents.batches(size, self._scorer.vocab_size):
          steps += 1
          segments = block.max_segments or documents.max_segments(chosen)
          programs = self._programs(block, segments)
          yield self._on_batch(documents, chosen), programs, batch
        if self._writes:
          yield (
            self._on_shard_done(block, number, doc_indices, documents, writer),
            [],
            None,
          )
      padding = packing.empty_sequences(size, length)
      for _ in range(block.steps - steps):
        programs = self._programs(block, block.max_segments)
        yield lambda nll: None, programs, padding
      if self._writes:
        self._slots += max(steps, block.steps) * size * length

  def _programs(
    self, block: _WorkBlock, max_segments: int
  ) -> list[stream.Program]:
    return [
      functools.partial(model.scorer.program(max_segments), model.params)
      for model in block.fold.models
    ]

  def _on_batch(
    self, documents: scorer_lib.Documents, chosen: np.ndarray
  ) -> Callable[[list[np.ndarray]], None]:
    if not self._writes:
      return lambda nll: None
    return lambda nll: self._progress.add(documents.add(chosen, nll))

  def _on_shard_done(
    self,
    block: _WorkBlock,
    number: int,
    doc_indices: np.ndarray,
    documents: scorer_lib.Documents,
    writer: futures.Executor,
  ) -> Callable[[None], None]:
    """What is done when the documents of a shard and fold are scored."""

    def write() -> Marker | None:
      if number not in self._begun:
        columns = [model.column for model in block.fold.models]
        self._begun[number] = _ShardScores(self._store, number, columns)
      self._begun[number].add(block.fold, doc_indices, documents)
      if block.fold is not self._folds[-1]:
        return None
      return self._begun.pop(number).write(self._scores)

    def end(_: None) -> None:
      self._written.append(writer.submit(write))
      for future in self._written[:-_WRITING]:
        future.result()  # Raises what went wrong, soon.

    return end


def summary(by_process: list[dict[str, float]], peak: float) -> str:
  """One line of what all hosts did.

  Args:
    by_process: What `ShardScorer.run` returned, by process.
    peak: FLOP/s of a device, as `ceiling` measures it; 0.0 if unknown.
  """
  total = {
    name: sum(each[name] for each in by_process) for name in by_process[0]
  }
  seconds = max(1e-9, *(each['seconds'] for each in by_process))
  waited = total['waiting'] / max(total['waiting'] + total['computing'], 1e-9)
  line = (
    f'done, {quantity(total["num_tokens"])} tokens in {seconds:.1f} s '
    f'({quantity(total["num_tokens"] / seconds)} tokens/s, '
    f'{quantity(total["num_examples"] / seconds)} documents/s), sequences '
    f'{100 * total["num_tokens"] / max(total["slots"], 1):.1f} % full, the '
    f'device waited for the host {100 * waited:.1f} % of the time'
  )
  if peak:
    used = total['flops'] / (seconds * peak * total['devices'])
    line += (
      f', MFU {100 * used:.1f} % of the {quantity(peak)}FLOP/s that a matrix '
      'product reaches'
    )
  return line
