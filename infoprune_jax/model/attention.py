"""Causal attention within the segments of packed rows."""

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

# Queries go in blocks, each against the keys up to its end: the products that
# the causal mask would throw away are mostly never computed.
MIN_BLOCK = 64
MAX_BLOCKS = 8


def attention(
  query: Float[Array, 'B T N H'],
  key: Float[Array, 'B T K H'],
  value: Float[Array, 'B T K H'],
  segment_ids: Int[Array, 'B T'],
) -> Float[Array, 'B T N H']:
  """Scaled dot-product attention; a token sees its own segment, up to itself.

  N query heads share K key and value heads, N / K each. Softmax in float32.
  Padding (segment 0) attends among itself, so that no row of the softmax is
  empty; nothing reads the result.
  """
  heads, dim = query.shape[2:]
  repeats = heads // key.shape[2]
  # [B, N, T, H], with keys and values repeated: XLA's CPU products are three
  # times as fast in this layout as over grouped heads in place.
  query = query.swapaxes(1, 2) * dim**-0.5
  key = jnp.repeat(key.swapaxes(1, 2), repeats, axis=1)
  value = jnp.repeat(value.swapaxes(1, 2), repeats, axis=1)
  length = query.shape[2]
  block = max(MIN_BLOCK, -(-length // MAX_BLOCKS))
  out = [
    _attend(
      query[:, :, start : start + block],
      key[:, :, : start + block],
      value[:, :, : start + block],
      segment_ids[:, start : start + block],
      segment_ids[:, : start + block],
    )
    for start in range(0, length, block)
  ]
  return jnp.concatenate(out, axis=2).swapaxes(1, 2)


def _attend(
  query: Float[Array, 'B N t H'],
  key: Float[Array, 'B N S H'],
  value: Float[Array, 'B N S H'],
  query_segments: Int[Array, 'B t'],
  key_segments: Int[Array, 'B S'],
) -> Float[Array, 'B N t H']:
  """Attention of the last t of S positions."""
  precision = matmul_precision(query.dtype)
  logits = jnp.einsum(
    'BNTH,BNSH->BNTS',
    query,
    key,
    precision=precision,
    preferred_element_type=jnp.float32,
  )
  length, span = logits.shape[2:]
  causal = jnp.tril(jnp.ones((length, span), bool), k=span - length)
  same = query_segments[:, :, None] == key_segments[:, None, :]
  mask = (same & causal)[:, None]
  logits = jnp.where(mask, logits, jnp.finfo(jnp.float32).min)
  weights = jax.nn.softmax(logits, axis=-1).astype(value.dtype)
  return jnp.einsum('BNTS,BNSH->BNTH', weights, value, precision=precision)


def matmul_precision(dtype: jnp.dtype) -> lax.Precision:
  """Full float32 products in float32: a TPU's default would round to bfloat16.

  In bfloat16 the default is exact already.
  """
  if dtype == jnp.float32:
    return lax.Precision.HIGHEST
  return lax.Precision.DEFAULT
