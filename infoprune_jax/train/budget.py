"""How many steps a budget comes to.

A run counts steps; `TrainingConfig` may give its budget in tokens or FLOPs
instead, and here alone one becomes the other. Whole steps only, rounded down.
"""

import dataclasses

from infoprune_jax.config.training import TrainingConfig
from infoprune_jax.config.validation import UserError


def in_steps(
  training: TrainingConfig, flops_per_token: float, name: str
) -> TrainingConfig:
  """The same training, with its budget in `num_steps`.

  Args:
    training: With any of the budgets.
    flops_per_token: Of training, by `flops.training_flops_per_token`.
    name: The section of the config, for the message.

  Raises:
    UserError: the budget is less than a step, or than warm-up and decay.
  """
  if training.num_steps:
    return training
  steps = num_steps(training, flops_per_token)
  if not steps:
    raise UserError(
      f'{name}.{describe(training)} is less than one step, which is of '
      f'{training.tokens_per_step:,} tokens and '
      f'{training.tokens_per_step * flops_per_token:.3g} FLOPs: raise it, or '
      'lower batch_size or sequence_length.'
    )
  try:
    return dataclasses.replace(
      training, num_steps=steps, num_tokens=0, num_flops=0.0
    )
  except UserError as error:
    raise UserError(
      f'{name}.{describe(training)} comes to {steps} steps: {error}'
    ) from None


def num_steps(training: TrainingConfig, flops_per_token: float) -> int:
  """The whole steps of a budget, which may be none."""
  if training.num_steps:
    return training.num_steps
  if training.num_tokens:
    return training.num_tokens // training.tokens_per_step
  return int(training.num_flops // (training.tokens_per_step * flops_per_token))


def describe(training: TrainingConfig) -> str:
  """The budget as a user wrote it: `num_steps=500`."""
  if training.num_steps:
    return f'num_steps={training.num_steps}'
  if training.num_tokens:
    return f'num_tokens={training.num_tokens}'
  return f'num_flops={training.num_flops:g}'
