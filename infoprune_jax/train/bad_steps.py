"""Steps with a loss that is not finite, or far above the mean."""

from typing import Any

import jax
import jax.numpy as jnp

from infoprune_jax.config.training import TrainingConfig

# Steps of the running mean of the loss. The first steps are never spikes.
MEAN_DECAY, SETTLED_AFTER = 0.98, 50


def keep_old_if(
  bad: jax.Array, new: dict[str, Any], old: dict[str, Any]
) -> dict[str, Any]:
  """The old arrays after a bad step, else the new ones.

  Counts are always new, because the schedule counts skipped steps, too.
  """

  def choose(new: jax.Array, old: jax.Array) -> jax.Array:
    is_count = jnp.issubdtype(new.dtype, jnp.integer)
    return new if is_count else jnp.where(bad, old, new)

  return jax.tree.map(choose, new, {name: old[name] for name in new})


def check_loss(
  training: TrainingConfig,
  state: dict[str, Any],
  loss: jax.Array,
  grad_norm: jax.Array,
) -> tuple[jax.Array, jax.Array]:
  """Whether a step is bad, and the running mean of the losses of good ones."""
  mean, step = state['loss_mean'], state['step']
  bad = ~jnp.isfinite(loss + grad_norm)
  if training.max_loss_spike:
    spike = loss > training.max_loss_spike * mean
    bad |= spike & (step >= SETTLED_AFTER)
  # In the first steps this is the plain mean, which has no bias.
  fraction = jnp.maximum(1 - MEAN_DECAY, 1 / (step + 1.0))
  return bad, jnp.where(bad, mean, mean + fraction * (loss - mean))
