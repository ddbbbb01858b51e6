"""The loss of a language model, without its logits."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from infoprune_jax.model.attention import matmul_precision


def token_nll(
  hidden: Float[Array, 'B T D'],
  head: Float[Array, 'D V'],
  targets: Int[Array, 'B T'],
  *,
  tile: int,
) -> Float[Array, 'B T']:
  """Negative log-likelihood of each target token, in nats, float32.

  Score, train and evaluate share it. Tokens go through the head `tile` at a
  time, against the whole vocabulary, accumulated in float32; at most [tile, V]
  logits exist at once, in the backward pass too, which computes them again.

  Args:
    hidden: Final hidden states, in the dtype of the computation.
    head: Output projection, in the same dtype.
    targets: Token ids.
    tile: Tokens a tile; rounded down to whole positions of the batch.
  """
  batch, length, width = hidden.shape
  # Tiles run along the length, so that a sharded batch stays where it is.
  positions = max(1, min(length, tile // batch))
  while length % positions:
    positions -= 1

  @jax.checkpoint
  def one_tile(carry, xs):
    hidden_tile, target_tile = xs  # [B, t, D], [B, t]
    logits = jnp.einsum(
      'BTD,DV->BTV',
      hidden_tile,
      head,
      precision=matmul_precision(hidden.dtype),
      preferred_element_type=jnp.float32,
    )
    target_logit = jnp.take_along_axis(logits, target_tile[..., None], axis=-1)[
      ..., 0
    ]
    return carry, jax.nn.logsumexp(logits, axis=-1) - target_logit

  tiles = length // positions
  hidden = hidden.reshape(batch, tiles, positions, width).swapaxes(0, 1)
  targets = targets.reshape(batch, tiles, positions).swapaxes(0, 1)
  _, nll = jax.lax.scan(one_tile, None, (hidden, targets))
  return nll.swapaxes(0, 1).reshape(batch, length)
