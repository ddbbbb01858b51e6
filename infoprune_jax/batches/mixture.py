"""The source of each sequence of a run: a pure function of its number.

Sources are interleaved by their weights, as evenly as whole sequences can be.
If weights change, each source continues with its next sequence.
"""

import bisect
import dataclasses
import functools
import itertools
from collections.abc import Mapping, Sequence

from infoprune_jax.config.training import MixturePhase

_UNIT = 100  # the smallest weight, as weights become whole numbers


@dataclasses.dataclass(frozen=True)
class Mixture:
  """An endless series of sequences of several sources."""

  starts: tuple[int, ...]  # the first sequence of each phase, ascending from 0
  weights: tuple[tuple[int, ...], ...]  # of each phase, for each source

  def counts(self, sequence: int) -> list[int]:
    """The number of sequences of each source before a sequence."""
    phase = bisect.bisect_right(self.starts, sequence) - 1
    within = _interleaved(sequence - self.starts[phase], self.weights[phase])
    return [a + b for a, b in zip(self._before[phase], within, strict=True)]

  def place(self, sequence: int) -> tuple[int, int]:
    """The source of a sequence, and its index among those of the source."""
    before, after = self.counts(sequence), self.counts(sequence + 1)
    source = next(i for i, n in enumerate(before) if after[i] > n)
    return source, before[source]

  @functools.cached_property
  def _before(self) -> list[list[int]]:
    """Sequences of each source before each phase."""
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
    sources: Names of the sources, in the order of `counts`.
    mixture: The weight of each from step 0, on any scale; {} for one source.
    schedule: Later weights, with their first steps.
    batch_size: Sequences of a step.
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


def _interleaved(sequences: int, weights: Sequence[int]) -> list[int]:
  """How many of the first sequences of one phase are of each source.

  As in Grain, each source in turn leaves to the later sources their fraction,
  rounded down. So one more sequence is one more of exactly one source.
  """
  counts, left, rest = [], sequences, sum(weights)
  for weight in weights:
    others = left * (rest - weight) // rest if weight else left
    counts.append(left - others)
    left, rest = others, rest - weight
  return counts
