"""Packing: every slot once, whole documents, full sequences."""

import dataclasses
import itertools

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from infoprune_jax.batches import packing

BOS, EOS = 2, 1
lengths = st.lists(
  st.integers(0, 8) | st.integers(0, 100), min_size=0, max_size=40
).map(lambda found: np.array(found, np.int64))


@st.composite
def problems(draw) -> tuple[np.ndarray, int, int, int]:
  """num_slots, sequence_length, overlap, seed."""
  sequence_length = draw(st.integers(1, 33))
  overlap = draw(st.integers(0, sequence_length - 1))
  return draw(lengths), sequence_length, overlap, draw(st.integers(0, 3))


@dataclasses.dataclass
class Documents:
  """What `PackedSequences` asks of a token store."""

  ids: list[np.ndarray]
  bos_id: int = BOS
  eos_id: int = EOS

  @property
  def tokens(self) -> np.ndarray:
    return np.concatenate(self.ids)

  @property
  def offsets(self) -> np.ndarray:
    return np.cumsum([0, *map(len, self.ids)])

  def shard(self, shard: int) -> 'Documents':
    assert shard == 7
    return self


def segments_of(
  plan: packing.Plan, document: int
) -> list[tuple[int, int, int]]:
  """Start, length and context of a document's segments, by start."""
  at = np.flatnonzero(plan.document == document)
  return sorted(
    (int(plan.start[i]), int(plan.length[i]), int(plan.context[i])) for i in at
  )


@settings(deadline=None)
@given(problem=problems())
def test_every_slot_counts_once(problem):
  num_slots, sequence_length, overlap, seed = problem
  plan = packing.pack(num_slots, sequence_length, overlap, seed)
  for document, slots in enumerate(num_slots):
    counted = np.zeros(slots, int)
    for start, length, context in segments_of(plan, document):
      counted[start + context : start + length] += 1
    assert (counted == 1).all()
  assert (plan.length - plan.context).sum() == num_slots.sum()


@settings(deadline=None)
@given(problem=problems())
def test_windows(problem):
  num_slots, sequence_length, overlap, seed = problem
  plan = packing.pack(num_slots, sequence_length, overlap, seed)
  for document, slots in enumerate(num_slots):
    segments = segments_of(plan, document)
    if slots <= sequence_length:  # Never cut; left out when empty.
      assert segments == ([(0, slots, 0)] if slots else [])
      continue
    assert segments[0] == (0, sequence_length, 0)
    for before, segment in itertools.pairwise(segments):
      assert segment[0] == before[0] + sequence_length - overlap
      assert segment[2] == overlap < segment[1] <= sequence_length
    assert segments[-1][0] + segments[-1][1] == slots


@settings(deadline=None)
@given(problem=problems())
def test_rows_are_never_overfull_nor_empty(problem):
  num_slots, sequence_length, overlap, seed = problem
  plan = packing.pack(num_slots, sequence_length, overlap, seed)
  assert plan.sequence_offsets[0] == 0
  assert plan.sequence_offsets[-1] == len(plan.length)
  filled = np.array(
    [
      plan.length[first:last].sum()
      for first, last in zip(
        plan.sequence_offsets[:-1], plan.sequence_offsets[1:], strict=True
      )
    ]
  )
  assert len(filled) == plan.num_sequences
  assert ((filled > 0) & (filled <= sequence_length)).all()
  if plan.num_sequences:
    assert plan.fill == pytest.approx(filled.mean() / sequence_length)


def best_fit_decreasing(segments: list[int], sequence_length: int) -> list[int]:
  """The free space of each sequence, sorted; slow and plain."""
  free: list[int] = []
  for size in sorted(segments, reverse=True):
    fitting = [space for space in free if space >= size]
    tightest = min(fitting, default=sequence_length)
    if fitting:
      free.remove(tightest)
    free.append(tightest - size)
  return sorted(free)


@settings(deadline=None)
@given(problem=problems())
def test_rows_are_those_of_best_fit_decreasing(problem):
  num_slots, sequence_length, overlap, seed = problem
  plan = packing.pack(num_slots, sequence_length, overlap, seed)
  sequences = np.repeat(
    np.arange(plan.num_sequences), np.diff(plan.sequence_offsets)
  )
  filled = np.bincount(sequences, plan.length, plan.num_sequences)
  expected = best_fit_decreasing(plan.length.tolist(), sequence_length)
  assert sorted((sequence_length - filled).tolist()) == expected


def arrays(plan: packing.Plan) -> list[list[int]]:
  names = ('document', 'start', 'length', 'context', 'sequence_offsets')
  return [getattr(plan, name).tolist() for name in names]


def test_the_same_arguments_give_the_same_plan():
  num_slots = np.random.default_rng(0).integers(0, 90, 500)
  first, again, other = (
    packing.pack(num_slots, 64, 16, seed) for seed in (0, 0, 1)
  )
  assert arrays(first) == arrays(again)
  assert arrays(first) != arrays(other)
  assert first.num_sequences == other.num_sequences


def test_lengths_do_not_stand_in_order():
  """Long sequences first would be a curriculum nobody asked for."""
  num_slots = np.random.default_rng(0).integers(1, 64, 4000)
  plan = packing.pack(num_slots, 64, 0, 0)
  largest = np.maximum.reduceat(plan.length, plan.sequence_offsets[:-1])
  position = np.corrcoef(largest, np.arange(plan.num_sequences))[0, 1]
  assert abs(position) < 0.1


def test_neighbours_of_equal_length_are_parted():
  plan = packing.pack(np.full(1000, 4), 8, 0, 0)
  first, second = plan.document.reshape(-1, 2).T
  assert (np.abs(first - second) == 1).mean() < 0.02


@pytest.mark.parametrize('seed', range(3))
def test_rows_are_full(seed):
  rng = np.random.default_rng(seed)
  num_slots = np.ceil(rng.lognormal(5.5, 1.2, 10_000)).astype(int)
  plan = packing.pack(num_slots, 1024, 0, seed)
  assert plan.fill >= 0.995


@pytest.mark.parametrize('num_slots', [[], [0, 0]])
def test_nothing_to_pack(num_slots):
  plan = packing.pack(np.array(num_slots, int), 8, 0, 0)
  assert (plan.num_sequences, len(plan.length), plan.fill) == (0, 0, 0.0)


def packed(problem, extra: int) -> tuple[packing.PackedSequences, list]:
  """Sequences of documents of distinct ids; `extra` is 1 with EOS as a target."""
  num_tokens, sequence_length, overlap, seed = problem
  total = int(num_tokens.sum())
  ids = np.split(np.arange(10, 10 + total), np.cumsum(num_tokens)[:-1])
  ids = ids[: len(num_tokens)]
  plan = packing.pack(num_tokens + extra, sequence_length, overlap, seed)
  # Backwards: a document's doc_index in the store is not its number in the
  # plan.
  store, doc_index = Documents(ids[::-1]), np.arange(len(ids))[::-1]
  return packing.PackedSequences(
    store, np.full(len(ids), 7), doc_index, plan
  ), ids


@settings(deadline=None)
@pytest.mark.parametrize('extra', [0, 1])
@given(problem=problems())
def test_documents_can_be_read_off_the_rows(extra, problem):
  sequences, documents = packed(problem, extra)
  batch = sequences.batch(np.arange(len(sequences)), len(sequences))
  assert set(batch) == set(packing.empty_sequences(1, 1))
  targets: dict[int, list[int]] = {}
  for sequence in range(len(sequences)):
    view = {name: values[sequence] for name, values in batch.items()}
    check_padding(view)
    first, last = sequences.plan.sequence_offsets[sequence : sequence + 2]
    for number, segment in enumerate(range(first, last), 1):
      at = view['decoder_segment_ids'] == number
      document = int(sequences.plan.document[segment])
      sequence = [BOS, *documents[document].tolist(), EOS]
      start, length = int(sequences.plan.start[segment]), int(at.sum())
      assert length == sequences.plan.length[segment]
      inputs = view['decoder_input_tokens'][at].tolist()
      wanted = view['decoder_target_tokens'][at].tolist()
      assert inputs == sequence[start : start + length]
      assert wanted == sequence[start + 1 : start + 1 + length]
      assert view['decoder_positions'][at].tolist() == list(range(length))
      context = int(sequences.plan.context[segment])
      weights = view['decoder_loss_weights'][at].tolist()
      assert weights == [0.0] * context + [1.0] * (length - context)
      targets.setdefault(document, []).extend(wanted[context:])
  for document, ids in enumerate(documents):
    expected = [*ids.tolist(), *[EOS] * extra]
    assert sorted(targets.get(document, [])) == sorted(expected)


def check_padding(sequence: dict[str, np.ndarray]) -> None:
  """Segments from the left, then zeros."""
  segments = sequence['decoder_segment_ids']
  filled = int((segments > 0).sum())
  assert (segments[:filled] > 0).all()
  assert (np.diff(segments[:filled]) >= 0).all()
  for name, values in sequence.items():
    assert not values[filled:].any(), name


def test_a_literal_row():
  sequences, _ = packed((np.array([3, 2]), 8, 0, 0), extra=1)
  assert {
    name: sequence.tolist() for name, sequence in sequences[0].items()
  } == {
    'decoder_input_tokens': [2, 10, 11, 12, 2, 13, 14, 0],
    'decoder_target_tokens': [10, 11, 12, 1, 13, 14, 1, 0],
    'decoder_segment_ids': [1, 1, 1, 1, 2, 2, 2, 0],
    'decoder_positions': [0, 1, 2, 3, 0, 1, 2, 0],
    'decoder_loss_weights': [1.0] * 7 + [0.0],
  }


def test_a_literal_window():
  sequences, _ = packed((np.array([5]), 4, 2, 0), extra=0)
  found = sorted(
    (
      sequence['decoder_input_tokens'].tolist(),
      sequence['decoder_loss_weights'].tolist(),
    )
    for sequence in (sequences[0], sequences[1])
  )
  assert found == [
    ([2, 10, 11, 12], [1.0, 1.0, 1.0, 1.0]),
    ([11, 12, 13, 0], [0.0, 0.0, 1.0, 0.0]),
  ]


def test_a_batch_is_padded_with_empty_rows():
  sequences, _ = packed((np.array([3, 3, 3]), 4, 0, 0), extra=0)
  batch = sequences.batch(np.array([2, 0]), 5)
  for name, values in batch.items():
    assert values.shape == (5, 4)
    assert (values[0] == sequences[2][name]).all()
    assert (values[1] == sequences[0][name]).all()
    assert not values[2:].any()
    assert values.dtype == ('float32' if 'weights' in name else 'int32')


def test_the_seed_is_taken():
  with pytest.raises(TypeError, match='seed'):
    packing.pack(np.array([1]), 4, 0)
