"""The parts of a score table that one host has to make."""

import dataclasses
import functools
import time
from collections.abc import Callable, Iterator
from concurrent import futures
from typing import Any

import jax
import numpy as np
import pyarrow.parquet as pq

from infoprune_jax import artifacts, hosts
from infoprune_jax.data import folds as folds_lib, packing
from infoprune_jax.data.token_store import TokenStore
from infoprune_jax.progress import Progress, quantity
from infoprune_jax.score import scorer as scorer_lib, statistics, stream, table

_WRITING = 2  # parts that may wait for the disk while the device goes on


@dataclasses.dataclass(frozen=True)
class Reference:
  """The model of one fold, and how it speaks of words."""

  fold: int
  params: Any  # on the mesh, as `Scorer.prepare` gives them
  unigram_nll: np.ndarray  # [V] float64, nats


@dataclasses.dataclass(frozen=True)
class _Segment:
  """Steps of one model, of which all hosts run equally many.

  Where parameters are spread over hosts, all must use the same at once.
  """

  reference: Reference
  parts: list[int]  # of this group
  steps: int  # padding follows the parts up to here
  max_pieces: int  # of any row of any group; 0 to go by each batch


class _PartScores:
  """The columns of one part, filled model by model."""

  def __init__(self, store: TokenStore, shard: int):
    self._store, self._shard = store, shard
    self._part = store.part(shard)
    self._num_tokens = self._part.column('num_tokens')
    size = len(self._num_tokens)
    self._fold = np.full(size, -1, np.int8)  # -1 is scored by none.
    self._nll_sum, self._unigram_sum = np.zeros(size), np.zeros(size)
    self._flops = 0.0

  def add(
    self,
    reference: Reference,
    rows: np.ndarray,
    documents: scorer_lib.Documents,
    flops: float,
  ) -> None:
    """Takes the sums of what one model scored.

    Raises:
      UserError: an NLL is not finite.
    """
    self._nll_sum[rows] = documents.sums()
    self._unigram_sum[rows] = statistics.sums_by_document(
      reference.unigram_nll[self._part.tokens], self._num_tokens
    )[rows]
    self._fold[rows] = reference.fold
    self._flops += flops

  def write(self, scores: artifacts.Artifact) -> dict[str, Any]:
    """Writes the part, and returns its marker."""
    rows = np.flatnonzero(self._fold >= 0)
    written = table.part_table(
      table.SCORE_SCHEMA,
      self._shard,
      rows,
      self._part.table(*scorer_lib.DOCUMENT_COLUMNS, 'compressed_bytes'),
      nll_sum=self._nll_sum[rows],
      unigram_nll_sum=self._unigram_sum[rows],
      fold=self._fold[rows],
    )
    return scores.finish_part(
      self._shard,
      self._store.num_parts,
      {'.parquet': lambda file: pq.write_table(written, file)},
      num_examples=len(rows),
      num_tokens=int(self._num_tokens[rows].sum()),
      num_bytes=int(self._part.column('num_bytes')[rows].sum()),
      flops=self._flops,
    )


class PartScorer:
  """Scores the parts that fall to this host, and writes them if it should."""

  def __init__(
    self,
    scorer: scorer_lib.Scorer,
    store: TokenStore,
    references: list[Reference],
    scores: artifacts.Artifact,
    to_do: list[int],
  ):
    """Takes the parts of this host's group.

    Args:
      scorer: The compiled program.
      store: What is scored.
      references: The model of each fold.
      scores: The table.
      to_do: The parts that are not done, for all hosts together.
    """
    self._scorer, self._store, self._scores = scorer, store, scores
    self._references, self._to_do = references, to_do
    processes, _ = scorer.groups[scorer.group]
    self._writes = processes[0] == hosts.index()
    self._begun: dict[int, _PartScores] = {}
    self._written: list[futures.Future] = []
    self._times = stream.Times()
    self._slots = 0
    self._progress = self._start_progress()

  def _start_progress(self) -> Progress:
    groups = len(self._scorer.groups)
    what = 'score' if groups == 1 else f'score, 1 of {groups} groups of hosts'
    splits = self._store.manifest['splits']
    scored = ('scored', 'reference')[: len(self._references)]
    tokens = sum(splits[name]['tokens'] for name in scored)
    # Texts are spread over parts by hash: every part is about as large.
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
      self._scorer.run(self._items(self._schedule(), writer), self._times)
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

  def _schedule(self) -> list[_Segment]:
    """The same number of segments and of steps on all hosts."""
    groups = len(self._scorer.groups)
    own = self._own_parts()
    if len(self._references) == 1:
      rounds = [own]
    else:  # A part is done when all models have seen it: one after another.
      most = -(-len(self._to_do) // groups)
      rounds = [own[number : number + 1] for number in range(most)]
    segments = [
      _Segment(reference, parts, 0, 0)
      for parts in rounds
      for reference in self._references
    ]
    if groups == 1:
      return segments
    sizes = [self._size(segment) for segment in segments]
    most = np.max(hosts.all_gather('the plan of scoring', sizes), axis=0)
    return [
      dataclasses.replace(segment, steps=int(steps), max_pieces=int(pieces))
      for segment, (steps, pieces) in zip(segments, most, strict=True)
    ]

  def _size(self, segment: _Segment) -> tuple[int, int]:
    """Steps, and the most pieces of a row, that its parts take."""
    size = self._scorer.batch_size
    planned = [
      self._documents(segment.reference, part)[1] for part in segment.parts
    ]
    return (
      sum(-(-len(documents.rows) // size) for documents in planned),
      max((documents.max_pieces() for documents in planned), default=1),
    )

  def _documents(
    self, reference: Reference, shard: int
  ) -> tuple[np.ndarray, scorer_lib.Documents]:
    """The rows of a part that a model scores, and them packed."""
    rows = folds_lib.scored_rows(
      self._store.part(shard), reference.fold, len(self._references)
    )
    return rows, scorer_lib.Documents(
      self._store, np.full(len(rows), shard), rows, self._scorer.scoring
    )

  def _items(
    self, segments: list[_Segment], writer: futures.Executor
  ) -> Iterator[stream.Item]:
    """All batches of this host; each call takes what comes back."""
    size, length = self._scorer.batch_size, self._scorer.scoring.row_length
    for segment in segments:
      steps = 0
      for shard in segment.parts:
        rows, documents = self._documents(segment.reference, shard)
        for chosen, batch in documents.batches(size, self._scorer.vocab_size):
          steps += 1
          pieces = segment.max_pieces or documents.max_pieces(chosen)
          program = self._program(segment, pieces)
          yield self._taker(documents, chosen), program, batch
        if self._writes:
          yield self._ender(segment, shard, rows, documents, writer), None, None
      padding = packing.empty_rows(size, length)
      for _ in range(segment.steps - steps):
        program = self._program(segment, segment.max_pieces)
        yield lambda nll: None, program, padding
      if self._writes:
        self._slots += max(steps, segment.steps) * size * length

  def _program(self, segment: _Segment, max_pieces: int) -> stream.Program:
    return functools.partial(
      self._scorer.program(max_pieces), segment.reference.params
    )

  def _taker(
    self, documents: scorer_lib.Documents, chosen: np.ndarray
  ) -> Callable[[np.ndarray], None]:
    if not self._writes:
      return lambda nll: None
    return lambda nll: self._progress.add(documents.add(chosen, nll))

  def _ender(
    self,
    segment: _Segment,
    shard: int,
    rows: np.ndarray,
    documents: scorer_lib.Documents,
    writer: futures.Executor,
  ) -> Callable[[None], None]:
    """What is done when a model has scored a part."""

    def write() -> dict[str, Any] | None:
      if shard not in self._begun:
        self._begun[shard] = _PartScores(self._store, shard)
      flops = self._scorer.flops(documents)
      self._begun[shard].add(segment.reference, rows, documents, flops)
      if segment.reference is not self._references[-1]:
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
