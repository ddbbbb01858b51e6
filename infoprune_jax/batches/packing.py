"""Packing: whole documents into rows of fixed length, by best fit.

A document of n tokens fills n slots, or n + 1 with EOS as a target. Slot j
reads the token before target j; the first reads BOS. A document with more
slots than a row is cut into windows that share `overlap` slots: the shared
slots give context to the later window, which does not count them again.
"""

import dataclasses
from collections.abc import Sequence

import numba
import numpy as np

from infoprune_jax.tokens.token_store import TokenStore


@dataclasses.dataclass(frozen=True, eq=False)
class Plan:
  """Which pieces of which documents stand in which row.

  Pieces are ordered by row; row r holds pieces row_offsets[r] to
  row_offsets[r + 1], from left to right.
  """

  row_length: int
  document: np.ndarray  # [pieces] int64, into the documents packed
  start: np.ndarray  # [pieces] int64, the first slot of the document
  length: np.ndarray  # [pieces] int64, slots
  context: np.ndarray  # [pieces] int64, leading slots that do not count
  row_offsets: np.ndarray  # [rows + 1] int64

  @property
  def num_rows(self) -> int:
    """Number of rows."""
    return len(self.row_offsets) - 1

  @property
  def fill(self) -> float:
    """The share of slots that hold a token."""
    return float(self.length.sum()) / max(self.num_rows * self.row_length, 1)

  @property
  def pieces_per_row(self) -> np.ndarray:
    """[rows] int64."""
    return np.diff(self.row_offsets)

  def ordered(self, rows: np.ndarray) -> 'Plan':
    """The plan with its rows in another order, [rows] int."""
    pieces, _ = self._pieces(rows)
    return Plan(
      self.row_length,
      self.document[pieces],
      self.start[pieces],
      self.length[pieces],
      self.context[pieces],
      np.concatenate([[0], np.cumsum(self.pieces_per_row[rows])]),
    )

  def _pieces(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The pieces of some rows, in order, and how many each row has."""
    counts = self.pieces_per_row[rows]
    skipped = self.row_offsets[rows] - (np.cumsum(counts) - counts)
    return np.repeat(skipped, counts) + np.arange(counts.sum()), counts

  def slots(self, rows: np.ndarray) -> 'Slots':
    """Where the tokens of some rows stand in an array of those rows."""
    pieces, counts = self._pieces(rows)
    length = self.length[pieces]
    before = np.cumsum(length) - length
    first = np.cumsum(counts) - counts
    # Slots before a piece in its own row.
    used = np.concatenate([before, [length.sum()]])
    left = before - np.repeat(used[first], counts)
    left += np.repeat(np.arange(len(rows)) * self.row_length, counts)
    within = np.arange(length.sum()) - np.repeat(before, length)
    segment = np.arange(len(pieces)) - np.repeat(first, counts) + 1
    return Slots(
      place=np.repeat(left, length) + within,
      within=within,
      position=np.repeat(self.start[pieces], length) + within,
      document=np.repeat(self.document[pieces], length),
      segment=np.repeat(segment, length),
      counts=within >= np.repeat(self.context[pieces], length),
    )


@dataclasses.dataclass(frozen=True, eq=False)
class Slots:
  """The slots of some rows that hold a token: equally long arrays."""

  place: np.ndarray  # int64, in the flattened rows
  within: np.ndarray  # int64, of its piece
  position: np.ndarray  # int64, in its document
  document: np.ndarray  # int64, into the documents packed
  segment: np.ndarray  # int64, from 1 in each row
  counts: np.ndarray  # bool, False for context of a later window


def pack(
  num_slots: np.ndarray, row_length: int, overlap: int, seed: int
) -> Plan:
  """Packs documents into rows by best-fit decreasing.

  Args:
    num_slots: [documents] slots of each; those with none are left out.
    row_length: Slots of a row.
    overlap: Slots that windows of a long document share, below row_length.
    seed: Of the order among pieces of equal length, and of the rows.

  Returns:
    The plan; the same arguments give the same plan anywhere.
  """
  document, start, length = _windows(
    np.asarray(num_slots, np.int64), row_length, overlap
  )
  rng = np.random.default_rng(seed)
  shuffled = rng.permutation(len(document))
  shorter = row_length - length[shuffled]
  order = shuffled[_stable_order(shorter, row_length)[0]]
  row, num_rows = _best_fit(length[order], row_length)
  row = rng.permutation(num_rows)[row]
  # Right after best-fit decreasing, a stable order keeps long pieces left.
  by_row, row_offsets = _stable_order(row, num_rows)
  pieces = order[by_row]
  start = start[pieces]
  return Plan(
    row_length,
    document[pieces],
    start,
    length[pieces],
    np.where(start > 0, overlap, 0),
    row_offsets,
  )


def concatenate(plans: Sequence[Plan], documents: Sequence[np.ndarray]) -> Plan:
  """One plan of the rows of several, in their order.

  Args:
    plans: Of equal row length.
    documents: For each, the number of its documents in the plan to make.
  """
  rows = [np.diff(plan.row_offsets) for plan in plans]
  return Plan(
    plans[0].row_length,
    np.concatenate(
      [d[p.document] for p, d in zip(plans, documents, strict=True)]
    ),
    np.concatenate([plan.start for plan in plans]),
    np.concatenate([plan.length for plan in plans]),
    np.concatenate([plan.context for plan in plans]),
    np.concatenate([[0], np.cumsum(np.concatenate(rows))]).astype(np.int64),
  )


@numba.njit(cache=True)
def _windows(num_slots, row_length, overlap):
  """Document, start and length of each piece, int64."""
  stride = row_length - overlap
  pieces = 0
  for slots in num_slots:
    if slots > 0:
      pieces += 1 + max(slots - overlap - 1, 0) // stride
  document = np.empty(pieces, np.int64)
  start = np.empty(pieces, np.int64)
  length = np.empty(pieces, np.int64)
  piece = 0
  for index in range(len(num_slots)):
    slots = num_slots[index]
    first = 0
    while (first == 0 and slots > 0) or first + overlap < slots:
      document[piece] = index
      start[piece] = first
      length[piece] = min(row_length, slots - first)
      first += stride
      piece += 1
  return document, start, length


@numba.njit(cache=True)
def _stable_order(keys, size):
  """What np.argsort gives with kind='stable', for keys from 0 to size - 1.

  And where each key starts, [size + 1]. A count of the keys takes the place of
  comparisons, which were most of the time of packing.
  """
  offsets = np.zeros(size + 1, np.int64)
  for key in keys:
    offsets[key + 1] += 1
  for key in range(size):
    offsets[key + 1] += offsets[key]
  free = offsets[:-1].copy()
  order = np.empty(len(keys), np.int64)
  for index in range(len(keys)):
    key = keys[index]
    order[free[key]] = index
    free[key] += 1
  return order, offsets


@numba.njit(cache=True)
def _best_fit(length, row_length):
  """The row of each piece (lengths descending), and the number of rows.

  Rows with the same free space form a stack (a linked list); a binary tree
  over free spaces says which stacks hold a row, so that the tightest row that
  fits is found in log2(row_length) steps.
  """
  leaves = 1
  while leaves <= row_length:
    leaves *= 2
  occupied = np.zeros(2 * leaves, np.bool_)
  top = np.full(leaves, -1, np.int64)
  below = np.full(len(length), -1, np.int64)
  row = np.empty(len(length), np.int64)
  num_rows = 0
  for piece in range(len(length)):
    size = length[piece]
    node = leaves + size
    while not occupied[node]:
      while node % 2 == 1 and node > 1:
        node //= 2
      if node == 1:
        break
      # A left child: its sibling holds the next larger free spaces.
      if node % 2 == 0:
        node += 1
    if node > 1:
      while node < leaves:
        node = 2 * node if occupied[2 * node] else 2 * node + 1
      free = node - leaves
      chosen = top[free]
      top[free] = below[chosen]
      if top[free] < 0:
        while node >= 1:
          occupied[node] = node < leaves and (
            occupied[2 * node] or occupied[2 * node + 1]
          )
          if occupied[node]:
            break
          node //= 2
    else:
      chosen, free = num_rows, row_length
      num_rows += 1
    row[piece] = chosen
    free -= size
    if free > 0:
      below[chosen] = top[free]
      top[free] = chosen
      node = leaves + free
      while node >= 1 and not occupied[node]:
        occupied[node] = True
        node //= 2
  return row, num_rows


def empty_rows(num_rows: int, row_length: int) -> dict[str, np.ndarray]:
  """Rows of padding, under the names of SeqIO's decoder features.

  Returns:
    [num_rows, row_length] arrays, int32: `decoder_input_tokens`,
    `decoder_target_tokens`, `decoder_segment_ids` (0 is padding),
    `decoder_positions` (from 0 in each segment); and float32:
    `decoder_loss_weights`.
  """
  shape = (num_rows, row_length)
  return {
    'decoder_input_tokens': np.zeros(shape, np.int32),
    'decoder_target_tokens': np.zeros(shape, np.int32),
    'decoder_segment_ids': np.zeros(shape, np.int32),
    'decoder_positions': np.zeros(shape, np.int32),
    'decoder_loss_weights': np.zeros(shape, np.float32),
  }


class PackedRows:
  """Random access to the rows of a plan, filled from a token store."""

  def __init__(
    self,
    store: TokenStore,
    shard: np.ndarray,
    row: np.ndarray,
    plan: Plan,
  ):
    """Rows of the documents (shard[i], row[i]), int [documents] each."""
    self._store, self._shard, self._row = store, shard, row
    self.plan = plan

  def __len__(self) -> int:
    return self.plan.num_rows

  def __getitem__(self, index: int) -> dict[str, np.ndarray]:
    """Row `index`: the arrays of `empty_rows` without the first axis."""
    rows = self.batch(np.array([index]), 1)
    return {name: values[0] for name, values in rows.items()}

  def batch(self, rows: np.ndarray, size: int) -> dict[str, np.ndarray]:
    """The given rows, and padding up to `size` rows, as `empty_rows`."""
    batch = empty_rows(size, self.plan.row_length)
    slots = self.plan.slots(np.asarray(rows))
    targets, inputs = self._tokens(slots)
    for name, values in (
      ('decoder_input_tokens', inputs),
      ('decoder_target_tokens', targets),
      ('decoder_segment_ids', slots.segment),
      ('decoder_positions', slots.within),
      ('decoder_loss_weights', slots.counts),
    ):
      batch[name].reshape(-1)[slots.place] = values
    return batch

  def example_ids(self, rows: np.ndarray) -> list[str]:
    """The documents of some rows, each once, in the order of their places."""
    pieces, _ = self.plan._pieces(np.asarray(rows))
    documents = list(dict.fromkeys(self.plan.document[pieces].tolist()))
    shard, row = self._shard[documents], self._row[documents]
    found = np.empty(len(documents), object)
    for number in np.unique(shard).tolist():
      ids = self._store.part(number).table('example_id')['example_id']
      found[shard == number] = ids.take(row[shard == number]).to_pylist()
    return found.tolist()

  def _tokens(self, slots: Slots) -> tuple[np.ndarray, np.ndarray]:
    """Targets and inputs of slots; EOS follows a document, BOS precedes it."""
    targets = np.full(len(slots.place), self._store.eos_id, np.int32)
    inputs = np.full(len(slots.place), self._store.bos_id, np.int32)
    shard = self._shard[slots.document]
    for number in np.unique(shard).tolist():
      part = self._store.part(number)
      here = np.flatnonzero(shard == number)
      row, position = self._row[slots.document[here]], slots.position[here]
      token = part.offsets[row] + position
      known = token < part.offsets[row + 1]
      targets[here[known]] = part.tokens[token[known]]
      known = position > 0
      inputs[here[known]] = part.tokens[token[known] - 1]
    return targets, inputs


def scatter(
  plan: Plan,
  rows: np.ndarray,
  values: Sequence[np.ndarray],
  offsets: np.ndarray,
  out: np.ndarray,
) -> int:
  """Puts what models gave packed rows in token order.

  Args:
    plan: Of the rows.
    rows: Which of them, [rows] int.
    values: Of each model [at least rows, T], one value a slot.
    offsets: [documents] where each starts in `out`.
    out: [models, tokens] float32, NaN where nothing was put yet.

  Returns:
    How many tokens there were.

  Raises:
    AssertionError: a token has a value already.
  """
  slots = plan.slots(rows)
  place = (offsets[slots.document] + slots.position)[slots.counts]
  from_ = slots.place[slots.counts]
  for line, given in zip(out, values, strict=True):
    if not np.isnan(line[place]).all():
      raise AssertionError('A token was scored twice.')
    line[place] = given.reshape(-1)[from_]
  return len(place)
