"""Packing: whole documents into sequences of fixed length, by best fit.

A document of n tokens fills n slots, or n + 1 with EOS as a target. The input
of slot j is the token before target j; that of the first slot is BOS. A
document with more slots than a sequence is cut into windows that share
`overlap` slots: the shared slots give context to the later window, which does
not count them again.
"""

import dataclasses
from collections.abc import Callable, Sequence

import numba
import numpy as np

from infoprune_jax.tokens.token_store import TokenStore


@dataclasses.dataclass(frozen=True, eq=False)
class Plan:
  """The segments of documents in each sequence.

  Segments are ordered by sequence. Sequence r holds the segments
  sequence_offsets[r] to sequence_offsets[r + 1], from left to right.
  """

  sequence_length: int
  document: np.ndarray  # [segments] int64, into the documents packed
  start: np.ndarray  # [segments] int64, the first slot of the document
  length: np.ndarray  # [segments] int64, slots
  context: np.ndarray  # [segments] int64, leading slots that do not count
  sequence_offsets: np.ndarray  # [sequences + 1] int64

  @property
  def num_sequences(self) -> int:
    """Number of sequences."""
    return len(self.sequence_offsets) - 1

  @property
  def fill(self) -> float:
    """The fraction of slots that hold a token."""
    num_slots = self.num_sequences * self.sequence_length
    return float(self.length.sum()) / max(num_slots, 1)

  @property
  def segments_per_sequence(self) -> np.ndarray:
    """[sequences] int64."""
    return np.diff(self.sequence_offsets)

  def ordered(self, sequences: np.ndarray) -> 'Plan':
    """The plan with its sequences in another order, [sequences] int."""
    segments, _ = self._segments(sequences)
    return Plan(
      self.sequence_length,
      self.document[segments],
      self.start[segments],
      self.length[segments],
      self.context[segments],
      np.concatenate([[0], np.cumsum(self.segments_per_sequence[sequences])]),
    )

  def _segments(self, sequences: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The segments of some sequences, in order, and how many each has."""
    counts = self.segments_per_sequence[sequences]
    skipped = self.sequence_offsets[sequences] - (np.cumsum(counts) - counts)
    return np.repeat(skipped, counts) + np.arange(counts.sum()), counts

  def slots(self, sequences: np.ndarray) -> 'Slots':
    """The slots of the tokens of some sequences in their batch."""
    segments, counts = self._segments(sequences)
    length = self.length[segments]
    before = np.cumsum(length) - length
    first = np.cumsum(counts) - counts
    # Slots before a segment in its own sequence.
    used = np.concatenate([before, [length.sum()]])
    left = before - np.repeat(used[first], counts)
    left += np.repeat(np.arange(len(sequences)) * self.sequence_length, counts)
    within = np.arange(length.sum()) - np.repeat(before, length)
    segment = np.arange(len(segments)) - np.repeat(first, counts) + 1
    return Slots(
      place=np.repeat(left, length) + within,
      within=within,
      position=np.repeat(self.start[segments], length) + within,
      document=np.repeat(self.document[segments], length),
      segment=np.repeat(segment, length),
      counts=within >= np.repeat(self.context[segments], length),
    )


@dataclasses.dataclass(frozen=True, eq=False)
class Slots:
  """The slots of some sequences that hold a token: equally long arrays."""

  place: np.ndarray  # int64, in the flattened sequences
  within: np.ndarray  # int64, of its segment
  position: np.ndarray  # int64, in its document
  document: np.ndarray  # int64, into the documents packed
  segment: np.ndarray  # int64, from 1 in each sequence
  counts: np.ndarray  # bool, False for context of a later window


def pack(
  num_slots: np.ndarray, sequence_length: int, overlap: int, seed: int
) -> Plan:
  """Packs documents into sequences by best-fit decreasing.

  Args:
    num_slots: [documents] slots of each; documents without slots are left out.
    sequence_length: Slots of a sequence.
    overlap: Slots that two windows of a document share, < sequence_length.
    seed: Seed of the order of equally long segments, and of the sequences.

  Returns:
    The plan; the same arguments give the same plan on any machine.
  """
  num_slots = np.asarray(num_slots, np.int64)
  document, start, length = _windows(num_slots, sequence_length, overlap)
  rng = np.random.default_rng(seed)
  shuffled = rng.permutation(len(document))
  shorter = sequence_length - length[shuffled]
  order = shuffled[_stable_order(shorter, sequence_length)[0]]
  sequence, num_sequences = _best_fit(length[order], sequence_length)
  sequence = rng.permutation(num_sequences)[sequence]
  # Right after best-fit decreasing, a stable order keeps long segments left.
  by_sequence, sequence_offsets = _stable_order(sequence, num_sequences)
  segments = order[by_sequence]
  start = start[segments]
  return Plan(
    sequence_length,
    document[segments],
    start,
    length[segments],
    np.where(start > 0, overlap, 0),
    sequence_offsets,
  )


def concatenate(plans: Sequence[Plan], documents: Sequence[np.ndarray]) -> Plan:
  """One plan with the sequences of several plans, in order.

  Args:
    plans: Plans of equal sequence length.
    documents: For each plan, the numbers of its documents in the new plan.
  """
  pairs = list(zip(plans, documents, strict=True))
  counts = np.concatenate([plan.segments_per_sequence for plan in plans])
  return Plan(
    plans[0].sequence_length,
    np.concatenate([d[p.document] for p, d in pairs]),
    np.concatenate([plan.start for plan in plans]),
    np.concatenate([plan.length for plan in plans]),
    np.concatenate([plan.context for plan in plans]),
    np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
  )


@numba.njit(cache=True)
def _windows(num_slots, sequence_length, overlap):
  """Document, start and length of each segment, int64."""
  stride = sequence_length - overlap
  segments = 0
  for slots in num_slots:
    if slots > 0:
      segments += 1 + max(slots - overlap - 1, 0) // stride
  document = np.empty(segments, np.int64)
  start = np.empty(segments, np.int64)
  length = np.empty(segments, np.int64)
  segment = 0
  for index in range(len(num_slots)):
    slots = num_slots[index]
    first = 0
    while (first == 0 and slots > 0) or first + overlap < slots:
      document[segment] = index
      start[segment] = first
      length[segment] = min(sequence_length, slots - first)
      first += stride
      segment += 1
  return document, start, length


@numba.njit(cache=True)
def _stable_order(keys, size):
  """A stable argsort of keys from 0 to size - 1, and where each key starts.

  The starts are [size + 1]. Counting the keys replaces comparisons, which took
  most of the time of packing.
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
def _best_fit(length, sequence_length):
  """Puts each segment into the fullest sequence that has space for it.

  Sequences of equal free space form a stack: `top[free]` is its last sequence,
  `below[sequence]` the sequence under it, -1 ends it. A binary tree over the
  free spaces (the children of node n are 2 n and 2 n + 1, the leaf of a free
  space is `leaves + free`) says which stacks are not empty.

  Args:
    length: [segments] int64 slots, descending, at most sequence_length.
    sequence_length: Slots of a sequence.

  Returns:
    The sequence of each segment, [segments] int64, and the number of sequences.
  """
  leaves = 1
  while leaves <= sequence_length:
    leaves *= 2
  occupied = np.zeros(2 * leaves, np.bool_)
  top = np.full(leaves, -1, np.int64)
  below = np.full(len(length), -1, np.int64)
  sequence = np.empty(len(length), np.int64)
  num_sequences = 0
  for segment in range(len(length)):
    free = _least_free_space(occupied, length[segment])
    if free >= 0:
      chosen = top[free]
      top[free] = below[chosen]
      if top[free] < 0:
        _mark_empty(occupied, free)
    else:
      chosen, free = num_sequences, sequence_length
      num_sequences += 1
    sequence[segment] = chosen
    free -= length[segment]
    if free > 0:
      below[chosen] = top[free]
      top[free] = chosen
      _mark_occupied(occupied, free)
  return sequence, num_sequences


@numba.njit(cache=True)
def _least_free_space(occupied, size):
  """The least free space >= size that a sequence has; -1 if there is none."""
  leaves = len(occupied) // 2
  node = leaves + size
  while not occupied[node]:
    while node % 2 == 1:  # A right child, or the root: nothing is larger here.
      node //= 2
    if node == 0:
      return -1
    node += 1  # The sibling on the right has the next larger free spaces.
  while node < leaves:
    node = 2 * node if occupied[2 * node] else 2 * node + 1
  return node - leaves


@numba.njit(cache=True)
def _mark_empty(occupied, free):
  """Notes that no sequence has this free space any more."""
  node = len(occupied) // 2 + free
  occupied[node] = False
  node //= 2
  while node >= 1 and not (occupied[2 * node] or occupied[2 * node + 1]):
    occupied[node] = False
    node //= 2


@numba.njit(cache=True)
def _mark_occupied(occupied, free):
  """Notes that a sequence has this free space."""
  node = len(occupied) // 2 + free
  while node >= 1 and not occupied[node]:
    occupied[node] = True
    node //= 2


def empty_sequences(
  num_sequences: int, sequence_length: int
) -> dict[str, np.ndarray]:
  """Sequences of padding, under the names of SeqIO's decoder features.

  Returns:
    [num_sequences, sequence_length] arrays, int32: `decoder_input_tokens`,
    `decoder_target_tokens`, `decoder_segment_ids` (0 is padding),
    `decoder_positions` (from 0 in each segment); and float32:
    `decoder_loss_weights`.
  """
  shape = (num_sequences, sequence_length)
  return {
    'decoder_input_tokens': np.zeros(shape, np.int32),
    'decoder_target_tokens': np.zeros(shape, np.int32),
    'decoder_segment_ids': np.zeros(shape, np.int32),
    'decoder_positions': np.zeros(shape, np.int32),
    'decoder_loss_weights': np.zeros(shape, np.float32),
  }


# Whether tokens count in a loss, [tokens] bool: from a shard, and the documents
# and the places of some of its tokens, [tokens] int each. See `CountedTokens`.
Counted = Callable[[int, np.ndarray, np.ndarray], np.ndarray]


class PackedSequences:
  """Random access to the sequences of a plan, filled from a token store.

  A token that does not count in the loss has a loss weight of zero, and stays
  in the context of those after it. EOS always counts.
  """

  def __init__(
    self,
    store: TokenStore,
    shard_index: np.ndarray,
    doc_index: np.ndarray,
    plan: Plan,
    counted: Counted | None = None,
  ):
    """Takes the documents (shard_index[i], doc_index[i]), [documents] int.

    `counted` says which tokens count in the loss; None if all do.
    """
    self._store, self.plan, self._counted = store, plan, counted
    self._shard_index, self._doc_index = shard_index, doc_index

  def __len__(self) -> int:
    return self.plan.num_sequences

  def __getitem__(self, index: int) -> dict[str, np.ndarray]:
    """The arrays of one sequence: [T] each, named as in `empty_sequences`."""
    sequences = self.batch(np.array([index]), 1)
    return {name: values[0] for name, values in sequences.items()}

  def batch(self, sequences: np.ndarray, size: int) -> dict[str, np.ndarray]:
    """The given sequences, padded to `size`, as arrays of `empty_sequences`."""
    batch = empty_sequences(size, self.plan.sequence_length)
    slots = self.plan.slots(np.asarray(sequences))
    targets, inputs, counts = self._tokens(slots)
    for name, values in (
      ('decoder_input_tokens', inputs),
      ('decoder_target_tokens', targets),
      ('decoder_segment_ids', slots.segment),
      ('decoder_positions', slots.within),
      ('decoder_loss_weights', counts),
    ):
      batch[name].reshape(-1)[slots.place] = values
    return batch

  def examples(self, sequences: np.ndarray) -> list[tuple[str, str]]:
    """Source and id of the examples of some sequences, each once, in order."""
    segments, _ = self.plan._segments(np.asarray(sequences))
    documents = np.array(list(dict.fromkeys(self.plan.document[segments])), int)
    shard_index = self._shard_index[documents]
    names = np.empty((len(documents), 2), object)
    for number in np.unique(shard_index).tolist():
      here = shard_index == number
      table = self._store.shard(number).table('source', 'example_id')
      taken = table.take(self._doc_index[documents[here]])
      names[here] = [tuple(row.values()) for row in taken.to_pylist()]
    # Copies of an example are several documents here.
    return list(dict.fromkeys(map(tuple, names.tolist())))

  def _tokens(self, slots: Slots) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Targets, inputs, and whether they count in the loss, [slots] each.

    Without BOS, the token stored before is read first.
    """
    targets = np.full(len(slots.place), self._store.eos_id, np.int32)
    inputs = np.full(len(slots.place), self._store.bos_id or 0, np.int32)
    counts = slots.counts.copy()
    shard_index = self._shard_index[slots.document]
    for number in np.unique(shard_index).tolist():
      shard = self._store.shard(number)
      here = np.flatnonzero(shard_index == number)
      doc_index = self._doc_index[slots.document[here]]
      position = slots.position[here]
      token = shard.offsets[doc_index] + position
      known = token < shard.offsets[doc_index + 1]
      targets[here[known]] = shard.tokens[token[known]]
      if self._counted:
        counts[here[known]] &= self._counted(
          number, doc_index[known], token[known]
        )
      known = (position > 0) | (self._store.bos_id is None)
      inputs[here[known]] = shard.tokens[token[known] - 1]
    return targets, inputs, counts
