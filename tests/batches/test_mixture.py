"""Mixtures: shares, and places that need no walk through the sequences before."""

import grain
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from infoprune_jax.batches import mixture as mixture_lib
from infoprune_jax.config.training import MixturePhase

NAMES = ('web', 'books', 'news')
BATCH = 4
WEIGHTS = st.fixed_dictionaries(
  {name: st.sampled_from([0.0, 0.01, 0.3, 1.0, 1.5, 7.0]) for name in NAMES}
).filter(lambda weights: any(weights.values()))
SCHEDULES = st.dictionaries(st.integers(1, 30), WEIGHTS, max_size=3)


def phases_of(schedule) -> list[MixturePhase]:
  return [
    MixturePhase(from_step=step, weights=schedule[step])
    for step in sorted(schedule)
  ]


@settings(max_examples=50)
@given(WEIGHTS, SCHEDULES)
def test_each_source_is_read_row_after_row(first, schedule):
  """Over changes of the weights, too."""
  made = mixture_lib.make(NAMES, first, phases_of(schedule), BATCH)
  read = [0] * len(NAMES)
  for sequence in range(200):
    assert made.counts(sequence) == read
    source, number = made.place(sequence)
    assert number == read[source]
    step = sequence // BATCH
    now = max((n for n in schedule if n <= step), default=None)
    assert (first if now is None else schedule[now])[NAMES[source]] > 0.0
    read[source] += 1


@settings(max_examples=50)
@given(WEIGHTS, SCHEDULES, st.integers(1, 1000))
def test_each_phase_has_its_shares(first, schedule, sequences):
  """Of its sequences; each source is out by less than one a source."""
  phases = [first, *(phase.weights for phase in phases_of(schedule))]
  starts = [0, *(BATCH * step for step in sorted(schedule))]
  made = mixture_lib.make(NAMES, first, phases_of(schedule), BATCH)
  for start, end, weights in zip(
    starts, [*starts[1:], starts[-1] + sequences], phases, strict=True
  ):
    shares = np.array([weights[name] for name in NAMES]) / sum(weights.values())
    found = np.subtract(made.counts(end), made.counts(start))
    # Weights count as whole hundredths of the smallest.
    slack = len(NAMES) + 0.01 * (end - start)
    assert (abs(found - shares * (end - start)) <= slack).all()


@pytest.mark.parametrize(
  'weights', [(1.0, 2.0, 5.0), (1.0, 1.0, 1.0), (3, 1, 9)]
)
def test_without_a_schedule_it_mixes_as_grain_does(weights):
  made = mixture_lib.make(NAMES, dict(zip(NAMES, weights, strict=True)), (), 16)
  sources = [
    grain.MapDataset.source([(source, n) for n in range(2000)])
    for source in range(3)
  ]
  expected = grain.MapDataset.mix(sources, weights)
  for sequence in [*range(300), 1777, 1999]:
    assert made.place(sequence) == expected[sequence]


def test_far_rows_are_as_near_as_others():
  schedule = [
    MixturePhase(
      from_step=1000 * n, weights={**dict.fromkeys(NAMES, 1.0), 'web': n}
    )
    for n in range(1, 1000)
  ]
  made = mixture_lib.make(NAMES, {}, schedule, 1024)
  sequence = 10**6 * 1024
  assert sum(made.counts(sequence)) == sequence
  source, number = made.place(sequence)
  assert number == made.counts(sequence)[source]
