"""The loss of a language model, without its logits.

Tokens go through the head `tile` at a time, against the whole vocabulary,
accumulated in float32: at most [tile, V] logits exist at once. Where the
vocabulary is spread over devices each reduces its own shard of it.
"""

import functools
from typing import Any, cast

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from infoprune_jax.model import partitioning
from infoprune_jax.model.attention import matmul_precision

HIDDEN = ('batch', 'length', 'activation_embed')
HEAD = ('embed', 'vocab')
TOKENS = ('batch', 'length')


def token_nll(
  hidden: Float[Array, 'B T D'],
  head: Float[Array, 'D V'],
  targets: Int[Array, 'B T'],
  *,
  tile: int,
  loss_kernel: str = 'xla',
  softcap: float = 0.0,
) -> Float[Array, 'B T']:
  """Negative log-likelihood of each target token, in nats, float32.

  For scores and evaluation. It is not to be differentiated: a gradient would
  keep all logits, and a spread vocabulary has none; training has
  `weighted_nll`.

  Args:
    hidden: Final hidden states, in the dtype of the computation.
    head: Output projection, in the same dtype.
    targets: Token ids.
    tile: Tokens a tile on a device; rounded down to whole positions.
    loss_kernel: 'xla', or 'hopper' or 'tpu', which hold no logits at all.
    softcap: Logits become softcap * tanh(logits / softcap); 0.0 for none.
      Only 'xla' can.
  """
  if softcap and loss_kernel != 'xla':
    raise ValueError(
      f'loss_kernel={loss_kernel!r} cannot cap logits at {softcap}.'
    )

  def local(hidden: Array, head: Array, targets: Array) -> Array:
    head, targets = _local_vocab_shard(head, targets)
    if loss_kernel == 'xla':
      log_sum, logit = _by_tiles(hidden, head, targets, tile, softcap)
    else:
      log_sum, logit = _by_kernel(hidden, head, targets, loss_kernel)
    return _merge_vocab_shards(log_sum, logit)[0]

  return partitioning.per_device(local, (HIDDEN, HEAD, TOKENS), TOKENS)(
    hidden, head, targets
  )


def weighted_nll(
  hidden: Float[Array, 'B T D'],
  head: Float[Array, 'D V'],
  targets: Int[Array, 'B T'],
  weights: Float[Array, 'B T'],
  *,
  z_loss: float,
  tile: int,
  softcap: float = 0.0,
) -> tuple[Float[Array, ''], Float[Array, 'B T'], Float[Array, 'B T']]:
  """The sum over tokens of weight * (NLL + z_loss * log(Z)^2), for training.

  Z is the softmax's denominator (the z-loss is of arXiv 2204.02311). The
  weights are known before the sum is, so that its gradient is computed along
  with it: three products with the head a tile, where a gradient that waits for
  the backward pass takes a fourth, for logits it has not kept.

  Args:
    hidden: As for `token_nll`, as are `head`, `targets`, `tile`, `softcap`.
    head: Likewise.
    targets: Likewise.
    weights: float32, of each token; their gradient is not computed.
    z_loss: Its coefficient; 0.0 for none.
    tile: Likewise.
    softcap: Likewise.

  Returns:
    The sum, and of each token NLL and log(Z), which are constants to a
    gradient.
  """

  def local(
    hidden: Array, head: Array, targets: Array, weights: Array
  ) -> tuple[Array, Array, Array]:
    head, targets = _local_vocab_shard(head, targets)
    result = _weighted(hidden, head, targets, weights, z_loss, tile, softcap)
    total, nll, log_z = cast(tuple[Array, Array, Array], result)
    return total[None, None], nll, log_z

  total, nll, log_z = partitioning.per_device(
    local, (HIDDEN, HEAD, TOKENS, TOKENS), (TOKENS, TOKENS, TOKENS)
  )(hidden, head, targets, weights)
  nll, log_z = jax.lax.stop_gradient((nll, log_z))
  return jnp.sum(total), nll, log_z


def _local_vocab_shard(
  head: Float[Array, 'd v'], targets: Int[Array, 'B T']
) -> tuple[Float[Array, 'D v'], Int[Array, 'B T']]:
  """This device's columns of the head, whole, and where targets are in them.

  Another device's targets fall outside, and add nothing here.
  """
  head = partitioning.all_gather_axis(head, 'embed', axis=0)
  return head, targets - head.shape[1] * partitioning.axis_index('vocab')


def _merge_vocab_shards(
  log_sum: Float[Array, '*N'], logit: Float[Array, '*N']
) -> tuple[Float[Array, '*N'], Float[Array, '*N']]:
  """NLL and log(Z) from what each device finds in its shard of the columns."""
  top = partitioning.reduce_axis(jax.lax.pmax, log_sum, 'vocab')
  total = partitioning.reduce_axis(
    jax.lax.psum, jnp.exp(log_sum - top), 'vocab'
  )
  logit = partitioning.reduce_axis(jax.lax.psum, logit, 'vocab')
  log_z = jnp.log(total) + top
  return log_z - logit, log_z


def _inside(targets: Int[Array, '*N'], size: int) -> Bool[Array, '*N']:
  return (targets >= 0) & (targets < size)


def _by_kernel(
  hidden: Float[Array, 'B T D'],
  head: Float[Array, 'D V'],
  targets: Int[Array, 'B T'],
  loss_kernel: str,
) -> tuple[Float[Array, 'B T'], Float[Array, 'B T']]:
  """Log-sum-exp over the vocabulary, and the target's logit (0 if outside)."""
  if loss_kernel == 'hopper':  # Imports what only its device needs.
    from infoprune_jax.model.kernels.hopper import logsumexp
  else:
    from infoprune_jax.model.kernels.tpu import logsumexp

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

  def one_tile(_, xs):
    hidden_tile, target_tile = xs  # [N, D], [N]
    return None, _lse_and_target_logit(
      _logits(hidden_tile, head, softcap), target_tile
    )

  positions = _tile_positions(targets.shape, tile)
  xs = (_split(hidden, positions), _split(targets, positions))
  _, results = jax.lax.scan(one_tile, None, xs)
  log_sum, logit = (_joined(x, len(hidden)) for x in results)
  return log_sum, logit


def _lse_and_target_logit(
  logits: Float[Array, 'N V'], targets: Int[Array, 'N']
) -> tuple[Float[Array, 'N'], Float[Array, 'N']]:
  """Log-sum-exp over the columns, and the target's logit (0 if outside)."""
  logit = jnp.take_along_axis(logits, targets[:, None], axis=1, mode='clip')
  inside = _inside(targets, logits.shape[1])
  return (
    jax.nn.logsumexp(logits, axis=1),
    jnp.where(inside, logit[:, 0], 0.0),
  )


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5, 6))
def _weighted(
  hidden: Float[Array, 'B T D'],
  head: Float[Array, 'D V'],
  targets: Int[Array, 'B T'],
  weights: Float[Array, 'B T'],
  z_loss: float,
  tile: int,
  softcap: float,
) -> tuple[Float[Array, ''], Float[Array, 'B T'], Float[Array, 'B T']]:
  """`weighted_nll` of this device's tokens, with columns of the head."""
  return _weighted_forward(
    hidden, head, targets, weights, z_loss, tile, softcap
  )[0]


def _weighted_forward(
  hidden: Array,
  head: Array,
  targets: Array,
  weights: Array,
  z_loss: float,
  tile: int,
  softcap: float,
) -> tuple[tuple[Array, Array, Array], tuple[Array, Array]]:
  """The sum, and its gradient in one pass over each tile of logits.

  Left to JAX the gradient of logits would be several passes, among them a
  scatter, and the products would be of float32 by bfloat16.
  """
  options: dict[str, Any] = dict(
    precision=matmul_precision(hidden.dtype),
    preferred_element_type=jnp.float32,
  )

  def one_tile(head_grad, xs):
    hidden_tile, target_tile, weight = xs  # [N, D], [N], [N]
    logits = _logits(hidden_tile, head, softcap)
    nll, log_z = _merge_vocab_shards(
      *_lse_and_target_logit(logits, target_tile)
    )
    by_log_z = weight * (1.0 + 2.0 * z_loss * log_z)
    grad = by_log_z[:, None] * jnp.exp(logits - log_z[:, None])
    column = jnp.arange(logits.shape[1], dtype=target_tile.dtype)
    is_target = target_tile[:, None] == column
    grad -= jnp.where(is_target, weight[:, None], 0.0)
    if softcap:
      grad *= 1.0 - (logits / softcap) ** 2
    grad = grad.astype(hidden.dtype)
    head_grad += jnp.einsum('ND,NV->DV', hidden_tile, grad, **options)
    hidden_grad = jnp.einsum('NV,DV->ND', grad, head, **options)
    return head_grad, (nll, log_z, hidden_grad.astype(hidden.dtype))

  positions = _tile_positions(targets.shape, tile)
  head_grad, results = jax.lax.scan(
    one_tile,
    jnp.zeros(head.shape, jnp.float32),
    [_split(x, positions) for x in (hidden, targets, weights)],
  )
  nll, log_z, hidden_grad = (_joined(x, len(hidden)) for x in results)
  total = jnp.sum(weights * (nll + z_loss * log_z**2))
  return (total, nll, log_z), (hidden_grad, head_grad.astype(head.dtype))


def _weighted_backward(
  z_loss: float,
  tile: int,
  softcap: float,
  kept: tuple[Array, Array],
  gradients: tuple[Array, Array, Array],
) -> tuple[Array, Array, None, None]:
  # Devices with other columns have the same sum, and each a part of what comes.
  scale = partitioning.reduce_axis(jax.lax.psum, gradients[0], 'vocab')
  hidden_grad, head_grad = (
    (scale * grad.astype(jnp.float32)).astype(grad.dtype) for grad in kept
  )
  return hidden_grad, head_grad, None, None


_weighted.defvjp(_weighted_forward, _weighted_backward)


def _logits(
  hidden: Float[Array, 'N D'], head: Float[Array, 'D V'], softcap: float
) -> Float[Array, 'N V']:
  logits = jnp.einsum(
    'ND,DV->NV',
    hidden,
    head,
    precision=matmul_precision(hidden.dtype),
    preferred_element_type=jnp.float32,
  )
  return softcap * jnp.tanh(logits / softcap) if softcap else logits


def _tile_positions(shape: tuple[int, ...], tile: int) -> int:
  """The positions of all sequences that make a tile; they divide a sequence."""
  batch, length = shape
  positions = max(1, min(length, tile // batch))
  while length % positions:
    positions -= 1
  return positions


def _split(x: Array, positions: int) -> Array:
  """[B, T, ...] to [tiles, N, ...]: some positions of all sequences.

  Sums over one axis: over two XLA's products on a CPU take twice as long.
  """
  tiles = x.reshape(len(x), -1, positions, *x.shape[2:]).swapaxes(0, 1)
  return tiles.reshape(len(tiles), -1, *x.shape[2:])


def _joined(tiles: Array, sequences: int) -> Array:
  """[tiles, N, ...] to [B, T, ...]."""
  tiles = tiles.reshape(len(tiles), sequences, -1, *tiles.shape[2:]).swapaxes(
    0, 1
  )
  return tiles.reshape(sequences, -1, *tiles.shape[3:])
