"""Training batches with Grain: a pure function of (sequences, seed, step).

Sequences are shuffled anew in each epoch; where examples are repeated, within
each pass of it (see `passes`). Step s takes global sequences s * B to
(s + 1) * B of the endless stream, on any number of hosts. So the state of the
reader is the step, and seeking costs nothing.
"""

import dataclasses
import functools
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NotRequired, Protocol, TypedDict

import grain
import numpy as np

from infoprune_jax.batches import mixture as mixture_lib, packing, passes
from infoprune_jax.config.training import TrainingConfig
from infoprune_jax.config.validation import UserError
from infoprune_jax.tokens.token_store import TokenStore


class ReaderFacts(TypedDict):
  """The data of a training run, for its manifest."""

  num_sequences: int  # of an epoch
  fill: float  # the fraction of slots that hold a token
  epochs: float
  epochs_by_source: NotRequired[dict[str, float]]  # of a mixture


class Reader(Protocol):
  """The source of the batches of a training run."""

  @property
  def segments(self) -> np.ndarray | None:
    """The segments of each sequence of an epoch, [sequences]; None if unknown."""
    ...

  def batches(
    self, first_step: int, num_steps: int, sequences: np.ndarray
  ) -> Iterator[dict[str, np.ndarray]]:
    """Some sequences of the global batches of steps first_step to num_steps.

    Args:
      first_step: The first step to read.
      num_steps: The last step plus one.
      sequences: [sequences] int, those of a global batch that this host feeds.

    Yields:
      [sequences, T] arrays, see `packing.empty_sequences`.
    """
    ...

  def examples(self, step: int) -> list[tuple[str, str]]:
    """Source and id of the examples of a step's global batch, each once.

    For messages; [] if the reader cannot know.
    """
    ...

  def position(self, step: int) -> dict[str, float]:
    """The `epoch` of a step; {} if the reader cannot know."""
    ...

  def facts(self, num_steps: int) -> ReaderFacts:
    """Facts on `num_steps` steps."""
    ...


@dataclasses.dataclass(frozen=True, eq=False)
class GrainReader:
  """Random access to packed sequences, of one source or of a mixture."""

  sequences: packing.PackedSequences
  sources: tuple[str, ...]  # of a mixture; ('',) for natural sizes
  # For each source, where the sequences of its passes start, and their end,
  # [passes + 1] int64.
  pass_offsets: tuple[np.ndarray, ...]
  mixture: mixture_lib.Mixture
  seed: int
  batch_size: int
  # The step of the run at which this reader's step 0 is: mixtures go by steps
  # of the run.
  first_step: int = 0

  @property
  def sequence_offsets(self) -> np.ndarray:
    """Where each source's sequences start, and the end, [sources + 1] int64."""
    return np.array([0, *(offsets[-1] for offsets in self.pass_offsets)])

  @property
  def segments(self) -> np.ndarray:
    """See `Reader`."""
    return self.sequences.plan.segments_per_sequence

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
    # One thread fills sequences faster than a small machine trains, and more
    # threads would take cores from training.
    options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=8)
    yield from steps.to_iter_dataset(options)

  def examples(self, step: int) -> list[tuple[str, str]]:
    """See `Reader`."""
    sequences = np.arange(self.batch_size)
    return self.sequences.examples(
      self._chosen(self._endless(), step, sequences)
    )

  def _chosen(
    self, endless: Sequence['_Endless'], step: int, sequences: np.ndarray
  ) -> np.ndarray:
    """The packed sequences at places of a step's batch, [places] int64."""
    steps = self.first_step + step
    numbers = (steps * self.batch_size + sequences).tolist()
    places = map(self.mixture.place, numbers)
    before = self._counts_before
    return np.array(
      [endless[source][n - before[source]] for source, n in places], np.int64
    )

  @functools.cached_property
  def _counts_before(self) -> list[int]:
    """Sequences of each source before `first_step`."""
    return self.mixture.counts(self.first_step * self.batch_size)

  def _endless(self) -> list['_Endless']:
    """The endless sequences of each source."""
    return [_Endless(offsets, self.seed) for offsets in self.pass_offsets]

  def position(self, step: int) -> dict[str, float]:
    """See `Reader`."""
    return {'epoch': step * self.batch_size / len(self.sequences)}

  def facts(self, num_steps: int) -> ReaderFacts:
    """See `Reader`."""
    read = num_steps * self.batch_size
    facts = ReaderFacts(
      num_sequences=len(self.sequences),
      fill=self.sequences.plan.fill,
      epochs=read / len(self.sequences),
    )
    if len(self.sources) > 1:
      last = read + self.first_step * self.batch_size
      counts = np.subtract(self.mixture.counts(last), self._counts_before)
      epochs = counts / np.diff(self.sequence_offsets)
      facts['epochs_by_source'] = dict(
        zip(self.sources, epochs.tolist(), strict=True)
      )
    return facts


class _Endless:
  """The endless sequences of a source: each pass is shuffled in each epoch."""

  def __init__(self, offsets: np.ndarray, seed: int):
    """Takes the `pass_offsets` of the source, and the seed of the order."""
    self._starts = offsets - offsets[0]
    self._passes = [
      grain.MapDataset.range(int(first), int(last))
      .seed(seed + number)
      .shuffle()
      .repeat(None)
      for number, (first, last) in enumerate(itertools.pairwise(offsets))
    ]

  def __getitem__(self, number: int) -> int:
    """The packed sequence at a place of the stream."""
    epoch, within = divmod(number, int(self._starts[-1]))
    here = int(np.searchsorted(self._starts, within, 'right')) - 1
    first, last = self._starts[here : here + 2].tolist()
    return self._passes[here][epoch * (last - first) + within - first]


def grain_reader(
  store: TokenStore,
  keep: list[np.ndarray],
  training: TrainingConfig,
  seed: int,
  first_step: int = 0,
  counted: packing.Counted | None = None,
) -> GrainReader:
  """A reader of the kept documents, with EOS, packed into sequences.

  Args:
    store: The token store with the documents.
    keep: For each shard, the indices of the documents to train on, ascending,
      int. An epoch uses a document as often as it is there.
    training: The sizes of a batch, and the mixture.
    seed: Seed of the packing and of the order.
    first_step: The step of the run at which it begins.
    counted: The tokens that count in the loss; None for all.

  Raises:
    UserError: no document is kept, or the mixture does not name the sources of
      the kept documents.
  """
  shard_index = np.repeat(np.arange(len(keep)), list(map(len, keep)))
  doc_index = np.concatenate(keep)
  num_tokens = np.concatenate(
    [store.shard(p).column('num_tokens')[kept] for p, kept in enumerate(keep)]
  )
  number = np.cumsum([0, *store.documents_per_shard])[shard_index] + doc_index
  documents, plans, pass_offsets = [], [], []
  by_source = _by_source(store, keep, training.mixture)
  for chosen in by_source.values():
    in_passes = passes.split(chosen, number[chosen], seed)
    of_source = [
      packing.pack(num_tokens[some] + 1, training.sequence_length, 0, seed + n)
      for n, some in enumerate(in_passes)
    ]
    first = pass_offsets[-1][-1] if pass_offsets else 0
    sizes = [plan.num_sequences for plan in of_source]
    pass_offsets.append(np.cumsum([first, *sizes]))
    documents += in_passes
    plans += of_source
  plan = packing.concatenate(plans, documents)
  sources, batch_size = tuple(by_source), training.batch_size
  schedule = training.mixture_schedule
  return GrainReader(
    packing.PackedSequences(store, shard_index, doc_index, plan, counted),
    sources,
    tuple(pass_offsets),
    mixture_lib.make(sources, training.mixture, schedule, batch_size),
    seed,
    batch_size,
    first_step,
  )


def _by_source(
  store: TokenStore, keep: list[np.ndarray], mixture: Mapping[str, float]
) -> dict[str, np.ndarray]:
  """The documents of each source of a mixture, as indices of kept documents."""
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
      'training.mixture must weigh each source with kept documents, and no '
      f'other: it leaves out {sorted(left_out)}, and of {sorted(unknown)} there '
      'is no document.'
    )
