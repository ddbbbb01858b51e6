"""Training batches with Grain: a pure function of (rows, seed, step).

Rows are shuffled anew in each epoch. Step s takes global rows s * B to
(s + 1) * B of the endless sequence, whatever the number of hosts, so that the
state of the reader is the step, and seeking costs nothing.
"""

import dataclasses
import itertools
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Protocol

import grain
import jax
import numpy as np

from infoprune_jax.config import UserError
from infoprune_jax.data import packing
from infoprune_jax.data.token_store import TokenStore


class Reader(Protocol):
  """Where a training run gets its batches."""

  @property
  def max_pieces(self) -> int:
    """At least the pieces of documents of any row; 0 if unknown."""
    ...

  def batches(
    self, first_step: int, num_steps: int
  ) -> Iterator[dict[str, np.ndarray]]:
    """This host's share of the global batches of steps first_step to num_steps.

    Yields:
      [B / hosts, T] arrays, see `packing.empty_rows`.
    """
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
  weights: tuple[float, ...]  # of a source, however scaled
  seed: int
  batch_size: int

  @property
  def max_pieces(self) -> int:
    """See `Reader`."""
    return int(self.rows.plan.pieces_per_row.max(initial=0))

  def batches(
    self, first_step: int, num_steps: int
  ) -> Iterator[dict[str, np.ndarray]]:
    """See `Reader`."""
    endless = self._order()
    share = self.batch_size // jax.process_count()
    offset = jax.process_index() * share

    def batch_of(step: int) -> dict[str, np.ndarray]:
      first = int(step) * self.batch_size + offset
      chosen = np.array([endless[first + i] for i in range(share)])
      return self.rows.batch(chosen, share)

    steps = grain.MapDataset.range(first_step, num_steps).map(batch_of)
    # One thread fills far more rows than a small machine can train on, and
    # more would take its cores from the training itself.
    options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=8)
    yield from steps.to_iter_dataset(options)

  def _order(self) -> grain.MapDataset:
    """The endless sequence of row numbers, each epoch in an order of its own."""
    endless = [
      grain.MapDataset.range(int(first), int(last))
      .seed(self.seed)
      .shuffle()
      .repeat(None)
      for first, last in itertools.pairwise(self.row_offsets)
    ]
    if len(endless) == 1:
      return endless[0]
    return grain.MapDataset.mix(endless, self.weights)

  def facts(self, num_steps: int) -> dict[str, Any]:
    """See `Reader`; of a mixture also the epochs of each source."""
    read = num_steps * self.batch_size
    facts = {
      'num_rows': len(self.rows),
      'fill': self.rows.plan.fill,
      'epochs': read / len(self.rows),
    }
    if len(self.sources) > 1:
      shares = np.array(self.weights) / sum(self.weights)
      epochs = read * shares / np.diff(self.row_offsets)
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
) -> GrainReader:
  """A reader of the documents kept, with EOS, packed into rows.

  Args:
    store: Where the documents are.
    keep: For each part, the rows of the documents to train on, int.
    row_length: Tokens a row.
    batch_size: Rows of a global batch.
    seed: Of the packing and of the order.
    mixture: The weight of each source; {} for natural sizes.

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
    tuple(mixture[source] if mixture else 1.0 for source in documents),
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
