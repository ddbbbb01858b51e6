"""The optimizer and its schedule, out of optax."""

from typing import Any

import jax
import optax

from infoprune_jax.config import TrainingConfig


def learning_rate_schedule(config: TrainingConfig) -> optax.Schedule:
  """Linear warm-up from zero, then a cosine to a share of the peak."""
  return optax.warmup_cosine_decay_schedule(
    init_value=0.0,
    peak_value=config.learning_rate,
    warmup_steps=config.warmup_steps,
    decay_steps=config.num_steps,
    end_value=config.learning_rate * config.final_learning_rate_ratio,
  )


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
