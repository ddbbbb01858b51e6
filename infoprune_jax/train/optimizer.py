"""The optimizer and its schedule, out of optax."""

from typing import Any

import jax
import optax

from infoprune_jax.config import TrainingConfig


def learning_rate_schedule(config: TrainingConfig) -> optax.Schedule:
  """Linear warm-up from zero to the peak, then as `config.schedule` says.

  Args:
    config: With its budget in steps.
  """
  peak, steps = config.learning_rate, config.num_steps
  end = peak * config.final_learning_rate_ratio
  # A run that only warms up has no step after it.
  rest = max(1, steps - config.warmup_steps)
  if config.schedule == 'cosine':
    return optax.warmup_cosine_decay_schedule(
      init_value=0.0,
      peak_value=peak,
      warmup_steps=config.warmup_steps,
      decay_steps=config.warmup_steps + rest,
      end_value=end,
    )
  pieces = [optax.linear_schedule(0.0, peak, config.warmup_steps)]
  boundaries = [config.warmup_steps]
  if config.schedule != 'linear':
    pieces.append(optax.constant_schedule(peak))
  if config.schedule == 'linear':
    pieces.append(optax.linear_schedule(peak, end, rest))
  if config.schedule == 'wsd':
    pieces.append(optax.linear_schedule(peak, end, config.decay_steps))
    boundaries.append(steps - config.decay_steps)
  return optax.join_schedules(pieces, boundaries)


def decays(logical_axes: tuple[str, ...]) -> bool:
  """Whether a parameter is a matrix: by its axes, as stacking adds one."""
  return len([axis for axis in logical_axes if axis != 'layers']) > 1


def make(
  config: TrainingConfig, param_axes: Any
) -> optax.GradientTransformation:
  """AdamW with decoupled weight decay, after clipping by the global norm.

  Args:
    config: Rates and betas.
    param_axes: The parameters' tree, of tuples of logical axes.
  """
  mask = jax.tree.map(
    decays, param_axes, is_leaf=lambda node: isinstance(node, tuple)
  )
  return optax.chain(
    optax.clip_by_global_norm(config.max_grad_norm),
    optax.adamw(
      learning_rate_schedule(config),
      b1=config.beta1,
      b2=config.beta2,
      weight_decay=config.weight_decay,
      mask=mask,
    ),
  )
