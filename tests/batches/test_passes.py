"""Copies of examples in an epoch: each in its pass, far apart."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from infoprune_jax.batches import loader, passes
from infoprune_jax.config.training import TrainingConfig

BATCH = 4


@settings(max_examples=50, deadline=None)
@given(
  counts=st.lists(st.integers(1, 9), min_size=1, max_size=30),
  seed=st.integers(0, 3),
)
def test_copies_are_spread_evenly(counts, seed):
  document = np.repeat(np.arange(len(counts)) * 7, counts)
  found = passes.split(document, document, seed)
  assert sum(map(len, found)) == len(document)
  where = {}
  for number, some in enumerate(found):
    assert len(np.unique(some)) == len(some)  # No pass has two copies.
    for one in some.tolist():
      where.setdefault(one // 7, []).append(number)
  if len(found) < max(counts):  # A pass that has none is left out.
    return
  for one, count in enumerate(counts):
    gaps = np.diff([*where[one], where[one][0] + max(counts)])
    assert len(where[one]) == count
    assert gaps.min() >= max(counts) // count
    assert gaps.max() <= -(-max(counts) // count)


def test_without_copies_there_is_one_pass():
  for count in (0, 1, 5):
    [found] = passes.split(np.arange(count), np.arange(count), 0)
    assert found.tolist() == list(range(count))


def test_passes_have_about_as_many_examples():
  """Each is a fair sample: of examples with few copies as of others."""
  document = np.repeat(np.arange(8000), np.repeat([1, 2, 3, 4], 2000))
  copies = np.bincount(document)
  for some in passes.split(document, document, 0):
    kinds = np.bincount(copies[some], minlength=5)[1:] / 2000
    assert kinds == pytest.approx([0.25, 0.5, 0.75, 1.0], abs=0.05)


REPEATS = [np.array([0, 1, 2, 3, 5] * 8), np.array([1, 0, 0, 4] * 7)]


def reader(make_store, mixture=None, seed=0) -> loader.GrainReader:
  """Documents of one token, which is their number, each in a sequence alone."""
  numbers = np.split(np.arange(68), [40])
  sources = [[('web', 'books')[n % 2] for n in some] for some in numbers]
  store = make_store(
    [[[10 + n] * 7 for n in some.tolist()] for some in numbers],
    sources=sources,
  )
  training = TrainingConfig(
    num_steps=1,
    batch_size=BATCH,
    sequence_length=8,
    learning_rate=1e-3,
    mixture=mixture or {},
  )
  keep = [np.repeat(np.arange(len(r)), r) for r in REPEATS]
  return loader.grain_reader(store, keep, training, seed)


def read(one: loader.GrainReader, first: int, last: int) -> list[int]:
  """The document in each place of some steps."""
  return [
    int(sequence[0]) - 10
    for batch in one.batches(first, last, np.arange(BATCH))
    for sequence in batch['decoder_target_tokens']
  ]


def test_an_epoch_uses_each_example_as_often_as_asked(make_store):
  """In another order each time, and copies of one are far apart."""
  counts = np.concatenate(REPEATS)
  size = int(counts.sum())
  one = reader(make_store)
  facts = one.facts(size // BATCH)
  assert (facts['num_sequences'], facts['epochs']) == (
    size,
    size // BATCH * BATCH / size,
  )
  stream = np.array(read(one, 0, 3 * size // BATCH + 1))[: 3 * size]
  epochs = stream.reshape(3, size)
  for epoch in epochs:
    assert np.bincount(epoch, minlength=len(counts)).tolist() == counts.tolist()
  assert (epochs[0] != epochs[1]).any() and (epochs[1] != epochs[2]).any()
  gaps = [
    np.diff(np.flatnonzero(epoch == number)).tolist()
    for epoch in epochs
    for number in np.flatnonzero(counts == 2)
  ]
  # Two copies are two or three passes of five apart.
  assert min(map(min, gaps)) > size / 5 * 0.7


@pytest.mark.parametrize('mixture', [None, {'web': 2.0, 'books': 1.0}])
def test_a_resumed_run_reads_on_where_it_stopped(make_store, mixture):
  """In a new process: only config, seed and step decide."""
  whole = read(reader(make_store, mixture), 0, 90)
  for step in (1, 17, 40, 77):
    again = reader(make_store, mixture)
    assert read(again, step, 90) == whole[step * BATCH :]
  other = dataclasses.replace(reader(make_store, mixture), seed=1)
  assert read(other, 0, 90) != whole


def test_an_example_is_named_once(make_store):
  sequences = reader(make_store).sequences
  names = sequences.examples(np.arange(len(sequences)))
  assert len(set(names)) == len(names) == 68 - 8 - 14
