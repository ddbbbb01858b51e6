"""Packed batches of random tokens."""

import numpy as np

from infoprune_jax.batches import packing

# One document is empty, some fill a sequence of 64 tokens, others need windows.
LENGTHS = [5, 64, 130, 0, 1, 33, 200, 17, 64, 90]


class RandomStore:
  """Documents of random tokens, in the shape of a token store."""

  bos_id, eos_id, vocab_size = 1, 2, 64
  path = 'a store'

  def __init__(self, lengths: list[int], seed: int = 0):
    """One shard, with a document of each length."""
    rng = np.random.default_rng(seed)
    self.lengths = np.array(lengths)
    self.offsets = np.cumsum([0, *lengths])
    self.tokens = np.concatenate(
      [
        rng.integers(3, self.vocab_size, length).astype(np.uint16)
        for length in lengths
      ]
    )

  def shard(self, shard: int) -> 'RandomStore':
    """The only shard."""
    del shard
    return self

  def column(self, name: str) -> np.ndarray:
    """The lengths: no other column is known."""
    assert name == 'num_tokens'
    return self.lengths

  def packed(
    self, sequence_length: int, only: list[int] | None = None
  ) -> packing.PackedSequences:
    """Documents (all, or some), packed without EOS and without overlap."""
    rows = np.arange(len(self.lengths)) if only is None else np.array(only)
    plan = packing.pack(self.lengths[rows], sequence_length, 0, 0)
    return packing.PackedSequences(self, np.zeros(len(rows), int), rows, plan)
