"""The loss of a language model, without all logits in memory at once.

The head is applied to a tile of tokens at a time, over the whole vocabulary, and
accumulated in float32. So at most [tile, V] logits exist at once. If the
vocabulary is sharded over devices, each device reduces its own shard.

XLA's products take an aligned number of columns, see `head_columns`.
"""

import functools
from typing import Any, cast

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from infoprune_jax.model import collectives, head_columns, partitioning
from infoprune_jax.model.attention import matmul_precision
from infoprune_jax.model.token_statistics import STATISTICS, Softmax

HIDDEN = ('batch', 'length', 'activation_embed')
HEAD = ('embed', 'vocab')
TOKENS = ('batch', 'length')


def token_statistics(
  hidden: Float[Array, 'B T D'],
  head: Float[Array, 'D V'],
  targets: Int[Array, 'B T'],
  *,
  names: tuple[str, ...] = ('nll',),
  tile: int,
  loss_kernel: str = 'xla',
  softcap: float = 0.0,
) -> dict[str, Float[Array, 'B T']]:
  """Statistics of the prediction of each target token, float32, by name.

  Scores and evaluation use this function, training uses `weighted_nll`. Do not
  differentiate it: the gradient would keep all logits, and there is none for a
  sharded vocabulary.

  Args:
    hidden: Final hidden states, in the dtype of the computation.
    head: Output projection, in the same dtype.
    targets: Token ids.
    names: 'nll', the negative log-likelihood in nats, and any of `STATISTICS`.
      Only 'xla' can compute the latter.
    tile: The most tokens per tile on a device.
    loss_kernel: 'xla', or 'hopper' or 'tpu', which write no logits to memory.
    softcap: Logits become softcap * tanh(logits / softcap); 0.0 for none.
      Only 'xla' supports it.
  """
  if softcap and loss_kernel != 'xla':
    raise ValueError(
      f'loss_kernel={loss_kernel!r} cannot cap logits at {softcap}.'
    )
  others = tuple(name for name in names if name != 'nll')
  if others and loss_kernel != 'xla':
    raise ValueError(f'loss_kernel={loss_kernel!r} cannot compute {others}.')

  vocab_size, head = head.shape[1], head_columns.spread(head)

  def local(hidden: Array, head: Array, targets: Array) -> tuple[Array, ...]:
    head, targets, valid = head_columns.local_shard(
      head, targets, vocab_size, aligned=loss_kernel == 'xla'
    )
    if loss_kernel == 'xla':
      log_sum, logit, parts = _by_tiles(
        hidden, head, targets, valid, others, tile, softcap
      )
    else:
      log_sum, logit, parts = _by_kernel(
        hidden, head, targets, valid, vocab_size, loss_kernel
      )
    nll, log_z = head_columns.merge_shards(log_sum, logit)
    softmax = Softmax(log_sum, log_z, nll)
    return tuple(
      nll if name == 'nll' else STATISTICS[name].merge(parts[name], softmax)
      for name in names
    )

  values = partitioning.per_device(
    local, (HIDDEN, HEAD, TOKENS), (TOKENS,) * len(names)
  )(hidden, head, targets)
  return dict(zip(names, values, strict=True))


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

  Z is the denominator of the softmax (z-loss: arXiv 2204.02311). The gradient is
  computed together with the sum, which takes three products with the head per
  tile. A backward pass of its own would take a fourth one, to compute the logits
  again.

  Args:
    hidden: See `token_statistics`.
    head: See `token_statistics`.
    targets: See `token_statistics`.
    weights: The weight of each token, float32. It gets no gradient.
    z_loss: Coefficient of the z-loss; 0.0 for none.
    tile: See `token_statistics`.
    softcap: See `token_statistics`.

  Returns:
    The sum, and NLL and log(Z) of each token. The last two have no gradient.
  """
  vocab_size, head = head.shape[1], head_columns.spread(head)

  def local(
    hidden: Array, head: Array, targets: Array, weights: Array
  ) -> tuple[Array, Array, Array]:
    head, targets, valid = head_columns.local_shard(
      head, targets, vocab_size, aligned=True
    )
    result = _weighted(
      hidden, head, targets, valid, weights, z_loss, tile, softcap
    )
    total, nll, log_z = cast(tuple[Array, Array, Array], result)
    return total[None, None], nll, log_z

  total, nll, log_z = partitioning.per_device(
    local, (HIDDEN, HEAD, TOKENS, TOKENS), (TOKENS, TOKENS, TOKENS)
  )(hidden, head, targets, weights)
  nll, log_z = jax.lax.stop_gradient((nll, log_z))
  return jnp.sum(total), nll, log_z


def _inside(targets: Int[Array, '*N'], size: int) -> Bool[Array, '*N']:
  return (targets >= 0) & (targets < size)


def _by_kernel(
  hidden: Float[Array, 'B T D'],
  head: Float[Array, 'D V'],
  targets: Int[Array, 'B T'],
  valid: Bool[Array, ' V'] | None,
  vocab_size: int,
  loss_kernel: str,
) -> tuple[Float[Array, 'B T'], Float[Array, 'B T'], dict[str, Any]]:
  """Log-sum-exp over the columns, and the target's logit (0 if out of range).

  XLA computes the last columns, which are not all `valid` on the last device.
  The third result is empty, see `_by_tiles`.
  """
  if loss_kernel == 'hopper':  # Import a kernel only where it runs.
    from infoprune_jax.model.kernels.hopper import logsumexp
  else:
    from infoprune_jax.model.kernels.tpu import logsumexp

  table = head.T
  flat = hidden.reshape(-1, hidden.shape[-1])
  added = len(table) * partitioning.num_shards('vocab') - vocab_size
  sure = len(table) - added
  log_sum = logsumexp(flat, table[:sure])
  if valid is not None:
    rest = _logits(flat, head[:, sure:], valid[sure:], 0.0)
    log_sum = jnp.logaddexp(log_sum, jax.nn.logsumexp(rest, axis=1))
  columns = table.at[targets].get(mode='clip')
  logit = jnp.sum(
    hidden.astype(jnp.float32) * columns.astype(jnp.float32), axis=-1
  )
  inside = _inside(targets, table.shape[0])
  return log_sum.reshape(targets.shape), jnp.where(inside, logit, 0.0), {}


def _by_tiles(
  hidden: Float[Array, 'B T D'],
  head: Float[Array, 'D V'],
  targets: Int[Array, 'B T'],
  valid: Bool[Array, ' V'] | None,
  names: tuple[str, ...],
  tile: int,
  softcap: float,
) -> tuple[Float[Array, 'B T'], Float[Array, 'B T'], dict[str, Any]]:
  """The results of `_by_kernel`, computed by XLA one tile at a time.

  The third result holds what `Statistic.merge` takes, for each of `names`.
  """

  def one_tile(_, xs):
    hidden_tile, target_tile = xs  # [N, D], [N]
    logits = _logits(hidden_tile, head, valid, softcap)
    log_sum, logit = _lse_and_target_logit(logits, target_tile)
    parts = {
      name: STATISTICS[name].of_shard(logits, target_tile, log_sum)
      for name in names
    }
    return None, (log_sum, logit, parts)

  xs = (_split(hidden, tile), _split(targets, tile))
  _, results = jax.lax.scan(one_tile, None, xs)
  return jax.tree.map(lambda x: _joined(x, targets.shape), results)


def _lse_and_target_logit(
  logits: Float[Array, 'N V'], targets: Int[Array, 'N']
) -> tuple[Float[Array, 'N'], Float[Array, 'N']]:
  """Log-sum-exp over the columns, and the target's logit (0 if out of range)."""
  logit = jnp.take_along_axis(logits, targets[:, None], axis=1, mode='clip')
  inside = _inside(targets, logits.shape[1])
  return (
    jax.nn.logsumexp(logits, axis=1),
    jnp.where(inside, logit[:, 0], 0.0),
  )


@functools.partial(jax.custom_vjp, nondiff_argnums=(5, 6, 7))
def _weighted(
  hidden: Float[Array, 'B T D'],
  head: Float[Array, 'D V'],
  targets: Int[Array, 'B T'],
  valid: Bool[Array, ' V'] | None,
  weights: Float[Array, 'B T'],
  z_loss: float,
  tile: int,
  softcap: float,
) -> tuple[Float[Array, ''], Float[Array, 'B T'], Float[Array, 'B T']]:
  """`weighted_nll` of this device's tokens, with its columns of the head."""
  return _weighted_forward(
    hidden, head, targets, valid, weights, z_loss, tile, softcap
  )[0]


def _weighted_forward(
  hidden: Array,
  head: Array,
  targets: Array,
  valid: Array | None,
  weights: Array,
  z_loss: float,
  tile: int,
  softcap: float,
) -> tuple[tuple[Array, Array, Array], tuple[Array, Array]]:
  """The sum, and its gradient, which takes one pass over each tile of logits.

  The gradient that JAX derives takes several passes, one of them a scatter, and
  multiplies float32 by bfloat16.
  """
  options: dict[str, Any] = dict(
    precision=matmul_precision(hidden.dtype),
    preferred_element_type=jnp.float32,
  )

  def one_tile(head_grad, xs):
    hidden_tile, target_tile, weight = xs  # [N, D], [N], [N]
    logits = _logits(hidden_tile, head, valid, softcap)
    nll, log_z = head_columns.merge_shards(
      *_lse_and_target_logit(logits, target_tile)
    )
    by_log_z = weight * (1.0 + 2.0 * z_loss * log_z)
    grad = by_log_z[:, None] * jnp.exp(logits - log_z[:, None])
    column = jnp.arange(logits.shape[1], dtype=target_tile.dtype)
    is_target = target_tile[:, None] == column
    grad -= jnp.where(is_target, weight[:, None], 0.0)
    if softcap:  # At least 0, also where a logit is -inf.
      grad *= jnp.maximum(1.0 - (logits / softcap) ** 2, 0.0)
    grad = grad.astype(hidden.dtype)
    head_grad += jnp.einsum('ND,NV->DV', hidden_tile, grad, **options)
    hidden_grad = jnp.einsum('NV,DV->ND', grad, head, **options)
    return head_grad, (nll, log_z, hidden_grad.astype(hidden.dtype))

  head_grad, results = jax.lax.scan(
    one_tile,
    jnp.zeros(head.shape, jnp.float32),
    [_split(x, tile) for x in (hidden, targets, weights)],
  )
  nll, log_z, hidden_grad = (_joined(x, targets.shape) for x in results)
  total = jnp.sum(weights * (nll + z_loss * log_z**2))
  return (total, nll, log_z), (hidden_grad, head_grad.astype(head.dtype))


def _weighted_backward(
  z_loss: float,
  tile: int,
  softcap: float,
  kept: tuple[Array, Array],
  gradients: tuple[Array, Array, Array],
) -> tuple[Array, Array, None, None, None]:
  # Devices with other columns have the same sum, each with a part of its
  # gradient.
  scale = collectives.reduce_axis(jax.lax.psum, gradients[0], 'vocab')
  hidden_grad, head_grad = (
    (scale * grad.astype(jnp.float32)).astype(grad.dtype) for grad in kept
  )
  return hidden_grad, head_grad, None, None, None


_weighted.defvjp(_weighted_forward, _weighted_backward)


def _logits(
  hidden: Float[Array, 'N D'],
  head: Float[Array, 'D V'],
  valid: Bool[Array, ' V'] | None,
  softcap: float,
) -> Float[Array, 'N V']:
  logits = jnp.einsum(
    'ND,DV->NV',
    hidden,
    head,
    precision=matmul_precision(hidden.dtype),
    preferred_element_type=jnp.float32,
  )
  if softcap:
    logits = softcap * jnp.tanh(logits / softcap)
  if valid is None:
    return logits
  # XLA would mask within the product, with a kernel that takes 1.7 times as
  # long as cuBLAS's on an H200.
  logits = jax.lax.optimization_barrier(logits)
  return jnp.where(valid, logits, -jnp.inf)


def _tile_shape(tokens: int, tile: int) -> tuple[int, int]:
  """The number of tiles, and the tokens of each: at most `tile`.

  Tiles are of one size, and hold all tokens. If no size from `tile` down to its
  half divides them, the last tile is filled up.
  """
  tile = min(tile, tokens)
  sizes = range(tile, tile // 2, -1)
  size = next((size for size in sizes if tokens % size == 0), tile)
  return -(-tokens // size), size


def _split(x: Array, tile: int) -> Array:
  """Tiles [tiles, N, ...] of [B, T, ...]; the last is filled up with zeros.

  A tile has one axis of tokens. With two, XLA takes twice as long on a CPU.
  """
  flat = x.reshape(-1, *x.shape[2:])
  tiles, size = _tile_shape(len(flat), tile)
  if added := tiles * size - len(flat):
    flat = jnp.pad(flat, ((0, added), *((0, 0),) * (flat.ndim - 1)))
  return flat.reshape(tiles, size, *flat.shape[1:])


def _joined(tiles: Array, shape: tuple[int, ...]) -> Array:
  """The array [B, T, ...] of which `tiles` [tiles, N, ...] are made."""
  flat = tiles.reshape(-1, *tiles.shape[2:])
  return flat[: shape[0] * shape[1]].reshape(*shape, *flat.shape[1:])
