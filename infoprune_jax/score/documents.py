"""Documents packed into sequences, and the statistics of their tokens."""

from collections.abc import Iterator, Mapping, Sequence
from typing import NoReturn

import numpy as np

from infoprune_jax.batches import packing
from infoprune_jax.config.scoring import PARTIAL_NLL, ScoringConfig
from infoprune_jax.config.validation import UserError
from infoprune_jax.statistics import statistics
from infoprune_jax.tokens.token_store import TokenStore


class Documents:
  """Documents packed into sequences, and the statistics that models compute.

  Statistics arrive sequence by sequence in float32. They are put in token order,
  and summed in float64.
  """

  def __init__(
    self,
    store: TokenStore,
    shard_index: np.ndarray,
    doc_index: np.ndarray,
    scoring: ScoringConfig,
    num_models: int = 1,
  ):
    """Packs documents.

    Args:
      store: The token store that holds the documents.
      shard_index: [documents] int, the shard of each.
      doc_index: [documents] int, its index in the shard.
      scoring: The length and overlap of sequences, and the statistics.
      num_models: How many models compute the statistics of each token.
    """
    self._store, self._scoring = store, scoring
    self._shard_index, self._doc_index = shard_index, doc_index
    whole = _num_tokens(store, shard_index, doc_index)
    # Those to score, [documents] int64, and how many tokens each stands for.
    self.num_tokens = np.minimum(whole, scoring.max_document_tokens or whole)
    self.represented = np.maximum(whole, 1) / np.maximum(self.num_tokens, 1)
    self._offsets = np.cumsum(self.num_tokens) - self.num_tokens
    plan = packing.pack(
      self.num_tokens, scoring.sequence_length, scoring.window_overlap, seed=0
    )
    # Put sequences with about as many segments into a batch, for
    # `Scorer.program`.
    plan = plan.ordered(np.argsort(plan.segments_per_sequence, kind='stable'))
    self.sequences = packing.PackedSequences(
      store, shard_index, doc_index, plan
    )
    self.size = len(shard_index)
    # NaN marks a token that is not scored yet. `values` refuses NaN.
    shape = (num_models, len(scoring.token_statistics), self.num_tokens.sum())
    self._values = np.full(shape, np.nan, np.float32)

  def batches(
    self, size: int, vocab_size: int
  ) -> Iterator[tuple[np.ndarray, dict[str, np.ndarray]]]:
    """Batches: the numbers of the sequences, and their arrays, padded to `size`.

    Raises:
      UserError: a token id is beyond the model's vocabulary, so that its NLL
        would be that of another token. The message names the document.
    """
    for first in range(0, len(self.sequences), size):
      chosen = np.arange(first, min(first + size, len(self.sequences)))
      yield chosen, self.batch(chosen, size, vocab_size)

  def batch(
    self, chosen: np.ndarray, size: int, vocab_size: int
  ) -> dict[str, np.ndarray]:
    """The arrays of some sequences, padded to `size`; see `batches`."""
    batch = self.sequences.batch(chosen, size)
    if batch['decoder_target_tokens'].max(initial=0) >= vocab_size:
      self._refuse_tokens(chosen, batch, vocab_size)
    return batch

  def _refuse_tokens(
    self, chosen: np.ndarray, batch: dict[str, np.ndarray], vocab_size: int
  ) -> NoReturn:
    slots = self.sequences.plan.slots(chosen)
    ids = batch['decoder_target_tokens'].reshape(-1)[slots.place]
    where = int(np.flatnonzero(ids >= vocab_size)[0])
    document = slots.document[where]
    raise UserError(
      f'Document {self._place(document)} has the token id {ids[where]} at '
      f'position {slots.position[where]}, but the model has {vocab_size} ids: '
      'score with a model that was trained on this token store.'
    )

  def add(
    self, chosen: np.ndarray, results: Sequence[Mapping[str, np.ndarray]]
  ) -> int:
    """Takes the statistics of a batch of sequences.

    Args:
      chosen: The numbers of the sequences, from `batches`.
      results: For each model, its statistics by name, [size, T] each.

    Returns:
      The number of tokens in these sequences.

    Raises:
      AssertionError: a token has a value already.
    """
    slots = self.sequences.plan.slots(chosen)
    place = (self._offsets[slots.document] + slots.position)[slots.counts]
    slot = slots.place[slots.counts]
    for of_model, result in zip(self._values, results, strict=True):
      for line, name in zip(
        of_model, self._scoring.token_statistics, strict=True
      ):
        if not np.isnan(line[place]).all():
          raise AssertionError('A token was scored twice.')
        line[place] = result[name].reshape(-1)[slot]
    return len(place)

  def _place(self, document: int) -> str:
    """The place of a document, for a message."""
    shard, doc_index = self._shard_index[document], self._doc_index[document]
    return f'(shard {shard}, doc_index {doc_index}) of {self._store.path}'

  def max_segments(self, chosen: np.ndarray | slice = slice(None)) -> int:
    """The most segments of a sequence, of all or of the chosen ones."""
    return int(self.sequences.plan.segments_per_sequence[chosen].max(initial=0))

  def values(self) -> list[dict[str, np.ndarray]]:
    """For each model, its statistics by name, [tokens] float32 in token order.

    Raises:
      UserError: a value is not finite. The message names the document.
    """
    names = self._scoring.token_statistics
    for of_model in self._values:
      for name, line in zip(names, of_model, strict=True):
        if not np.isfinite(line).all():
          self._refuse_values(name, line)
    return [dict(zip(names, lines, strict=True)) for lines in self._values]

  def _refuse_values(self, name: str, values: np.ndarray) -> NoReturn:
    first = np.flatnonzero(~np.isfinite(values))[0]
    bad = np.searchsorted(self._offsets, first, side='right')
    name = 'NLL' if name == 'nll' else name
    raise UserError(
      f'The model gives no finite {name} to document {self._place(bad - 1)}. '
      "Check its checkpoint. If that is sound, use score.dtype='float32'."
    )

  def sums(self) -> list[dict[str, np.ndarray]]:
    """For each model, the sums over each document by name, [documents] float64.

    The names are 'nll' and those of `ScoringConfig.statistics`. If only the
    first tokens are scored, the sums are scaled to the whole document, except
    those of 'nll_first_K'.

    Raises:
      UserError: a value is not finite. The message names the document.
    """
    return [
      {
        name: self._sum(name, values)
        for name in ('nll', *self._scoring.statistics)
      }
      for values in self.values()
    ]

  def _sum(self, name: str, values: Mapping[str, np.ndarray]) -> np.ndarray:
    if PARTIAL_NLL.fullmatch(name):
      partial = self._partial(name, values['nll'])
      return statistics.sums_by_document(partial, self.num_tokens)
    sums = statistics.sums_by_document(values[name], self.num_tokens)
    return sums * self.represented

  def _partial(self, name: str, nll: np.ndarray) -> np.ndarray:
    """The NLL of the first or last tokens of each document, else 0.0: [tokens].

    Args:
      name: 'nll_first_K' or 'nll_last_K'.
      nll: [tokens] float32, of all documents in order.
    """
    match = PARTIAL_NLL.fullmatch(name)
    assert match
    position = np.arange(len(nll)) - np.repeat(self._offsets, self.num_tokens)
    if match[1] == 'last':
      position = np.repeat(self.num_tokens, self.num_tokens) - 1 - position
    return np.where(position < int(match[2]), nll, np.float32(0.0))


def _num_tokens(
  store: TokenStore, shard_index: np.ndarray, doc_index: np.ndarray
) -> np.ndarray:
  """The length of each document, [documents] int64."""
  lengths = np.zeros(len(shard_index), np.int64)
  for shard in np.unique(shard_index).tolist():
    here = shard_index == shard
    lengths[here] = store.shard(shard).column('num_tokens')[doc_index[here]]
  return lengths
