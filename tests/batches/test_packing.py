"""Packing: every slot once, whole documents, full rows."""

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
  """num_slots, row_length, overlap, seed."""
  row_length = draw(st.integers(1, 33))
  overlap = draw(st.integers(0, row_length - 1))
  return draw(lengths), row_length, overlap, draw(st.integers(0, 3))


@dataclasses.dataclass
class Documents:
  """What `PackedRows` asks of a token store."""

  ids: list[np.ndarray]
  bos_id: int = BOS
  eos_id: int = EOS

  @property
  def tokens(self) -> np.ndarray:
    return np.concatenate(self.ids)

  @property
  def offsets(self) -> np.ndarray:
    return np.cumsum([0, *map(len, self.ids)])

  def part(self, shard: int) -> 'Documents':
    assert shard == 7
    return self


def pieces_of(plan: packing.Plan, document: int) -> list[tuple[int, int, int]]:
  """Start, length and context of a document's pieces, by start."""
  at = np.flatnonzero(plan.document == document)
  return sorted(
    (int(plan.start[i]), int(plan.length[i]), int(plan.context[i])) for i in at
  )


@settings(deadline=None)
@given(problem=problems())
def test_every_slot_counts_once(problem):
  num_slots, row_length, overlap, seed = problem
  plan = packing.pack(num_slots, row_length, overlap, seed)
  for document, slots in enumerate(num_slots):
    counted = np.zeros(slots, int)
    for start, length, context in pieces_of(plan, document):
      counted[start + context : start + length] += 1
    assert (counted == 1).all()
  assert (plan.length - plan.context).sum() == num_slots.sum()


@settings(deadline=None)
@given(problem=problems())
def test_windows(problem):
  num_slots, row_length, overlap, seed = problem
  plan = packing.pack(num_slots, row_length, overlap, seed)
  for document, slots in enumerate(num_slots):
    pieces = pieces_of(plan, document)
    if slots <= row_length:  # Never cut; left out when empty.
      assert pieces == ([(0, slots, 0)] if slots else [])
      continue
    assert pieces[0] == (0, row_length, 0)
    for before, piece in itertools.pairwise(pieces):
      assert piece[0] == before[0] + row_length - overlap
      assert piece[2] == overlap < piece[1] <= row_length
    assert pieces[-1][0] + pieces[-1][1] == slots


@settings(deadline=None)
@given(problem=problems())
def test_rows_are_never_overfull_nor_empty(problem):
  num_slots, row_length, overlap, seed = problem
  plan = packing.pack(num_slots, row_length, overlap, seed)
  assert plan.row_offsets[0] == 0
  assert plan.row_offsets[-1] == len(plan.length)
  filled = np.array(
    [
      plan.length[first:last].sum()
      for first, last in zip(
        plan.row_offsets[:-1], plan.row_offsets[1:], strict=True
      )
    ]
  )
  assert len(filled) == plan.num_rows
  assert ((filled > 0) & (filled <= row_length)).all()
  if plan.num_rows:
    assert plan.fill == pytest.approx(filled.mean() / row_length)


def best_fit_decreasing(pieces: list[int], row_length: int) -> list[int]:
  """The free space of each row, sorted; slow and plain."""
  free: list[int] = []
  for size in sorted(pieces, reverse=True):
    fitting = [space for space in free if space >= size]
    tightest = min(fitting, default=row_length)
    if fitting:
      free.remove(tightest)
    free.append(tightest - size)
  return sorted(free)


@settings(deadline=None)
@given(problem=problems())
def test_rows_are_those_of_best_fit_decreasing(problem):
  num_slots, row_length, overlap, seed = problem
  plan = packing.pack(num_slots, row_length, overlap, seed)
  rows = np.repeat(np.arange(plan.num_rows), np.diff(plan.row_offsets))
  filled = np.bincount(rows, plan.length, plan.num_rows)
  expected = best_fit_decreasing(plan.length.tolist(), row_length)
  assert sorted((row_length - filled).tolist()) == expected


def arrays(plan: packing.Plan) -> list[list[int]]:
  names = ('document', 'start', 'length', 'context', 'row_offsets')
  return [getattr(plan, name).tolist() for name in names]


def test_the_same_arguments_give_the_same_plan():
  num_slots = np.random.default_rng(0).integers(0, 90, 500)
  first, again, other = (
    packing.pack(num_slots, 64, 16, seed) for seed in (0, 0, 1)
  )
  assert arrays(first) == arrays(again)
  assert arrays(first) != arrays(other)
  assert first.num_rows == other.num_rows


def test_lengths_do_not_stand_in_order():
  """Long rows first would be a curriculum nobody asked for."""
  num_slots = np.random.default_rng(0).integers(1, 64, 4000)
  plan = packing.pack(num_slots, 64, 0, 0)
  largest = np.maximum.reduceat(plan.length, plan.row_offsets[:-1])
  position = np.corrcoef(largest, np.arange(plan.num_rows))[0, 1]
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
  assert (plan.num_rows, len(plan.length), plan.fill) == (0, 0, 0.0)


def packed(problem, extra: int) -> tuple[packing.PackedRows, list]:
  """Rows of documents of distinct ids; `extra` is 1 with EOS as a target."""
  num_tokens, row_length, overlap, seed = problem
  total = int(num_tokens.sum())
  ids = np.split(np.arange(10, 10 + total), np.cumsum(num_tokens)[:-1])
  ids = ids[: len(num_tokens)]
  plan = packing.pack(num_tokens + extra, row_length, overlap, seed)
  # Backwards: a document's row in the store is not its number in the plan.
  store, row = Documents(ids[::-1]), np.arange(len(ids))[::-1]
  return packing.PackedRows(store, np.full(len(ids), 7), row, plan), ids


@settings(deadline=None)
@pytest.mark.parametrize('extra', [0, 1])
@given(problem=problems())
def test_documents_can_be_read_off_the_rows(extra, problem):
  rows, documents = packed(problem, extra)
  batch = rows.batch(np.arange(len(rows)), len(rows))
  assert set(batch) == set(packing.empty_rows(1, 1))
  targets: dict[int, list[int]] = {}
  for row in range(len(rows)):
    view = {name: values[row] for name, values in batch.items()}
    check_padding(view)
    first, last = rows.plan.row_offsets[row : row + 2]
    for segment, piece in enumerate(range(first, last), 1):
      at = view['decoder_segment_ids'] == segment
      document = int(rows.plan.document[piece])
      sequence = [BOS, *documents[document].tolist(), EOS]
      start, length = int(rows.plan.start[piece]), int(at.sum())
      assert length == rows.plan.length[piece]
      inputs = view['decoder_input_tokens'][at].tolist()
      wanted = view['decoder_target_tokens'][at].tolist()
      assert inputs == sequence[start : start + length]
      assert wanted == sequence[start + 1 : start + 1 + length]
      assert view['decoder_positions'][at].tolist() == list(range(length))
      context = int(rows.plan.context[piece])
      weights = view['decoder_loss_weights'][at].tolist()
      assert weights == [0.0] * context + [1.0] * (length - context)
      targets.setdefault(document, []).extend(wanted[context:])
  for document, ids in enumerate(documents):
    expected = [*ids.tolist(), *[EOS] * extra]
    assert sorted(targets.get(document, [])) == sorted(expected)


def check_padding(row: dict[str, np.ndarray]) -> None:
  """Segments from the left, then zeros."""
  segments = row['decoder_segment_ids']
  filled = int((segments > 0).sum())
  assert (segments[:filled] > 0).all()
  assert (np.diff(segments[:filled]) >= 0).all()
  for name, values in row.items():
    assert not values[filled:].any(), name


def test_a_literal_row():
  rows, _ = packed((np.array([3, 2]), 8, 0, 0), extra=1)
  assert {name: row.tolist() for name, row in rows[0].items()} == {
    'decoder_input_tokens': [2, 10, 11, 12, 2, 13, 14, 0],
    'decoder_target_tokens': [10, 11, 12, 1, 13, 14, 1, 0],
    'decoder_segment_ids': [1, 1, 1, 1, 2, 2, 2, 0],
    'decoder_positions': [0, 1, 2, 3, 0, 1, 2, 0],
    'decoder_loss_weights': [1.0] * 7 + [0.0],
  }


def test_a_literal_window():
  rows, _ = packed((np.array([5]), 4, 2, 0), extra=0)
  found = sorted(
    (row['decoder_input_tokens'].tolist(), row['decoder_loss_weights'].tolist())
    for row in (rows[0], rows[1])
  )
  assert found == [
    ([2, 10, 11, 12], [1.0, 1.0, 1.0, 1.0]),
    ([11, 12, 13, 0], [0.0, 0.0, 1.0, 0.0]),
  ]


def test_a_batch_is_padded_with_empty_rows():
  rows, _ = packed((np.array([3, 3, 3]), 4, 0, 0), extra=0)
  batch = rows.batch(np.array([2, 0]), 5)
  for name, values in batch.items():
    assert values.shape == (5, 4)
    assert (values[0] == rows[2][name]).all()
    assert (values[1] == rows[0][name]).all()
    assert not values[2:].any()
    assert values.dtype == ('float32' if 'weights' in name else 'int32')


def test_the_seed_is_taken():
  with pytest.raises(TypeError, match='seed'):
    packing.pack(np.array([1]), 4, 0)
