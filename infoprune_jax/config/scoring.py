"""How documents are scored, and the columns of sums. Standard library only."""

import dataclasses
import re
from collections.abc import Iterable

from infoprune_jax.config.model import DTYPES
from infoprune_jax.config.validation import (
  UserError,
  check_choice,
  check_positive,
  check_range,
)

# What scoring can tell of the prediction of a token, besides its NLL; computed
# by `model.token_statistics`.
TOKEN_STATISTICS = ('entropy', 'greedy', 'error_norm')
# The NLL of the first or the last K tokens of a document.
PARTIAL_NLL = re.compile(r'nll_(first|last)_([1-9]\d{0,5})')
# A column of any of them, for any model; and of NLL.
REFERENCE_COLUMN = re.compile(
  rf'\b(nll|{PARTIAL_NLL.pattern}|{"|".join(TOKEN_STATISTICS)})_sum(_|\b)',
  re.IGNORECASE,
)


def statistic_column(name: str, nll_column: str = 'nll_sum') -> str:
  """The column of the score table for a statistic of a model.

  Args:
    name: Of the statistic.
    nll_column: Where the NLL by the model is.

  >>> statistic_column('entropy', 'nll_sum_small')
  'entropy_sum_small'
  """
  return f'{name}_sum{nll_column.removeprefix("nll_sum")}'


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScoringConfig:
  """How documents are laid out and run through a model to get their NLL.

  Window and dtype have no defaults, so that each score table names them.
  """

  # Sequences on each device along the mesh axes `data` and `fsdp`: what a
  # device computes at once does not depend on how many devices and hosts there
  # are.
  per_device_batch_size: int = 32
  sequence_length: int  # tokens
  window_overlap: int  # context tokens shared by windows of a long document
  dtype: str  # of the computation
  # Sums over each document besides its NLL, column `<name>_sum` each, and
  # `<name>_sum_NAME` for each of `reference.extra_models`. 'entropy': of the
  # prediction, in nats. 'greedy': how many tokens are the most likely one.
  # 'error_norm': the L2 norm of softmax - onehot(token). 'nll_first_K' and
  # 'nll_last_K': the NLL of the first and the last K tokens.
  statistics: tuple[str, ...] = ()
  # Score the first tokens of a document, at most this many; 0 for all. Its sums
  # are then the mean over these tokens times `num_tokens`.
  max_document_tokens: int = 0
  # A name in `reference.extra_models`: also write, for each token, its NLL by
  # that model minus that by the reference model, for `train.token_weights`. It
  # takes one byte per token of the token store. '' for none.
  token_excess: str = ''

  def __post_init__(self):
    check_positive('scoring', self, 'per_device_batch_size', 'sequence_length')
    check_choice('scoring.dtype', self.dtype, DTYPES)
    most = self.max_document_tokens
    check_range('scoring.max_document_tokens', most, 0, 2**31 - 1)
    if most and self.token_excess:
      raise UserError(
        'scoring.token_excess needs every token of a document, but '
        f'scoring.max_document_tokens={most} scores the first ones alone: set it '
        'to 0.'
      )
    if not 0 <= self.window_overlap < self.sequence_length:
      raise UserError(
        'scoring.window_overlap must be in [0, sequence_length), got '
        f'{self.window_overlap} at sequence_length {self.sequence_length}.'
      )
    for name in self.statistics:
      if name not in TOKEN_STATISTICS and not PARTIAL_NLL.fullmatch(name):
        raise UserError(
          f'scoring.statistics: {name!r} is none of '
          f'{", ".join(TOKEN_STATISTICS)}, nll_first_K and nll_last_K, with a '
          'number of tokens for K, such as nll_first_32.'
        )
      self._check_scored(name)
    if len(set(self.statistics)) != len(self.statistics):
      raise UserError(
        f'scoring.statistics must be distinct, got {self.statistics}.'
      )

  def _check_scored(self, name: str) -> None:
    """Raises `UserError` if a statistic reads tokens that are not scored."""
    most, partial = self.max_document_tokens, PARTIAL_NLL.fullmatch(name)
    if most and partial and (partial[1] == 'last' or int(partial[2]) > most):
      raise UserError(
        f'scoring.statistics has {name}, which reads tokens that '
        f'scoring.max_document_tokens={most} does not score: use nll_first_K '
        f'with K up to {most}, or set scoring.max_document_tokens=0.'
      )

  def scored_tokens(self, documents: int, tokens: int) -> int:
    """The tokens to score of so many documents and tokens, at most."""
    most = self.max_document_tokens
    return min(tokens, documents * most) if most else tokens

  @property
  def token_statistics(self) -> tuple[str, ...]:
    """What a model computes of each token."""
    asked = (name for name in self.statistics if name in TOKEN_STATISTICS)
    return ('nll', *asked)

  def columns(self, nll_columns: Iterable[str]) -> list[str]:
    """The columns of sums in a score table.

    Args:
      nll_columns: That of the NLL by each model.
    """
    return [
      statistic_column(name, column)
      for column in nll_columns
      for name in ('nll', *self.statistics)
    ]
