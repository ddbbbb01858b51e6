"""How a model is trained, and how far. Standard library only."""

import dataclasses
import math
from collections.abc import Mapping

from infoprune_jax.validation import (
  UserError,
  check_choice,
  check_positive,
  check_range,
)

READERS = ('grain', 'seqio')


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingConfig:
  """Budget, batch and optimizer of one training run."""

  num_steps: int
  batch_size: int  # rows
  row_length: int  # tokens
  learning_rate: float  # peak
  warmup_steps: int  # linear, from zero
  final_learning_rate_ratio: float  # of the peak, at the end of the cosine
  weight_decay: float  # of matrices; never of norms
  beta1: float
  beta2: float
  max_grad_norm: float  # global norm; gradients above are scaled down
  log_every: int  # steps
  eval_every: int  # steps
  checkpoint_every: int  # steps
  max_checkpoints: int  # the newest are kept
  # The share of tokens by source, however scaled; {} for natural sizes.
  mixture: Mapping[str, float] = dataclasses.field(hash=False)
  reader: str  # 'grain' over the token store, or 'seqio' over its task

  def __post_init__(self):
    check_choice('training.reader', self.reader, READERS)
    for source, weight in self.mixture.items():
      if not 0.0 < weight < math.inf:
        raise UserError(
          f'training.mixture.{source} must be positive, got {weight}: leave '
          'sources out of the corpus, not by weight zero.'
        )
    sizes = ('num_steps', 'batch_size', 'row_length', 'max_checkpoints')
    every = ('log_every', 'eval_every', 'checkpoint_every')
    check_positive(
      'training', self, 'learning_rate', 'max_grad_norm', *sizes, *every
    )
    check_range('training.warmup_steps', self.warmup_steps, 0, self.num_steps)
    check_range('training.weight_decay', self.weight_decay, 0.0, 1e6)
    check_range('training.beta1', self.beta1, 0.0, 1.0)
    check_range('training.beta2', self.beta2, 0.0, 1.0)
    check_range(
      'training.final_learning_rate_ratio',
      self.final_learning_rate_ratio,
      0.0,
      1.0,
    )
