"""Training batches with Grain: a pure function of (sequences, seed, step).

Sequences are shuffled anew in each epoch. Step s takes global sequences s * B
to (s + 1) * B of the endless stream, whatever the number of hosts, so that
the state of the reader is the step, and seeking costs nothing.
"""

import dataclasses
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import grain
import numpy as np

from infoprune_jax.batches import mixture as mixture_lib, packing
from infoprune_jax.config.training import MixturePhase
from infoprune_jax.config.validation import UserError
from infoprune_jax.tokens.token_store import TokenStore


class Reader(Protocol):
  """Where a training run gets its batches."""

  @property
  def max_segments(self) -> int:
    """At least the segments of documents of any sequence; 0 if unknown."""
    ...

  def batches(
    self, first_step: int, num_steps: int, sequences: np.ndarray
  ) -> Iterator[dict[str, np.ndarray]]:
    """Some sequences of the global batches of steps first_step to num_steps.

    Args:
      first_step: The first to read.
      num_steps: One more than the last.
      sequences: [sequences] int, which of a global batch this host feeds.

    Yields:
      [sequences, T] arrays, see `packing.empty_sequences`.
    """
    ...

  def example_ids(self, step: int) -> list[str]:
    """The examples of a step's global batch, each once, in order.

    For messages; [] of a reader that cannot know.
    """
    ...

  def position(self, step: int) -> dict[str, float]:
    """Where a step is in the data: `epoch`; {} where a reader cannot know."""
    ...

  def facts(self, num_steps: int) -> dict[str, Any]:
    """What `num_steps` steps have read: `num_sequences`, `fill`, `epochs`."""
    ...


@dataclasses.dataclass(frozen=True, eq=False)
class GrainReader:
  """Random access to packed sequences, of one source or of a mixture."""

  sequences: packing.PackedSequences
  sources: tuple[str, ...]  # of a mixture; ('',) for natural sizes
  # [sources + 1] int64, where each source's sequences start.
  sequence_offsets: np.ndarray
  mixture: mixture_lib.Mixture
  seed: int
  batch_size: int

  @property
  def max_segments(self) -> int:
    """See `Reader`."""
    return int(self.sequences.plan.segments_per_sequence.max(initial=0))

  def batches(
    self, first_step: int, num_steps: int, sequences: np.ndarray
  ) -> Iterator[dict[str, np.ndarray]]:
    """See `Reader`."""
    endless = self._endless()

    def batch_of(step: int) -> dict[str, np.ndarray]:
      return self.sequences.batch(
        self._chosen(endless, int(step), sequences), len(sequences)
      )

    steps = grain.MapDataset.range(first_step, num_steps).map(batch_of)
    # One thread fills far more sequences than a small machine can train on, and
    # more would take its cores from the training itself.
    options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=8)
    yield from steps.to_iter_dataset(options)

  def example_ids(self, step: int) -> list[str]:
    """See `Reader`."""
    sequences = np.arange(self.batch_size)
    return self.sequences.example_ids(
      self._chosen(self._endless(), step, sequences)
    )

  def _chosen(
    self, endless: Sequence[grain.MapDataset], step: int, sequences: np.ndarray
  ) -> np.ndarray:
    """The packed sequences at some places of a step's batch, [places] int64."""
    numbers = (step * self.batch_size + sequences).tolist()
    places = map(self.mixture.place, numbers)
    return np.array([endless[source][n] for source, n in places], np.int64)

  def _endless(self) -> list[grain.MapDataset]:
    """The sequences of each source, without end, shuffled anew in each epoch."""
    return [
      grain.MapDataset.range(int(first), int(last))
      .seed(self.seed)
      .shuffle()
      .repeat(None)
      for first, last in itertools.pairwise(self.sequence_offsets)
    ]

  def position(self, step: int) -> dict[str, float]:
    """See `Reader`."""
    return {'epoch': step * self.batch_size / len(self.sequences)}

  def facts(self, num_steps: int) -> dict[str, Any]:
    """See `Reader`; of a mixture also the epochs of each source."""
    read = num_steps * self.batch_size
    facts = {
      'num_sequences': len(self.sequences),
      'fill': self.sequences.plan.fill,
      'epochs': read / len(self.sequences),
    }
    if len(self.sources) > 1:
      epochs = np.array(self.mixture.counts(read)) / np.diff(
        self.sequence_offsets
      )
      facts['epochs_by_source'] = dict(
        zip(self.sources, epochs.tolist(), strict=True)
      )
    return facts


def grain_reader(
  store: TokenStore,
  keep: list[np.ndarray],
  sequence_length: int,
  batch_size: int,
  seed: int,
  mixture: Mapping[str, float],
  schedule: Sequence[MixturePhase],
) -> GrainReader:
  """A reader of the documents kept, with EOS, packed into sequences.

  Args:
    store: Where the documents are.
    keep: For each shard, the indices of the documents to train on, int.
    sequence_length: Tokens per sequence.
    batch_size: Sequences of a global batch.
    seed: Of the packing and of the order.
    mixture: The weight of each source; {} for natural sizes.
    schedule: What takes its place later; it names the same sources.

  Raises:
    UserError: nothing is kept, or the mixture does not name the sources kept.
  """
  shard_index = np.repeat(
    np.arange(len(keep)), [len(doc_indices) for doc_indices in keep]
  )
  doc_index = np.concatenate(keep)
  num_tokens = np.concatenate(
    [
      store.shard(p).column('num_tokens')[doc_indices]
      for p, doc_indices in enumerate(keep)
    ]
  )
  documents = _by_source(store, keep, mixture)
  plans = [
    packing.pack(num_tokens[chosen] + 1, sequence_length, overlap=0, seed=seed)
    for chosen in documents.values()
  ]
  plan = packing.concatenate(plans, list(documents.values()))
  return GrainReader(
    packing.PackedSequences(store, shard_index, doc_index, plan),
    tuple(documents),
    np.concatenate([[0], np.cumsum([plan.num_sequences for plan in plans])]),
    mixture_lib.make(tuple(documents), mixture, schedule, batch_size),
    seed,
    batch_size,
  )


def _by_source(
  store: TokenStore, keep: list[np.ndarray], mixture: Mapping[str, float]
) -> dict[str, np.ndarray]:
  """The documents (numbers among those kept) of each source of a mixture."""
  count = sum(len(doc_indices) for doc_indices in keep)
  if not count:
    raise UserError('There is no document to train on.')
  if not mixture:
    return {'': np.arange(count)}
  names = np.concatenate(
    [
      np.array(
        store.shard(p).table('source')['source'].take(doc_indices).to_pylist()
      )
      for p, doc_indices in enumerate(keep)
      if len(doc_indices)
    ]
  )
  doc_indices_of = {
    str(name): np.flatnonzero(names == name) for name in np.unique(names)
  }
  check_mixture(mixture, doc_indices_of)
  return doc_indices_of


def check_mixture(mixture: Mapping[str, float], sources: Iterable[str]) -> None:
  """Raises `UserError` unless a mixture names each source, and no other."""
  left_out, unknown = (
    set(sources) - mixture.keys(),
    mixture.keys() - set(sources),
  )
  if left_out or unknown:
    raise UserError(
      'training.mixture must weigh each source that there is to train on: it '
      f'leaves out {sorted(left_out)}, and of {sorted(unknown)} there is no '
      'document.'
    )
