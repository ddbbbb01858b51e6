"""Causal attention within segments, with one of several backends."""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from infoprune_jax.model import collectives, partitioning
from infoprune_jax.model.kernels import gpu_attention

# Queries are cut into blocks. A block multiplies only the keys up to its end, so
# most products that the causal mask hides are never computed.
MIN_BLOCK = 64
MAX_BLOCKS = 8
SPLASH_BLOCKS = (512, 384, 256, 128)  # tokens; one must divide a sequence
QUERY = ('batch', 'length', 'heads', 'head_dim')
KEY = ('batch', 'length', 'kv_heads', 'head_dim')
TOKENS = ('batch', 'length')
WHOLE_KEY = ('batch', None, 'kv_heads', 'head_dim')
WHOLE_TOKENS = ('batch', None)
TABLE = (WHOLE_TOKENS, WHOLE_TOKENS, ('batch',))  # of cuDNN's segments


class Logits(NamedTuple):
  """How the logits of attention are computed."""

  scale: float  # the factor of the product of query and key
  softcap: float = 0.0  # the cap in cap * tanh(logits / cap); 0.0 for none
  window: int = 0  # keys that a query sees, its own included; 0 for all


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Segments:
  """The segments of packed sequences, in the form that a backend takes."""

  ids: Int[Array, 'B T']  # from 1 in each sequence; 0 is padding, at its end
  # For cuDNN: lengths, starts and whether all fit, from `segment_table`.
  table: tuple[Array, Array, Array] | None = None


def segments(ids: Int[Array, 'B T'], backend: str, limit: int) -> Segments:
  """The segments as `attention` takes them, computed once for all layers.

  Args:
    ids: Segments count from 1 in each sequence; 0 is padding, at the sequence's
      end.
    backend: As for `attention`.
    limit: For cuDNN, see `gpu_attention.segment_table`.
  """
  if backend != 'cudnn':
    return Segments(ids)
  table = partitioning.per_device(
    functools.partial(gpu_attention.segment_table, limit=limit),
    (WHOLE_TOKENS,),
    TABLE,
  )(ids)
  return Segments(ids, table)


def attention(
  query: Float[Array, 'B T N H'],
  key: Float[Array, 'B T K H'],
  value: Float[Array, 'B T K H'],
  segments: Segments,
  backend: str,
  logits: Logits,
) -> Float[Array, 'B T N H']:
  """Dot-product attention. A token sees its own segment, up to itself.

  N / K query heads share one of the K key and value heads. The softmax is
  computed in float32. Tokens of padding (segment 0) see each other, so that
  every token sees one. Nothing reads the result at padding.

  Args:
    query: In the dtype of the computation.
    key: In the same dtype.
    value: In the same dtype.
    segments: From the function `segments`.
    backend: 'xla', 'cudnn' or 'pallas' (NVIDIA GPUs), or 'splash' (TPUs).
    logits: Scale, cap and window. 'cudnn' and 'pallas' support no cap and no
      window.
  """
  if logits.window >= query.shape[1]:
    logits = logits._replace(window=0)
  if backend == 'xla':
    xla, ids = functools.partial(_xla, form=logits), segments.ids
    if partitioning.num_shards('length') == 1:
      return xla(query, key, value, ids, ids)
    # Each device has a shard of the queries, and gathers all keys.
    return partitioning.per_device(
      xla, (QUERY, WHOLE_KEY, WHOLE_KEY, TOKENS, WHOLE_TOKENS), QUERY
    )(query, key, value, ids, ids)
  if backend == 'splash':
    length, heads = query.shape[1:3]
    heads //= partitioning.num_shards('heads')
    num_shards = partitioning.num_shards('length')
    kernel = _splash_kernel(length, heads, num_shards, logits)
    where = partitioning.mapped(kernel.manual_sharding_spec, (None, 'length'))
    axes = (QUERY, WHOLE_KEY, WHOLE_KEY, TOKENS, WHOLE_TOKENS, where)
    return partitioning.per_device(_splash, axes, QUERY)(
      query * logits.scale, key, value, segments.ids, segments.ids, kernel
    )
  if backend == 'pallas':
    return partitioning.per_device(
      functools.partial(gpu_attention.pallas, scale=logits.scale),
      (QUERY, KEY, KEY, WHOLE_TOKENS),
      QUERY,
    )(query, key, value, segments.ids)
  assert segments.table
  return partitioning.per_device(
    functools.partial(gpu_attention.cudnn, scale=logits.scale),
    (QUERY, KEY, KEY, *TABLE),
    QUERY,
  )(query, key, value, *segments.table)


def _splash_kernel(
  length: int, heads: int, num_shards: int, logits: Logits
) -> Any:
  """JAX's splash attention, for sequences whose queries are sharded.

  The kernel holds arrays that name the blocks of keys that each shard needs.
  They are sharded like the queries, so that all devices run one program.
  """
  from jax.experimental.pallas.ops.tpu import splash_attention as splash

  shape = (length, length)
  mask = splash.CausalMask(shape, shard_count=num_shards)
  if logits.window:
    before = (logits.window - 1, 0)
    mask = splash.LocalMask(shape, before, 0, shard_count=num_shards)
  block = next(
    size for size in SPLASH_BLOCKS if length // num_shards % size == 0
  )
  return splash.make_splash_mha(
    splash.MultiHeadMask([mask] * heads),
    head_shards=1,
    q_seq_shards=num_shards,
    attn_logits_soft_cap=logits.softcap or None,
    block_sizes=splash.BlockSizes(
      block_q=block,
      block_kv=block,
      block_kv_compute=block,
      block_q_dkv=block,
      block_kv_dkv=block,
      block_kv_dkv_compute=block,
      block_q_dq=block,
      block_kv_dq=block,
    ),
  )


def _splash(
  query: Float[Array, 'B t N H'],
  key: Float[Array, 'B T K H'],
  value: Float[Array, 'B T K H'],
  query_ids: Int[Array, 'B t'],
  key_ids: Int[Array, 'B T'],
  kernel: Any,
) -> Float[Array, 'B t N H']:
  """Splash attention, which skips blocks of the future, not of other segments."""
  from jax.experimental.pallas.ops.tpu import splash_attention as splash

  query, key, value = (x.swapaxes(1, 2) for x in (query, key, value))
  mixed = jax.vmap(kernel)(
    query, key, value, splash.SegmentIds(query_ids, key_ids)
  )
  return mixed.swapaxes(1, 2)


def _xla(
  query: Float[Array, 'B t N H'],
  key: Float[Array, 'B T K H'],
  value: Float[Array, 'B T K H'],
  query_ids: Int[Array, 'B t'],
  key_ids: Int[Array, 'B T'],
  form: Logits,
) -> Float[Array, 'B t N H']:
  """XLA's attention, of all queries or of this device's shard of them."""
  batch, length, heads, dim = query.shape
  span, groups = key.shape[1:3]
  # Queries that share keys are in one product with them, so keys are not
  # repeated. XLA multiplies this layout fastest on a CPU.
  query = (query * form.scale).reshape(batch, length, groups, -1, dim)
  query = query.transpose(0, 2, 3, 1, 4)
  key, value = key.swapaxes(1, 2), value.swapaxes(1, 2)
  first = collectives.axis_index('length') * length if length < span else 0
  block = max(MIN_BLOCK, -(-length // MAX_BLOCKS))
  out = []
  for start in range(0, length, block):
    # All devices run one program, so a shard of the queries takes all keys.
    seen = slice(0, span)
    if length == span:
      seen = _seen_keys(start, start + block, form.window)
    out.append(
      _attend(
        query[:, :, :, start : start + block],
        key[:, :, seen],
        value[:, :, seen],
        query_ids[:, start : start + block],
        key_ids[:, seen],
        first + start - seen.start,
        form,
      )
    )
  mixed = jnp.concatenate(out, axis=3).transpose(0, 3, 1, 2, 4)
  return mixed.reshape(batch, length, heads, dim)


def _seen_keys(start: int, end: int, window: int) -> slice:
  """The keys that a query in [start, end) sees."""
  return slice(max(0, start - window + 1) if window else 0, end)


@functools.partial(jax.custom_vjp, nondiff_argnums=(6,))
def _attend(
  query: Float[Array, 'B K G t H'],
  key: Float[Array, 'B K S H'],
  value: Float[Array, 'B K S H'],
  query_ids: Int[Array, 'B t'],
  key_ids: Int[Array, 'B S'],
  first: Int[Array, ''] | int,
  form: Logits,
) -> Float[Array, 'B K G t H']:
  """Attention of t queries, the first at position `first`, to S keys.

  The first key is at position 0. Queries are scaled already.
  """
  return _attend_forward(query, key, value, query_ids, key_ids, first, form)[0]


def _attend_forward(
  query: Array,
  key: Array,
  value: Array,
  query_ids: Array,
  key_ids: Array,
  first: Array | int,
  form: Logits,
) -> tuple[Array, tuple[Array, ...]]:
  logits = _logits(query, key, form.softcap)
  logits = _masked(logits, query_ids, key_ids, first, form.window)
  weights = jnp.exp(logits - logits.max(axis=-1, keepdims=True))
  total = weights.sum(axis=-1, keepdims=True)
  weights = weights.astype(value.dtype)
  # Divide after the product, which has fewer numbers.
  mixed = _product('BKMS,BKSH->BKMH', weights, value) / total
  out = mixed.astype(query.dtype).reshape(query.shape)
  return out, (query, key, value, weights, total, out)


def _attend_backward(
  form: Logits, kept: tuple[Array, ...], out_grad: Float[Array, 'B K G t H']
) -> tuple[Any, ...]:
  """The gradients. Products are in the dtype of the computation.

  The forward pass keeps only one array of weights.
  """
  query, key, value, weights, total, out = kept
  shape, dtype, float32 = query.shape, query.dtype, jnp.float32
  merged = (*total.shape[:-1], -1)  # The layout of queries in `_logits`.
  query, out, out_grad = (x.reshape(merged) for x in (query, out, out_grad))
  scaled = out_grad.astype(float32) / total
  # A constant added to all logits changes no weight.
  common = (scaled * out.astype(float32)).sum(axis=-1, keepdims=True)
  scaled = scaled.astype(dtype)
  logits_grad = _product('BKMH,BKSH->BKMS', scaled, value) - common
  logits_grad = weights.astype(float32) * logits_grad
  if form.softcap:  # The derivative of tanh, from logits computed again.
    capped = _logits(kept[0], key, form.softcap) / form.softcap
    logits_grad *= 1 - capped * capped
  logits_grad = logits_grad.astype(dtype)
  query_grad = _product('BKMS,BKSH->BKMH', logits_grad, key)
  key_grad = _product('BKMS,BKMH->BKSH', logits_grad, query)
  value_grad = _product('BKMS,BKMH->BKSH', weights, scaled)
  return (
    query_grad.astype(dtype).reshape(shape),
    key_grad.astype(dtype),
    value_grad.astype(dtype),
    *(None, None, None),
  )


_attend.defvjp(_attend_forward, _attend_backward)


def _logits(
  query: Float[Array, 'B K G t H'], key: Float[Array, 'B K S H'], softcap: float
) -> Float[Array, 'B K M S']:
  """Logits in float32 without a mask, M = G x t."""
  batch, groups, _, _, dim = query.shape
  query = query.reshape(batch, groups, -1, dim)
  logits = _product('BKMH,BKSH->BKMS', query, key)
  return softcap * jnp.tanh(logits / softcap) if softcap else logits


def _masked(
  logits: Float[Array, 'B K M S'],
  query_ids: Int[Array, 'B t'],
  key_ids: Int[Array, 'B S'],
  first: Int[Array, ''] | int,
  window: int,
) -> Float[Array, 'B K M S']:
  """Logits, set to the least float32 for keys that a query must not see."""
  shape = (query_ids.shape[1], key_ids.shape[1])
  distance = first + jnp.arange(shape[0])[:, None] - jnp.arange(shape[1])
  seen = query_ids[:, :, None] == key_ids[:, None, :]
  seen &= distance >= 0
  if window:
    seen &= distance < window
  by_query = logits.reshape(*logits.shape[:2], -1, *shape)
  least = jnp.finfo(jnp.float32).min
  return jnp.where(seen[:, None, None], by_query, least).reshape(logits.shape)


def _product(subscripts: str, a: Array, b: Array) -> Float[Array, '...']:
  """An einsum that is accumulated and returned in float32."""
  return jnp.einsum(
    subscripts,
    a,
    b,
    precision=matmul_precision(a.dtype),
    preferred_element_type=jnp.float32,
  )


def matmul_precision(dtype: jnp.dtype) -> lax.Precision:
  """The precision of products in a dtype.

  By default a TPU rounds float32 to bfloat16 before it multiplies. Products of
  bfloat16 are exact by default.
  """
  if dtype == jnp.float32:
    return lax.Precision.HIGHEST
  return lax.Precision.DEFAULT
