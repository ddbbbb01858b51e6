"""Readers of runs with several phases."""

import dataclasses

import numpy as np
import pytest

from infoprune_jax.batches import loader, phases
from infoprune_jax.config.training import MixturePhase

STARTS = (0, 3, 7)


@pytest.fixture(scope='module')
def readers(small, store):
  """A reader of each phase: of all documents, the first and the last."""
  whole = [np.arange(n) for n in store.documents_per_shard]
  halves = [
    [k[: len(k) // 2] for k in whole],
    [k[len(k) // 2 :] for k in whole],
  ]
  return [
    loader.grain_reader(store, keep, small.train.training, seed=0)
    for keep in (whole, *halves)
  ]


def batches(reader, first: int, last: int) -> list[np.ndarray]:
  rows = np.arange(reader_size(reader))
  return [
    batch['decoder_target_tokens'].copy()
    for batch in reader.batches(first, last, rows)
  ]


def reader_size(reader) -> int:
  return getattr(reader, 'batch_size', 8)


def test_batches_are_those_of_each_phase_from_its_start(readers):
  phased = phases.PhasedReader(readers, STARTS)
  together = batches(phased, 0, 10)
  apart = [
    *batches(readers[0], 0, 3),
    *batches(readers[1], 0, 4),
    *batches(readers[2], 0, 3),
  ]
  np.testing.assert_array_equal(together, apart)
  # Wherever it starts: the step is the whole state.
  for first in range(10):
    np.testing.assert_array_equal(batches(phased, first, 10), together[first:])
  assert not batches(phased, 3, 3)


def test_places_count_from_the_start_of_the_phase(readers):
  phased = phases.PhasedReader(readers, STARTS)
  assert phased.position(3) == readers[0].position(3)  # after three steps
  assert phased.position(4) == readers[1].position(1)
  assert phased.examples(3) == readers[1].examples(0)
  assert phased.facts(10) == readers[2].facts(3)
  np.testing.assert_array_equal(
    phased.segments, np.concatenate([r.segments for r in readers])
  )


def test_mixtures_go_by_steps_of_the_run(small, store):
  """A source whose weight is 0 until step 4 is read from step 4 on."""
  names = ('copies', 'prose', 'template')
  schedule = (MixturePhase(from_step=4, weights=dict.fromkeys(names, 1.0)),)
  training = dataclasses.replace(
    small.train.training,
    mixture={**dict.fromkeys(names, 1.0), 'prose': 0.0},
    mixture_schedule=schedule,
  )
  whole = [np.arange(n) for n in store.documents_per_shard]
  reader = loader.grain_reader(store, whole, training, 0, first_step=3)
  prose = names.index('prose')
  offsets = reader.sequence_offsets

  def of_prose(step: int) -> np.ndarray:
    chosen = reader._chosen(reader._endless(), step, np.arange(8))
    return chosen[(chosen >= offsets[prose]) & (chosen < offsets[prose + 1])]

  assert not len(of_prose(0)) and len(of_prose(1))
  read = np.concatenate([of_prose(step) for step in range(3)])
  epochs = reader.facts(3)['epochs_by_source']['prose']
  assert epochs == len(read) / (offsets[prose + 1] - offsets[prose])
