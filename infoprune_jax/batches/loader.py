"""Training batches with Grain: a pure function of (rows, seed, step).

Rows are shuffled anew in each epoch. Step s takes global rows s * B to
(s + 1) * B of the endless sequence, whatever the number of hosts, so that the
state of the reader is the step, and seeking costs nothing.
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
  def max_pieces(self) -> int:
    """At least the pieces of documents of any row; 0 if unknown."""
    ...

  def batches(
    self, first_step: int, num_steps: int, rows: np.ndarray
  ) -> Iterator[dict[str, np.ndarray]]:
    """Some rows of the global batches of steps first_step to num_steps.

    Args:
      first_step: The first to read.
      num_steps: One more than the last.
      rows: [rows] int, which of a global batch this host feeds.

    Yields:
      [rows, T] arrays, see `packing.empty_rows`.
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
    """What `num_steps` steps have read: `num_rows`, `fill`, `epochs`."""
    ...


@dataclasses.dataclass(frozen=True, eq=False)
class GrainReader:
  """Random access to packed rows, of one source or of a mixture."""

  rows: packing.PackedRows
  sources: tuple[str, ...]  # of a mixture; ('',) for natural sizes
  row_offsets: np.ndarray  # [sources + 1] int64, where each source's rows start
  mixture: mixture_lib.Mixture
  seed: int
  batch_size: int

  @property
  def max_pieces(self) -> int:
    """See `Reader`."""
    return int(self.rows.plan.pieces_per_row.max(initial=0))

  def batches(
    self, first_step: int, num_steps: int, rows: np.ndarray
  ) -> Iterator[dict[str, np.ndarray]]:
    """See `Reader`."""
    endless = self._endless()

    def batch_of(step: int) -> dict[str, np.ndarray]:
      return self.rows.batch(self._chosen(endless, int(step), rows), len(rows))

    steps = grain.MapDataset.range(first_step, num_steps).map(batch_of)
    # One thread fills far more rows than a small machine can train on, and
    # more would take its cores from the training itself.
    options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=8)
    yield from steps.to_iter_dataset(options)

  def example_ids(self, step: int) -> list[str]:
    """See `Reader`."""
    rows = np.arange(self.batch_size)
    return self.rows.example_ids(self._chosen(self._endless(), step, rows))

  def _chosen(
    self, endless: Sequence[grain.MapDataset], step: int, rows: np.ndarray
  ) -> np.ndarray:
    """Which packed rows stand at some rows of a step's batch, [rows] int64."""
    numbers = (step * self.batch_size + rows).tolist()
    places = map(self.mixture.place, numbers)
    return np.array([endless[source][n] for source, n in places], np.int64)

  def _endless(self) -> list[grain.MapDataset]:
    """Of each source its rows without end, each epoch in an order of its own."""
    return [
      grain.MapDataset.range(int(first), int(last))
      .seed(self.seed)
      .shuffle()
      .repeat(None)
      for first, last in itertools.pairwise(self.row_offsets)
    ]

  def position(self, step: int) -> dict[str, float]:
    """See `Reader`."""
    return {'epoch': step * self.batch_size / len(self.rows)}

  def facts(self, num_steps: int) -> dict[str, Any]:
    """See `Reader`; of a mixture also the epochs of each source."""
    read = num_steps * self.batch_size
    facts = {
      'num_rows': len(self.rows),
      'fill': self.rows.plan.fill,
      'epochs': read / len(self.rows),
    }
    if len(self.sources) > 1:
      epochs = np.array(self.mixture.counts(read)) / np.diff(self.row_offsets)
      facts['epochs_by_source'] = dict(
        zip(self.sources, epochs.tolist(), strict=True)
      )
    return facts


def grain_reader(
  store: TokenStore,
  keep: list[np.ndarray],
  row_length: int,
  batch_size: int,
  seed: int,
  mixture: Mapping[str, float],
  schedule: Sequence[MixturePhase],
) -> GrainReader:
  """A reader of the documents kept, with EOS, packed into rows.

  Args:
    store: Where the documents are.
    keep: For each part, the rows of the documents to train on, int.
    row_length: Tokens a row.
    batch_size: Rows of a global batch.
    seed: Of the packing and of the order.
    mixture: The weight of each source; {} for natural sizes.
    schedule: What takes its place later; it names the same sources.

  Raises:
    UserError: nothing is kept, or the mixture does not name the sources kept.
  """
  shard = np.repeat(np.arange(len(keep)), [len(rows) for rows in keep])
  row = np.concatenate(keep)
  num_tokens = np.concatenate(
    [store.part(p).column('num_tokens')[rows] for p, rows in enumerate(keep)]
  )
  documents = _by_source(store, keep, mixture)
  plans = [
    packing.pack(num_tokens[chosen] + 1, row_length, overlap=0, seed=seed)
    for chosen in documents.values()
  ]
  plan = packing.concatenate(plans, list(documents.values()))
  return GrainReader(
    packing.PackedRows(store, shard, row, plan),
    tuple(documents),
    np.concatenate([[0], np.cumsum([plan.num_rows for plan in plans])]),
    mixture_lib.make(tuple(documents), mixture, schedule, batch_size),
    seed,
    batch_size,
  )


def _by_source(
  store: TokenStore, keep: list[np.ndarray], mixture: Mapping[str, float]
) -> dict[str, np.ndarray]:
  """The documents (numbers among those kept) of each source of a mixture."""
  count = sum(len(rows) for rows in keep)
  if not count:
    raise UserError('There is no document to train on.')
  if not mixture:
    return {'': np.arange(count)}
  names = np.concatenate(
    [
      np.array(store.part(p).table('source')['source'].take(rows).to_pylist())
      for p, rows in enumerate(keep)
      if len(rows)
    ]
  )
  found = {
    str(name): np.flatnonzero(names == name) for name in np.unique(names)
  }
  check_mixture(mixture, found)
  return found


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
