"""The loss of a language model, without its logits."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from infoprune_jax.model import partitioning
from infoprune_jax.model.attention import matmul_precision


def token_nll(
  hidden: Float[Array, 'B T D'],
  head: Float[Array, 'D V'],
  targets: Int[Array, 'B T'],
  *,
  tile: int,
  kernels: str = 'xla',
  softcap: float = 0.0,
) -> tuple[Float[Array, 'B T'], Float[Array, 'B T']]:
  """Negative log-likelihood of each target token, in nats, float32.

  And the logarithm of the softmax's denominator, log Z, which is at hand, so
  that a z-loss needs no second pass.

  Score, train and evaluate share it. Tokens go through the head `tile` at a
  time, against the whole vocabulary, accumulated in float32; at most [tile, V]
  logits exist at once, in the backward pass too, which computes them again. A
  kernel holds none, and has no backward pass. Where the vocabulary is spread
  over devices each reduces its own share of it.

  Args:
    hidden: Final hidden states, in the dtype of the computation.
    head: Output projection, in the same dtype.
    targets: Token ids.
    tile: Tokens a tile on a device; rounded down to whole positions.
    kernels: 'xla', 'hopper' or 'tpu'.
    softcap: Logits become softcap * tanh(logits / softcap); 0.0 for none.
      Only 'xla' can.
  """
  if softcap and kernels != 'xla':
    raise ValueError(f'kernels={kernels!r} cannot cap logits at {softcap}.')

  def local(hidden: Array, head: Array, targets: Array) -> tuple[Array, Array]:
    head = partitioning.gathered(head, 'embed', axis=0)
    # Another device's targets fall outside, and add nothing here.
    targets = targets - head.shape[1] * partitioning.axis_index('vocab')
    if kernels == 'xla':
      log_sum, logit = _by_tiles(hidden, head, targets, tile, softcap)
    else:
      log_sum, logit = _by_kernel(hidden, head, targets, kernels)
    top = partitioning.across(
      jax.lax.pmax, jax.lax.stop_gradient(log_sum), 'vocab'
    )
    total = partitioning.across(jax.lax.psum, jnp.exp(log_sum - top), 'vocab')
    logit = partitioning.across(jax.lax.psum, logit, 'vocab')
    log_z = jnp.log(total) + top
    return log_z - logit, log_z

  return partitioning.per_device(
    local,
    (
      ('batch', 'length', 'activation_embed'),
      ('embed', 'vocab'),
      ('batch', 'length'),
    ),
    (('batch', 'length'), ('batch', 'length')),
  )(hidden, head, targets)


def _inside(targets: Int[Array, '*N'], size: int) -> Bool[Array, '*N']:
  return (targets >= 0) & (targets < size)


def _by_kernel(
  hidden: Float[Array, 'B T D'],
  head: Float[Array, 'D V'],
  targets: Int[Array, 'B T'],
  kernels: str,
) -> tuple[Float[Array, 'B T'], Float[Array, 'B T']]:
  """Log-sum-exp over the vocabulary, and the target's logit (0 if outside)."""
  if kernels == 'hopper':  # Imports what only its device needs.
    from infoprune_jax.model.hopper import logsumexp
  else:
    from infoprune_jax.model.tpu import logsumexp

  table = head.T
  log_sum = logsumexp(hidden.reshape(-1, hidden.shape[-1]), table)
  columns = table.at[targets].get(mode='clip')
  logit = jnp.sum(
    hidden.astype(jnp.float32) * columns.astype(jnp.float32), axis=-1
  )
  inside = _inside(targets, table.shape[0])
  return log_sum.reshape(targets.shape), jnp.where(inside, logit, 0.0)


def _by_tiles(
  hidden: Float[Array, 'B T D'],
  head: Float[Array, 'D V'],
  targets: Int[Array, 'B T'],
  tile: int,
  softcap: float,
) -> tuple[Float[Array, 'B T'], Float[Array, 'B T']]:
  """As `_by_kernel`, by XLA, a tile at a time."""
  batch, length, width = hidden.shape
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
    if softcap:
      logits = softcap * jnp.tanh(logits / softcap)
    logit = jnp.take_along_axis(
      logits, target_tile[..., None], axis=-1, mode='clip'
    )[..., 0]
    inside = _inside(target_tile, logits.shape[-1])
    return carry, (
      jax.nn.logsumexp(logits, axis=-1),
      jnp.where(inside, logit, 0.0),
    )

  tiles = length // positions
  hidden = hidden.reshape(batch, tiles, positions, width).swapaxes(0, 1)
  targets = targets.reshape(batch, tiles, positions).swapaxes(0, 1)
  _, results = jax.lax.scan(one_tile, None, (hidden, targets))
  log_sum, logit = (x.swapaxes(0, 1).reshape(batch, length) for x in results)
  return log_sum, logit
