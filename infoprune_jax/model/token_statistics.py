"""Statistics of the prediction of each token, besides its NLL.

Where the vocabulary is spread over devices each reduces its own shard of the
logits. What the devices find is then merged, so a statistic has two functions.
All are computed in float32.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from infoprune_jax.model import collectives


@dataclasses.dataclass(frozen=True)
class Softmax:
  """What is known of the prediction of N tokens."""

  log_sum: Float[Array, '*N']  # log-sum-exp over this device's logits
  log_z: Float[Array, '*N']  # over all logits
  nll: Float[Array, '*N']


@dataclasses.dataclass(frozen=True)
class Statistic:
  """How a statistic is computed.

  Attributes:
    of_shard: From logits [N, V] of this device, targets [N] int (outside of
      [0, V) on other devices) and the log-sum-exp [N] of the logits, to what
      `merge` takes: a tree of [N] arrays.
    merge: From that tree and the `Softmax` to the statistic, [N] float32.
  """

  of_shard: Callable[[Array, Array, Array], Any]
  merge: Callable[[Any, Softmax], Array]


def _entropy_of_shard(
  logits: Float[Array, 'N V'], targets: Array, log_sum: Float[Array, 'N']
) -> Float[Array, 'N']:
  """The entropy of the softmax over this device's logits alone."""
  del targets
  log_p = logits - log_sum[:, None]
  # A logit of -inf, an added column, has p * log(p) = 0.
  terms = jnp.where(log_p > -jnp.inf, jnp.exp(log_p) * log_p, 0.0)
  return -jnp.sum(terms, axis=1)


def _merge_entropy(entropy: Array, softmax: Softmax) -> Array:
  """In nats: entropies within shards, and that of which shard it is."""
  log_weight = softmax.log_sum - softmax.log_z
  terms = jnp.exp(log_weight) * (entropy - log_weight)
  return collectives.reduce_axis(jax.lax.psum, terms, 'vocab')


def _top_of_shard(
  logits: Float[Array, 'N V'], targets: Int[Array, 'N'], log_sum: Array
) -> tuple[Float[Array, 'N'], Int[Array, 'N']]:
  """The largest logit, and its id less the target's."""
  del log_sum
  top = jnp.max(logits, axis=1)
  column = jnp.arange(logits.shape[1], dtype=targets.dtype)
  # XLA on a CPU takes longer for argmax.
  at_top = jnp.where(
    logits == top[:, None], column, jnp.iinfo(column.dtype).max
  )
  return top, jnp.min(at_top, axis=1) - targets


def _merge_top(tops: tuple[Array, Array], softmax: Softmax) -> Array:
  """1.0 where the target is the argmax, the lowest id of equal logits."""
  del softmax
  top, distance = tops
  best = collectives.reduce_axis(jax.lax.pmax, top, 'vocab')
  none = jnp.iinfo(distance.dtype).max
  distance = jnp.where(top == best, distance, none)
  first = collectives.reduce_axis(jax.lax.pmin, distance, 'vocab')
  return (first == 0).astype(jnp.float32)


def _squares_of_shard(
  logits: Float[Array, 'N V'],
  targets: Int[Array, 'N'],
  log_sum: Float[Array, 'N'],
) -> Float[Array, 'N']:
  """The sum of squared probabilities, without the target's."""
  column = jnp.arange(logits.shape[1], dtype=targets.dtype)
  squares = jnp.exp(2.0 * (logits - log_sum[:, None]))
  return jnp.sum(jnp.where(column == targets[:, None], 0.0, squares), axis=1)


def _merge_error_norm(squares: Array, softmax: Softmax) -> Array:
  """The L2 norm of softmax - onehot(target): EL2N of arXiv 2107.07075."""
  scaled = squares * jnp.exp(2.0 * (softmax.log_sum - softmax.log_z))
  others = collectives.reduce_axis(jax.lax.psum, scaled, 'vocab')
  # 1 - p without cancellation, where the target is almost certain.
  return jnp.sqrt(others + jnp.expm1(-softmax.nll) ** 2)


# The names are those of `config.scoring.TOKEN_STATISTICS`.
STATISTICS = {
  'entropy': Statistic(_entropy_of_shard, _merge_entropy),
  'greedy': Statistic(_top_of_shard, _merge_top),
  'error_norm': Statistic(_squares_of_shard, _merge_error_norm),
}
