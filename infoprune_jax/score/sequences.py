"""Per-token statistics of token sequences in memory.

Sequences are packed, cut into windows and shared among hosts in the same way as
documents of a token store.
"""

from collections.abc import Sequence
from typing import Any, cast

import numpy as np

from infoprune_jax.score.scorer import Scorer
from infoprune_jax.tokens.token_store import TokenStore


class SequenceStore:
  """Sequences as documents of a token store with one shard.

  The first token of a sequence takes the place of BOS: the model reads it, and
  it gets no statistics. The tokens after it are the document.
  """

  path = 'memory'
  bos_id = None  # Each document has a first token of its own.
  eos_id = 0  # Not used: scoring does not count EOS.

  def __init__(self, sequences: Sequence[np.ndarray]):
    """Takes sequences of token ids, [n] int each, n >= 1."""
    lengths = np.array([len(ids) for ids in sequences], np.int64)
    self.tokens = np.concatenate([np.zeros(0, np.int32), *sequences])
    self.num_tokens = lengths - 1
    # The start of each document, and the start of one after the last.
    self.offsets = np.concatenate([[0], np.cumsum(lengths)]) + 1

  def shard(self, number: int) -> 'SequenceStore':
    """The only shard."""
    del number
    return self

  def column(self, name: str) -> np.ndarray:
    """The column `num_tokens`, [documents] int64."""
    return {'num_tokens': self.num_tokens}[name]


def token_statistics(
  scorer: Scorer, params: Any, sequences: Sequence[np.ndarray]
) -> list[dict[str, np.ndarray]]:
  """Statistics of the tokens of each sequence, given all tokens before them.

  Args:
    scorer: The program of the model.
    params: Its parameters, on the mesh.
    sequences: Token ids, [n] int each, n >= 1, the same in all processes of a
      job. A sequence of more than `sequence_length + 1` tokens is cut into
      windows.

  Returns:
    For each sequence, the statistics of its tokens after the first, [n - 1]
    float32, by the names in `scoring.token_statistics`.

  Raises:
    UserError: a token is beyond the model's vocabulary, or a value is not
      finite.
  """
  store = SequenceStore(sequences)
  names = scorer.scoring.token_statistics
  flat = scorer.token_statistics(
    params,
    cast(TokenStore, store),  # It has all that packing reads.
    np.zeros(len(sequences), np.int64),
    np.arange(len(sequences)),
    names,
  )
  ends = np.cumsum(store.num_tokens)[:-1]
  parts = [np.split(flat[name], ends) for name in names]
  return [
    dict(zip(names, of_sequence, strict=True))
    for of_sequence in zip(*parts, strict=True)
  ][: len(sequences)]
