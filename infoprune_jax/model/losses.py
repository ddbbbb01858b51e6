"""The loss of a language model, without its logits."""

import functools

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


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
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
    logits = _logits(hidden_tile, head, softcap)
    logit = jnp.take_along_axis(
      logits, target_tile[..., None], axis=-1, mode='clip'
    )[..., 0]
    inside = _inside(target_tile, logits.shape[-1])
    log_sum = jax.nn.logsumexp(logits, axis=-1)
    return None, (log_sum, jnp.where(inside, logit, 0.0))

  positions = _tile_positions(targets.shape, tile)
  xs = (_split(hidden, positions), _split(targets, positions))
  _, results = jax.lax.scan(one_tile, None, xs)
  log_sum, logit = (_joined(x, len(hidden)) for x in results)
  return log_sum, logit


def _by_tiles_forward(
  hidden: Array, head: Array, targets: Array, tile: int, softcap: float
) -> tuple[tuple[Array, Array], tuple[Array, ...]]:
  log_sum, logit = _by_tiles(hidden, head, targets, tile, softcap)
  return (log_sum, logit), (hidden, head, targets, log_sum)


def _by_tiles_backward(
  tile: int,
  softcap: float,
  kept: tuple[Array, ...],
  gradients: tuple[Array, Array],
) -> tuple[Array, Array, None]:
  """The gradient of logits, in one pass over each tile of them.

  Left to JAX it would be several, among them a scatter, and its products with
  the head and the hidden states would be of float32 by bfloat16.
  """
  hidden, head, targets, log_sum = kept
  precision = matmul_precision(hidden.dtype)

  def one_tile(head_grad, xs):
    hidden_tile, target_tile, log_sum_tile, by_log_sum, by_logit = xs
    logits = _logits(hidden_tile, head, softcap)
    column = jnp.arange(logits.shape[-1], dtype=target_tile.dtype)
    grad = by_log_sum[..., None] * jnp.exp(logits - log_sum_tile[..., None])
    grad += jnp.where(
      target_tile[..., None] == column, by_logit[..., None], 0.0
    )
    if softcap:
      grad *= 1.0 - (logits / softcap) ** 2
    grad = grad.astype(hidden.dtype)
    options = dict(precision=precision, preferred_element_type=jnp.float32)
    head_grad += jnp.einsum('ND,NV->DV', hidden_tile, grad, **options)
    hidden_grad = jnp.einsum('NV,DV->ND', grad, head, **options)
    return head_grad, hidden_grad.astype(hidden.dtype)

  positions = _tile_positions(targets.shape, tile)
  head_grad, hidden_grad = jax.lax.scan(
    one_tile,
    jnp.zeros(head.shape, jnp.float32),
    [_split(x, positions) for x in (hidden, targets, log_sum, *gradients)],
  )
  return _joined(hidden_grad, len(hidden)), head_grad.astype(head.dtype), None


_by_tiles.defvjp(_by_tiles_forward, _by_tiles_backward)


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


def _tile_positions(shape: tuple[int, int], tile: int) -> int:
  """The positions of all rows that make a tile; they divide a row."""
  batch, length = shape
  positions = max(1, min(length, tile // batch))
  while length % positions:
    positions -= 1
  return positions


def _split(x: Array, positions: int) -> Array:
  """[B, T, ...] to [tiles, N, ...]: some positions of all rows.

  Sums over one axis: over two XLA's products on a CPU take twice as long.
  """
  tiles = x.reshape(len(x), -1, positions, *x.shape[2:]).swapaxes(0, 1)
  return tiles.reshape(len(tiles), -1, *x.shape[2:])


def _joined(tiles: Array, rows: int) -> Array:
  """[tiles, N, ...] to [B, T, ...]."""
  tiles = tiles.reshape(len(tiles), rows, -1, *tiles.shape[2:]).swapaxes(0, 1)
  return tiles.reshape(rows, -1, *tiles.shape[3:])
