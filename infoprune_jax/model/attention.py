"""Rotary positions, and causal attention within segments, by backend."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from infoprune_jax.model import partitioning

# Queries go in blocks, each against the keys up to its end: the products that
# the causal mask would throw away are mostly never computed.
MIN_BLOCK = 64
MAX_BLOCKS = 8
SPLASH_BLOCKS = (512, 384, 256, 128)  # tokens; one must divide a sequence
QUERY = ('batch', 'length', 'heads', 'head_dim')
KEY = ('batch', 'length', 'kv_heads', 'head_dim')
rows = ('batch', 'length')
WHOLE_KEY = ('batch', None, 'kv_heads', 'head_dim')
WHOLE_ROWS = ('batch', None)


class Rotation(NamedTuple):
  """Cosine and sine of the angle of each pair of dimensions, float32."""

  cos: Float[Array, 'B T 1 H/2']
  sin: Float[Array, 'B T 1 H/2']


def rotation(
  positions: Int[Array, 'B T'], head_dim: int, theta: float
) -> Rotation:
  """The angles of rotary positions (arXiv 2104.09864), once for all layers."""
  half = head_dim // 2
  frequency = theta ** -(jnp.arange(half, dtype=jnp.float32) / half)
  # A table of all positions: XLA would fuse the formula into every use.
  position = jnp.arange(positions.shape[1], dtype=jnp.float32)
  angle = position[:, None] * frequency
  cos, sin = (f(angle)[positions][:, :, None] for f in (jnp.cos, jnp.sin))
  return Rotation(cos, sin)


def rotary(
  x: Float[Array, 'B T N H'], rotation: Rotation
) -> Float[Array, 'B T N H']:
  """Rotates pairs of dimensions by an angle that grows with position."""
  cos, sin = rotation
  x1, x2 = jnp.split(x.astype(jnp.float32), 2, axis=-1)
  rotated = jnp.concatenate([x1 * cos - x2 * sin, x2 * cos + x1 * sin], axis=-1)
  return rotated.astype(x.dtype)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Segments:
  """Which tokens of packed sequences belong together, as a backend wants to know."""

  ids: Int[Array, 'B T']  # from 1 in each sequence; 0 is padding, at its end
  # Of cuDNN: of each segment, where padding is one as well; -1 for no more.
  lengths: Int[Array, 'B S'] | None
  offsets: Int[Array, 'B S+1'] | None


def segment_limit(max_segments: int) -> int:
  """2, 8, 32 and so on: room for sequences of so many segments, and for padding.

  A program has at most four times what it needs, and there are few programs.

  >>> segment_limit(1), segment_limit(2)
  (2, 8)
  """
  limit = 2
  while limit < max_segments + 1:
    limit *= 4
  return limit


def segments(
  ids: Int[Array, 'B T'], backend: str, max_segments: int
) -> Segments:
  """What `attention` needs, once for all layers.

  Args:
    ids: Segments count from 1 in each sequence; 0 is padding, at the sequence's
      end.
    backend: As for `attention`.
    max_segments: At least the segments of any sequence, with padding; of cuDNN.
  """
  if backend != 'cudnn':
    return Segments(ids, None, None)
  last = ids.max(axis=1, keepdims=True) + 1
  numbered = jnp.where(ids == 0, last, ids)[:, None]
  number = jnp.arange(1, max_segments + 1)[:, None]
  lengths = (numbered == number).sum(axis=2, dtype=jnp.int32)
  ends = jnp.cumsum(lengths, axis=1)
  starts = jnp.where(lengths > 0, ends - lengths, -1)
  offsets = jnp.pad(starts, ((0, 0), (0, 1)), constant_values=-1)
  return Segments(ids, jnp.where(lengths > 0, lengths, -1), offsets)


def attention(
  query: Float[Array, 'B T N H'],
  key: Float[Array, 'B T K H'],
  value: Float[Array, 'B T K H'],
  segments: Segments,
  backend: str,
) -> Float[Array, 'B T N H']:
  """Scaled dot-product attention; a token sees its own segment, up to itself.

  N query heads share K key and value heads, N / K each. Softmax in float32.
  Padding (segment 0) attends among itself, so that no row of the softmax is
  empty; nothing reads the result.

  Args:
    query: Of the dtype of the computation, as are the others.
    key: Likewise.
    value: Likewise.
    segments: As `segments` gives them.
    backend: 'xla', 'cudnn' (packed; NVIDIA), or 'splash' (TPU).
  """
  if backend == 'xla':
    ids = segments.ids
    if partitioning.num_shards('length') == 1:
      return _xla(query, key, value, ids, ids)
    # Each device has its shard of the queries, and gathers all keys.
    return partitioning.per_device(
      _xla, (QUERY, WHOLE_KEY, WHOLE_KEY, rows, WHOLE_ROWS), QUERY
    )(query, key, value, ids, ids)
  if backend == 'splash':
    length, heads = query.shape[1:3]
    kernel = _splash_kernel(
      length,
      heads // partitioning.num_shards('heads'),
      partitioning.num_shards('length'),
    )
    where = partitioning.mapped(kernel.manual_sharding_spec, (None, 'length'))
    axes = (QUERY, WHOLE_KEY, WHOLE_KEY, rows, WHOLE_ROWS, where)
    return partitioning.per_device(_splash, axes, QUERY)(
      query, key, value, segments.ids, segments.ids, kernel
    )
  return partitioning.per_device(
    _cudnn, (QUERY, KEY, KEY, ('batch', None), ('batch', None)), QUERY
  )(query, key, value, segments.lengths, segments.offsets)


def _splash_kernel(length: int, heads: int, num_shards: int) -> Any:
  """JAX's splash attention, for queries of sequences cut in so many shards.

  Which blocks of keys a shard needs is in arrays, which go with the queries:
    all
  devices run one program.
  """
  from jax.experimental.pallas.ops.tpu import splash_attention as splash

  causal = splash.CausalMask((length, length), shard_count=num_shards)
  block = next(
    size for size in SPLASH_BLOCKS if length // num_shards % size == 0
  )
  return splash.make_splash_mha(
    splash.MultiHeadMask([causal] * heads),
    head_shards=1,
    q_seq_shards=num_shards,
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
  """Blocks of other segments and the future are skipped."""
  from jax.experimental.pallas.ops.tpu import splash_attention as splash

  query, key, value = (x.swapaxes(1, 2) for x in (query, key, value))
  mixed = jax.vmap(kernel)(
    query * query.shape[-1] ** -0.5,
    key,
    value,
    splash.SegmentIds(query_ids, key_ids),
  )
  return mixed.swapaxes(1, 2)


def _cudnn(
  query: Float[Array, 'B T N H'],
  key: Float[Array, 'B T K H'],
  value: Float[Array, 'B T K H'],
  lengths: Int[Array, 'B S'],
  offsets: Int[Array, 'B S+1'],
) -> Float[Array, 'B T N H']:
  """Packed sequences by cuDNN; JAX's own door to them is private."""
  from jax._src.cudnn import fused_attention_stablehlo as cudnn

  return cudnn.dot_product_attention(  # pyright: ignore[reportReturnType]
    query,  # A tuple only with return_residual.
    key,
    value,
    q_seqlen=lengths,
    kv_seqlen=lengths,
    q_offsets=offsets,
    kv_offsets=offsets,
    scale=query.shape[-1] ** -0.5,
    mask_type=cudnn.MaskType.PADDING_CAUSAL,
  )


def _xla(
  query: Float[Array, 'B t N H'],
  key: Float[Array, 'B T K H'],
  value: Float[Array, 'B T K H'],
  query_ids: Int[Array, 'B t'],
  key_ids: Int[Array, 'B T'],
) -> Float[Array, 'B t N H']:
  """Attention of whole sequences, or of this device's shard of their queries."""
  batch, length, heads, dim = query.shape
  span, groups = key.shape[1:3]
  # The queries that share keys go in one product with them: XLA's CPU products
  # over this layout are the fastest, and keys are not repeated.
  query = (query * dim**-0.5).reshape(batch, length, groups, -1, dim)
  query = query.transpose(0, 2, 3, 1, 4)
  key, value = key.swapaxes(1, 2), value.swapaxes(1, 2)
  first = partitioning.axis_index('length') * length if length < span else 0
  block = max(MIN_BLOCK, -(-length // MAX_BLOCKS))
  out = []
  for start in range(0, length, block):
    # Every device runs one program, so that a shard cannot leave keys out.
    end = start + block if length == span else span
    out.append(
      _attend(
        query[:, :, :, start : start + block],
        key[:, :, :end],
        value[:, :, :end],
        query_ids[:, start : start + block],
        key_ids[:, :end],
        first + start,
      )
    )
  mixed = jnp.concatenate(out, axis=3).transpose(0, 3, 1, 2, 4)
  return mixed.reshape(batch, length, heads, dim)


@jax.custom_vjp
def _attend(
  query: Float[Array, 'B K G t H'],
  key: Float[Array, 'B K S H'],
  value: Float[Array, 'B K S H'],
  query_ids: Int[Array, 'B t'],
  key_ids: Int[Array, 'B S'],
  first: Int[Array, ''] | int,
) -> Float[Array, 'B K G t H']:
  """Attention of t positions from `first` to the S positions from 0."""
  return _attend_forward(query, key, value, query_ids, key_ids, first)[0]


def _attend_forward(
  query: Array,
  key: Array,
  value: Array,
  query_ids: Array,
  key_ids: Array,
  first: Array | int,
) -> tuple[Array, tuple[Array, ...]]:
  logits = _masked_logits(query, key, query_ids, key_ids, first)
  weights = jnp.exp(logits - logits.max(axis=-1, keepdims=True))
  total = weights.sum(axis=-1, keepdims=True)
  weights = weights.astype(value.dtype)
  # Divided after the product: there are fewer numbers.
  mixed = _product('BKMS,BKSH->BKMH', weights, value) / total
  out = mixed.astype(query.dtype).reshape(query.shape)
  return out, (query, key, value, weights, total, out)


def _attend_backward(
  kept: tuple[Array, ...], out_grad: Float[Array, 'B K G t H']
) -> tuple[Any, ...]:
  """Each product in the dtype of the computation, and with weights kept once."""
  query, key, value, weights, total, out = kept
  shape, dtype, float32 = query.shape, query.dtype, jnp.float32
  merged = (*total.shape[:-1], -1)  # As `_masked_logits` has queries.
  query, out, out_grad = (x.reshape(merged) for x in (query, out, out_grad))
  scaled = out_grad.astype(float32) / total
  # A change of all logits by as much changes nothing.
  common = (scaled * out.astype(float32)).sum(axis=-1, keepdims=True)
  scaled = scaled.astype(dtype)
  logits_grad = _product('BKMH,BKSH->BKMS', scaled, value) - common
  logits_grad = (weights.astype(float32) * logits_grad).astype(dtype)
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


def _masked_logits(
  query: Float[Array, 'B K G t H'],
  key: Float[Array, 'B K S H'],
  query_ids: Int[Array, 'B t'],
  key_ids: Int[Array, 'B S'],
  first: Int[Array, ''] | int,
) -> Float[Array, 'B K M S']:
  """Logits in float32, M = G x t; those that a query must not see are least."""
  batch, groups, _, length, dim = query.shape
  logits = _product(
    'BKMH,BKSH->BKMS', query.reshape(batch, groups, -1, dim), key
  )
  causal = first + jnp.arange(length)[:, None] >= jnp.arange(key.shape[2])
  same = query_ids[:, :, None] == key_ids[:, None, :]
  by_query = logits.reshape(batch, groups, -1, *causal.shape)
  least = jnp.finfo(jnp.float32).min
  masked = jnp.where((same & causal)[:, None, None], by_query, least)
  return masked.reshape(logits.shape)


def _product(subscripts: str, a: Array, b: Array) -> Float[Array, '...']:
  """An einsum accumulated in float32, as it stays."""
  return jnp.einsum(
    subscripts,
    a,
    b,
    precision=matmul_precision(a.dtype),
    preferred_element_type=jnp.float32,
  )


def matmul_precision(dtype: jnp.dtype) -> lax.Precision:
  """Full float32 products in float32: a TPU's default would round to bfloat16.

  In bfloat16 the default is exact already.
  """
  if dtype == jnp.float32:
    return lax.Precision.HIGHEST
  return lax.Precision.DEFAULT
