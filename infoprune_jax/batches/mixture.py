"""Which source each row of a run comes from: a pure function of its number.

Sources are interleaved by their weights, as evenly as whole rows can be. Where
weights change, each source goes on with the row that it had come to.
"""

import bisect
import dataclasses
import functools
import itertools
from collections.abc import Mapping, Sequence

from infoprune_jax.config.training import MixturePhase

_UNIT = 100  # what the smallest weight counts as: weights are whole numbers


@dataclasses.dataclass(frozen=True)
class Mixture:
  """An endless sequence of rows of several sources."""

  starts: tuple[int, ...]  # the first row of each phase, ascending from 0
  weights: tuple[tuple[int, ...], ...]  # of each phase, for each source

  def counts(self, row: int) -> list[int]:
    """How many rows of each source come before a row."""
    phase = bisect.bisect_right(self.starts, row) - 1
    within = _interleaved(row - self.starts[phase], self.weights[phase])
    return [a + b for a, b in zip(self._before[phase], within, strict=True)]

  def place(self, row: int) -> tuple[int, int]:
    """The source of a row, and how many rows of that source come before it."""
    before, after = self.counts(row), self.counts(row + 1)
    source = next(i for i, n in enumerate(before) if after[i] > n)
    return source, before[source]

  @functools.cached_property
  def _before(self) -> list[list[int]]:
    """Rows of each source before each phase."""
    before = [[0] * len(self.weights[0])]
    lengths = (last - first for first, last in itertools.pairwise(self.starts))
    for length, weights in zip(lengths, self.weights, strict=False):
      within = _interleaved(length, weights)
      before.append([a + b for a, b in zip(before[-1], within, strict=True)])
    return before


def make(
  sources: Sequence[str],
  mixture: Mapping[str, float],
  schedule: Sequence[MixturePhase],
  batch_size: int,
) -> Mixture:
  """The mixture of a training run.

  Args:
    sources: Their names, in the order in which they are counted.
    mixture: The weight of each from step 0, however scaled; {} for one source.
    schedule: Other weights, and from which step on.
    batch_size: Rows of a step.
  """
  mixture = mixture or dict.fromkeys(sources, 1.0)
  phases = [mixture, *(phase.weights for phase in schedule)]
  return Mixture(
    (0, *(phase.from_step * batch_size for phase in schedule)),
    tuple(_whole([weights[name] for name in sources]) for weights in phases),
  )


def _whole(weights: Sequence[float]) -> tuple[int, ...]:
  scale = _UNIT / min(weight for weight in weights if weight > 0.0)
  return tuple(int(weight * scale) for weight in weights)


def _interleaved(rows: int, weights: Sequence[int]) -> list[int]:
  """How many of the first rows of one phase are of each source.

  Each source in turn leaves to the later ones their share, rounded down; that
  is how Grain mixes, so that one more row is one more of exactly one source.
  """
  counts, left, rest = [], rows, sum(weights)
  for weight in weights:
    others = left * (rest - weight) // rest if weight else left
    counts.append(left - others)
    left, rest = others, rest - weight
  return counts
