"""Batches of a run that reads one set of sequences after another."""

import bisect
import dataclasses
import itertools
from collections.abc import Iterator, Sequence

import numpy as np

from infoprune_jax.batches.loader import Reader, ReaderFacts


@dataclasses.dataclass(frozen=True, eq=False)
class PhasedReader:
  """A reader for each phase; each begins at the start of its own order.

  Batches are a pure function of the step, as those of the readers are.
  """

  readers: Sequence[Reader]
  starts: Sequence[int]  # the step at which each begins, ascending from 0

  @property
  def segments(self) -> np.ndarray | None:
    """See `Reader`."""
    known = [r.segments for r in self.readers if r.segments is not None]
    return np.concatenate(known) if len(known) == len(self.readers) else None

  def batches(
    self, first_step: int, num_steps: int, sequences: np.ndarray
  ) -> Iterator[dict[str, np.ndarray]]:
    """See `Reader`."""
    bounds = itertools.pairwise([*self.starts, max(num_steps, self.starts[-1])])
    for reader, (start, end) in zip(self.readers, bounds, strict=True):
      first, last = max(first_step, start), min(num_steps, end)
      if first < last:
        yield from reader.batches(first - start, last - start, sequences)

  def examples(self, step: int) -> list[tuple[str, str]]:
    """See `Reader`."""
    reader, start = self._phase(step)
    return reader.examples(step - start)

  def position(self, step: int) -> dict[str, float]:
    """See `Reader`; the epoch counts from the start of the phase."""
    reader, start = self._phase(step - 1)  # that of the last batch
    return reader.position(step - start)

  def facts(self, num_steps: int) -> ReaderFacts:
    """See `Reader`; facts on the last phase."""
    reader, start = self._phase(num_steps - 1)
    return reader.facts(num_steps - start)

  def _phase(self, step: int) -> tuple[Reader, int]:
    """The reader of a step's batch, and where it begins."""
    phase = bisect.bisect_right(self.starts, step) - 1
    return self.readers[phase], self.starts[phase]
