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
from infoprune_jax.runtime.progress import Progress, quantity
from infoprune_jax.score import scorer as scorer_lib, stream
from infoprune_jax.tokens import folds as folds_lib, tables
from infoprune_jax.tokens.token_store import TokenStore

_WRITING = 2  # parts that may wait for the disk while the device goes on


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
  parts: list[int]  # of this group
  steps: int  # padding follows the parts up to here
  max_pieces: int  # of any row of any group; 0 to go by each batch


class _PartScores:
  """The columns of one part, filled fold by fold."""

  def __init__(self, store: TokenStore, shard: int, columns: Sequence[str]):
    self._store, self._shard = store, shard
    self._part = store.part(shard)
    self._num_tokens = self._part.column('num_tokens')
    size = len(self._num_tokens)
    self._fold = np.full(size, -1, np.int8)  # -1 is scored by none.
    self._nll_sum = {column: np.zeros(size) for column in columns}
    self._flops = 0.0

  def add(
    self,
    fold: Fold,
    rows: np.ndarray,
    documents: scorer_lib.Documents,
  ) -> None:
    """Takes the sums of what the models of a fold scored.

    Raises:
      UserError: an NLL is not finite.
    """
    for model, sums in zip(fold.models, documents.sums(), strict=True):
      self._nll_sum[model.column][rows] = sums
      self._flops += model.scorer.flops(documents)
    self._fold[rows] = fold.number

  def write(self, scores: artifacts.Artifact) -> dict[str, Any]:
    """Writes the part, and returns its marker."""
    rows = np.flatnonzero(self._fold >= 0)
    written = tables.part_table(
      tables.score_schema(list(self._nll_sum)),
      self._shard,
      rows,
      self._part.table(*scorer_lib.DOCUMENT_COLUMNS),
      fold=self._fold[rows],
      **{column: sums[rows] for column, sums in self._nll_sum.items()},
    )
    return scores.finish_part(
      self._shard,
      self._store.num_parts,
      {'.parquet': lambda file: tables.write(written, file)},
      num_examples=len(rows),
      num_tokens=int(self._num_tokens[rows].sum()),
      num_bytes=int(self._part.column('num_bytes')[rows].sum()),
      flops=self._flops,
    )


class PartScorer:
  """Scores the parts that fall to this host, and writes them if it should."""

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
      to_do: The parts that are not done, for all hosts together.
    """
    self._store, self._scores = store, scores
    self._folds, self._to_do = folds, to_do
    # Any of them: they share the mesh and the batch.
    self._scorer = scorer = folds[0].models[0].scorer
    processes, _ = scorer.groups[scorer.group]
    self._writes = processes[0] == distributed.index()
    self._begun: dict[int, _PartScores] = {}
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
    # Parts have about equal bytes, and texts go into splits by hash: each part
    # has about as many tokens to score.
    share = len(self._own_parts()) / self._store.num_parts
    return Progress(what, 'tokens', round(tokens * share))

  def _own_parts(self) -> list[int]:
    return self._to_do[self._scorer.group :: len(self._scorer.groups)]

  def run(self) -> dict[str, float]:
    """Scores and writes; returns what it took, for `summary`.

    Raises:
      UserError: an NLL is not finite, or a part cannot be written.
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
        partitioning.bytes_a_device(others),
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
    own = self._own_parts()
    if len(self._folds) == 1:
      rounds = [own]
    else:  # A part is done when all folds have been scored: one after another.
      most = -(-len(self._to_do) // groups)
      rounds = [own[number : number + 1] for number in range(most)]
    segments = [
      _WorkBlock(fold, parts, 0, 0) for parts in rounds for fold in self._folds
    ]
    if groups == 1:
      return segments
    sizes = [self._size(segment) for segment in segments]
    most = np.max(distributed.all_gather('the plan of scoring', sizes), axis=0)
    return [
      dataclasses.replace(segment, steps=int(steps), max_pieces=int(pieces))
      for segment, (steps, pieces) in zip(segments, most, strict=True)
    ]

  def _size(self, segment: _WorkBlock) -> tuple[int, int]:
    """Steps, and the most pieces of a row, that its parts take."""
    size = self._scorer.batch_size
    planned = [self._documents(segment.fold, part)[1] for part in segment.parts]
    return (
      sum(-(-len(documents.rows) // size) for documents in planned),
      max((documents.max_pieces() for documents in planned), default=1),
    )

  def _documents(
    self, fold: Fold, shard: int
  ) -> tuple[np.ndarray, scorer_lib.Documents]:
    """The rows of a part that are of a fold, and them packed."""
    rows = folds_lib.scored_rows(
      self._store.part(shard), fold.number, len(self._folds)
    )
    return rows, scorer_lib.Documents(
      self._store,
      np.full(len(rows), shard),
      rows,
      self._scorer.scoring,
      len(fold.models),
    )

  def _items(
    self, segments: list[_WorkBlock], writer: futures.Executor
  ) -> Iterator[stream.Item]:
    """All batches of this host; each call takes what comes back."""
    size, length = self._scorer.batch_size, self._scorer.scoring.row_length
    for segment in segments:
      steps = 0
      for shard in segment.parts:
        rows, documents = self._documents(segment.fold, shard)
        for chosen, batch in documents.batches(size, self._scorer.vocab_size):
          steps += 1
          pieces = segment.max_pieces or documents.max_pieces(chosen)
          programs = self._programs(segment, pieces)
          yield self._on_batch(documents, chosen), programs, batch
        if self._writes:
          yield (
            self._on_part_done(segment, shard, rows, documents, writer),
            [],
            None,
          )
      padding = packing.empty_rows(size, length)
      for _ in range(segment.steps - steps):
        programs = self._programs(segment, segment.max_pieces)
        yield lambda nll: None, programs, padding
      if self._writes:
        self._slots += max(steps, segment.steps) * size * length

  def _programs(
    self, segment: _WorkBlock, max_pieces: int
  ) -> list[stream.Program]:
    return [
      functools.partial(model.scorer.program(max_pieces), model.params)
      for model in segment.fold.models
    ]

  def _on_batch(
    self, documents: scorer_lib.Documents, chosen: np.ndarray
  ) -> Callable[[list[np.ndarray]], None]:
    if not self._writes:
      return lambda nll: None
    return lambda nll: self._progress.add(documents.add(chosen, nll))

  def _on_part_done(
    self,
    segment: _WorkBlock,
    shard: int,
    rows: np.ndarray,
    documents: scorer_lib.Documents,
    writer: futures.Executor,
  ) -> Callable[[None], None]:
    """What is done when the documents of a part and fold are scored."""

    def write() -> dict[str, Any] | None:
      if shard not in self._begun:
        columns = [model.column for model in segment.fold.models]
        self._begun[shard] = _PartScores(self._store, shard, columns)
      self._begun[shard].add(segment.fold, rows, documents)
      if segment.fold is not self._folds[-1]:
        return None
      return self._begun.pop(shard).write(self._scores)

    def end(_: None) -> None:
      self._written.append(writer.submit(write))
      for future in self._written[:-_WRITING]:
        future.result()  # Raises what went wrong, soon.

    return end


def summary(found: list[dict[str, float]], peak: float) -> str:
  """One line of what all hosts did.

  Args:
    found: What `PartScorer.run` returned, by process.
    peak: FLOP/s of a device, as `ceiling` measures it; 0.0 if unknown.
  """
  total = {name: sum(one[name] for one in found) for name in found[0]}
  seconds = max(1e-9, *(one['seconds'] for one in found))
  waited = total['waiting'] / max(total['waiting'] + total['computing'], 1e-9)
  line = (
    f'done, {quantity(total["num_tokens"])} tokens in {seconds:.1f} s '
    f'({quantity(total["num_tokens"] / seconds)} tokens/s, '
    f'{quantity(total["num_examples"] / seconds)} documents/s), rows '
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
