"""Scores the shards of a score table that fall to this host."""

import dataclasses
import functools
import time
from collections.abc import Iterator
from concurrent import futures

import jax
import numpy as np

from infoprune_jax.batches import packing
from infoprune_jax.model import partitioning
from infoprune_jax.runtime import artifacts, distributed
from infoprune_jax.runtime.manifests import Marker
from infoprune_jax.runtime.progress import Progress, duration, quantity, wipe
from infoprune_jax.score import memory, stream
from infoprune_jax.score.documents import Documents
from infoprune_jax.score.shard_scores import Fold, PackedShard, ShardScores
from infoprune_jax.tokens import folds as folds_lib
from infoprune_jax.tokens.token_store import TokenStore

_WRITING = 2  # shards that may wait for the disk while the device computes
# Batches of a block of shards, at least. Its last batch is half empty, on average.
_BLOCK_BATCHES = 50

_Pieces = list[tuple[Documents, np.ndarray]]  # sequences of a batch, by shard


@dataclasses.dataclass(frozen=True)
class _WorkBlock:
  """Steps of one fold. All hosts run equally many.

  Hosts that share the parameters of a model must run it at the same time.
  """

  fold: Fold
  shards: list[int]  # of this group
  steps: int  # batches of padding follow the shards up to this number
  max_segments: int  # of a sequence of any group; 0 to count for each batch


class ShardScorer:
  """Scores the shards of this host's group. The first host of it writes them."""

  def __init__(
    self,
    store: TokenStore,
    folds: list[Fold],
    scores: artifacts.Artifact,
    to_do: list[int],
  ):
    """Prepares to score the shards of this host's group.

    Args:
      store: The token store to score.
      folds: The folds. Their models have one mesh and one shape of batch, and
        the order of the table's columns.
      scores: The score table.
      to_do: The shards that are not finished, of all groups.
    """
    self._store, self._scores = store, scores
    self._folds, self._to_do = folds, to_do
    # All scorers have the same mesh and shape of batch, so any will do.
    self._scorer = scorer = folds[0].models[0].scorer
    processes, _ = scorer.groups[scorer.group]
    self._writes = processes[0] == distributed.index()
    self._begun: dict[int, ShardScores] = {}
    self._written: list[futures.Future] = []
    self._writer = futures.ThreadPoolExecutor(1, 'writer')
    self._times = stream.Times()
    self._slots = 0
    self._progress = self._start_progress()

  def _start_progress(self) -> Progress:
    groups = len(self._scorer.groups)
    what = 'score' if groups == 1 else f'score, 1 of {groups} groups of hosts'
    splits = self._store.manifest['splits']
    scored = ('scored', 'reference')[: len(self._folds)]
    tokens = sum(
      self._scorer.scoring.scored_tokens(
        splits[name]['documents'], splits[name]['tokens']
      )
      for name in scored
    )
    # Shards have about equal bytes, and a hash of the text decides its split. So
    # all shards have about equally many tokens to score.
    fraction = len(self._own_shards()) / self._store.num_shards
    return Progress(what, 'tokens', round(tokens * fraction))

  def _own_shards(self) -> list[int]:
    return self._to_do[self._scorer.group :: len(self._scorer.groups)]

  def run(self) -> dict[str, float]:
    """Scores and writes; returns counts and times, for `summary`.

    Raises:
      UserError: a value is not finite, or a shard cannot be written.
    """
    start = time.monotonic()
    try:
      # If memory runs out, the message names a batch that fits for the model
      # with the largest program.
      models = [model for fold in self._folds for model in fold.models]
      largest = max(models, key=lambda model: model.scorer.flops_per_token)
      others = [m.params for m in models if m is not largest]
      others_bytes = partitioning.bytes_per_device(others)
      blocks = self._schedule()
      with memory.oom_as_user_error(largest.scorer, others_bytes):
        self._compile(blocks)
      self._times = stream.Times()
      largest.scorer.run(self._items(blocks), self._times, others_bytes)
      markers = [future.result() for future in self._written]
    finally:
      self._writer.shutdown(cancel_futures=True)
      wipe()
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
    """The blocks of this host, with the steps and the segments of all hosts."""
    groups = len(self._scorer.groups)
    own = self._own_shards()
    if len(self._folds) == 1:
      rounds = [own]
    else:  # A shard is finished once all folds are scored, so go by shards.
      most, count = -(-len(self._to_do) // groups), self._shards_of_a_block()
      rounds = [own[first : first + count] for first in range(0, most, count)]
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

  def _compile(self, blocks: list[_WorkBlock]) -> None:
    """Compiles what the first shards need, so that no batch waits for it."""
    for block in blocks[: len(self._folds)]:
      counts = [block.max_segments]
      if not block.max_segments and block.shards:
        documents = self._packed(block.fold, block.shards[0]).documents
        counts = documents.sequences.plan.segments_per_sequence.tolist()
      for model in block.fold.models:
        model.scorer.compile(counts)

  def _shards_of_a_block(self) -> int:
    """The shards that each fold scores in turn: few, because a kill loses them."""
    splits = self._store.manifest['splits']
    scored = ('scored', 'reference')[: len(self._folds)]
    tokens = min(splits[name]['tokens'] for name in scored)
    scorer = self._scorer
    slots = scorer.batch_size * scorer.scoring.sequence_length
    batches = tokens / self._store.num_shards / slots
    return max(1, round(_BLOCK_BATCHES / max(batches, 1e-9)))

  def _size(self, block: _WorkBlock) -> tuple[int, int]:
    """The steps that a block takes, and the most segments of its sequences."""
    planned = [self._packed(block.fold, n).documents for n in block.shards]
    return (
      -(-sum(len(d.sequences) for d in planned) // self._scorer.batch_size),
      max((documents.max_segments() for documents in planned), default=1),
    )

  def _packed(self, fold: Fold, number: int) -> PackedShard:
    """The documents of a shard that belong to a fold."""
    doc_indices = folds_lib.scored_documents(
      self._store.shard(number), fold.number, len(self._folds)
    )
    documents = Documents(
      self._store,
      np.full(len(doc_indices), number),
      doc_indices,
      self._scorer.scoring,
      len(fold.models),
    )
    return PackedShard(fold, number, doc_indices, documents)

  def _items(self, blocks: list[_WorkBlock]) -> Iterator[stream.Item]:
    """All batches of this host, and a call after the last of each shard."""
    size, length = self._scorer.batch_size, self._scorer.scoring.sequence_length
    for block in blocks:
      steps = 0
      for pieces, finished in self._batches(block):
        if pieces:
          steps += 1
          yield self._item(block, pieces)
        for packed in finished if self._writes else ():
          yield stream.Item(functools.partial(self._on_shard_done, packed))
      padding = packing.empty_sequences(size, length)
      for _ in range(block.steps - steps):
        programs = self._programs(block, block.max_segments)
        yield stream.Item(stream.ignore, programs, padding)
      if self._writes:
        self._slots += max(steps, block.steps) * size * length

  def _batches(
    self, block: _WorkBlock
  ) -> Iterator[tuple[_Pieces, list[PackedShard]]]:
    """The sequences of each batch, and the shards that end with it.

    A batch takes the last sequences of a shard and the first of the next, so
    that only the last batch of a block has empty ones.
    """
    pieces, finished, free = [], [], self._scorer.batch_size
    for number in block.shards:
      packed = self._packed(block.fold, number)
      left = np.arange(len(packed.documents.sequences))
      while len(left):
        chosen, left = left[:free], left[free:]
        pieces.append((packed.documents, chosen))
        free -= len(chosen)
        if not free:
          yield pieces, finished
          pieces, finished, free = [], [], self._scorer.batch_size
      finished.append(packed)
    yield pieces, finished

  def _item(self, block: _WorkBlock, pieces: _Pieces) -> stream.Item:
    """A batch with its programs."""
    # The smallest vocabulary: a token beyond it has no NLL under its model.
    vocab_size = min(model.scorer.vocab_size for model in block.fold.models)
    sizes = [len(chosen) for _, chosen in pieces]
    sizes[-1] += self._scorer.batch_size - sum(sizes)  # padding
    arrays = [
      documents.batch(chosen, size, vocab_size)
      for (documents, chosen), size in zip(pieces, sizes, strict=True)
    ]
    batch = {
      name: np.concatenate([each[name] for each in arrays])
      for name in arrays[0]
    }
    segments = block.max_segments or max(
      documents.max_segments(chosen) for documents, chosen in pieces
    )
    on_result = stream.ignore
    if self._writes:
      on_result = functools.partial(self._on_batch, pieces)
    return stream.Item(on_result, self._programs(block, segments), batch)

  def _programs(
    self, block: _WorkBlock, max_segments: int
  ) -> list[stream.Program]:
    return [
      functools.partial(model.scorer.program(max_segments), model.params)
      for model in block.fold.models
    ]

  def _on_batch(
    self, pieces: _Pieces, results: list[dict[str, np.ndarray]]
  ) -> None:
    """Takes the results of a batch."""
    first = 0
    for documents, chosen in pieces:
      here = slice(first, first + len(chosen))
      own = [
        {name: values[here] for name, values in result.items()}
        for result in results
      ]
      self._progress.add(documents.add(chosen, own))
      first = here.stop

  def _on_shard_done(self, packed: PackedShard, _: list) -> None:
    """Gives a shard that is scored in one fold to the writer thread."""
    self._written.append(self._writer.submit(self._write, packed))
    for future in self._written[:-_WRITING]:
      future.result()  # Raises an error of the writer early.

  def _write(self, packed: PackedShard) -> Marker | None:
    """Takes the sums of a shard in one fold. Writes it after the last fold."""
    number = packed.number
    if number not in self._begun:
      columns = self._scorer.scoring.columns(
        model.column for model in packed.fold.models
      )
      self._begun[number] = ShardScores(self._store, number, columns)
    self._begun[number].add(packed)
    if packed.fold is not self._folds[-1]:
      return None
    return self._begun.pop(number).write(self._scores)


def summary(by_process: list[dict[str, float]], peak: float) -> str:
  """One line about the work of all hosts.

  Args:
    by_process: The result of `ShardScorer.run`, by process.
    peak: FLOP/s of a device, from `ceiling`; 0.0 if unknown.
  """
  total = {
    name: sum(each[name] for each in by_process) for name in by_process[0]
  }
  seconds = max(1e-9, *(each['seconds'] for each in by_process))
  waited = total['waiting'] / max(total['waiting'] + total['computing'], 1e-9)
  line = (
    f'done, {quantity(total["num_tokens"], "tokens")} in {duration(seconds)} '
    f'({quantity(total["num_tokens"] / seconds, "tokens/s")}, '
    f'{quantity(total["num_examples"] / seconds, "documents/s")}); sequences '
    f'are {100 * total["num_tokens"] / max(total["slots"], 1):.1f} % full; the '
    f'device waited for the host {100 * waited:.1f} % of the time'
  )
  if peak:
    used = total['flops'] / (seconds * peak * total['devices'])
    line += (
      f'; MFU is {100 * used:.1f} % of the {quantity(peak, "FLOP/s")} that a matrix '
      'product reaches'
    )
  return line
