"""Attention of packed sequences on NVIDIA GPUs: by cuDNN, or by JAX's Pallas.

cuDNN takes each segment for a sequence of a batch. XLA compiles it for a limit
of segments: for B sequences of T tokens and a limit of S, the batch has B x S
sequences of T tokens each, most of them empty. The backward pass clears and
reads float32 arrays of shape [B x S, heads, T, head_dim] (they would be
[B, heads, T, head_dim] for dense sequences; XLA does not tell cuDNN how many
tokens there are). So its time and its memory grow with S, not with the number
of segments. `fewest_segments_first` makes the mean of a batch a limit, which is
many times less than the maximum.
"""

import functools
import math
import warnings
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from infoprune_jax.model import partitioning

# An older one takes the number of query heads for that of key heads, as it
# computes where segments begin (jax-ml/jax#39521): wrong numbers, no error.
GROUPED_HEADS_VERSION = (0, 11, 2)
# Tokens of a block of JAX's kernel.
BLOCK = 64


def segment_limit(num_segments: int, growth: int = 4) -> int:
  """The limit of segments that a program is compiled for: 2, 8, 32 and so on.

  Few programs are compiled, for limits at most `growth` times as large as
  needed.

  Args:
    num_segments: Segments of a sequence, where padding is one.
    growth: Ratio of one limit to the next.

  >>> segment_limit(2), segment_limit(3), segment_limit(5, growth=2)
  (2, 8, 8)
  """
  limit = 2
  while limit < num_segments:
    limit *= growth
  return limit


def mean_segments(ids: np.ndarray) -> int:
  """The limit that sequences need, fewest segments first; rounded up.

  Args:
    ids: [..., B, T] segments of the B sequences of a device, or of each of
      several.
  """
  begins = (ids[..., 1:] != ids[..., :-1]).sum(axis=-1) + 1
  return math.ceil(begins.mean(axis=-1).max())


def fewest_segments_first(batch: Mapping[str, Array]) -> dict[str, Array]:
  """A batch with each device's sequences in the order that a mean limit needs.

  Args:
    batch: [B, T] arrays by name, `decoder_segment_ids` among them.
  """
  order_by = batch['decoder_segment_ids']
  axes = ('batch', None)

  def sort(ids: Array, *values: Array) -> tuple[Array, ...]:
    order = jnp.argsort((ids[:, 1:] != ids[:, :-1]).sum(axis=1))
    return tuple(x[order] for x in values)

  ordered = partitioning.per_device(
    sort, (axes,) * (1 + len(batch)), (axes,) * len(batch)
  )(order_by, *batch.values())
  return dict(zip(batch, ordered, strict=True))


def segment_table(
  ids: Int[Array, 'B T'], limit: int
) -> tuple[Int[Array, 'B S'], Int[Array, 'B S+1'], Bool[Array, ' B']]:
  """The segments of a device's sequences, in the form that `cudnn` takes.

  JAX joins the lines of the table to one list, and adds the start of sequence b
  to each start in line b. So a line may hold segments of later sequences, and
  the table has room for all if no first b sequences have more than b x limit
  segments. This holds if no sequence has more than `limit`. It holds for
  sequences with `limit` segments on average if those with the fewest come
  first.

  Args:
    ids: Segments of the sequences of one device, where padding is one.
    limit: S, segments of a sequence.

  Returns:
    Length and start of each segment; -1 after the last one. And whether there
    is room for all, the same for each sequence.
  """
  batch, length = ids.shape
  begins = jnp.diff(ids, axis=1, prepend=-1) != 0
  end, places = batch * length, batch * limit
  starts = jnp.nonzero(begins.reshape(-1), size=places, fill_value=end)[0]
  starts = starts.astype(jnp.int32)
  used = starts < end
  offsets = starts - jnp.arange(places, dtype=jnp.int32) // limit * length
  fits = (begins.sum() <= places) & jnp.where(used, offsets >= 0, True).all()
  lengths = jnp.append(starts[1:], end) - starts
  lengths = jnp.where(used, lengths, -1).reshape(batch, limit)
  offsets = jnp.where(used, offsets, -1).reshape(batch, limit)
  offsets = jnp.pad(offsets, ((0, 0), (0, 1)), constant_values=-1)
  return lengths, offsets, jnp.broadcast_to(fits, (batch,))


def cudnn(
  query: Float[Array, 'B T N H'],
  key: Float[Array, 'B T K H'],
  value: Float[Array, 'B T K H'],
  lengths: Int[Array, 'B S'],
  offsets: Int[Array, 'B S+1'],
  fits: Bool[Array, ' B'],
  scale: float,
) -> Float[Array, 'B T N H']:
  """Attention of packed sequences by cuDNN; JAX has no public function for it.

  The result is NaN if the table has no room for all segments.
  """
  from jax._src.cudnn import fused_attention_stablehlo

  if jax.__version_info__ < GROUPED_HEADS_VERSION:
    key, value = _repeated(query, key), _repeated(query, value)
  query = jnp.where(fits[:, None, None, None], query, jnp.nan)
  return fused_attention_stablehlo.dot_product_attention(  # pyright: ignore[reportReturnType]
    query,  # The result is a tuple only with return_residual.
    key,
    value,
    q_seqlen=lengths,
    kv_seqlen=lengths,
    q_offsets=offsets,
    kv_offsets=offsets,
    scale=scale,
    mask_type=fused_attention_stablehlo.MaskType.PADDING_CAUSAL,
  )


def _repeated(
  query: Float[Array, 'B T N H'], x: Float[Array, 'B T K H']
) -> Float[Array, 'B T N H']:
  """Keys or values, once for each of the query heads that share them."""
  return jnp.repeat(x, query.shape[2] // x.shape[2], axis=2)


@functools.cache
def pallas_attention() -> Any:
  """JAX's module of the kernel; None if this JAX has none.

  JAX 0.11 deprecates it.
  """
  with warnings.catch_warnings():
    warnings.simplefilter('ignore', DeprecationWarning)
    try:
      from jax.experimental.pallas.ops.gpu import attention
    except ImportError:
      return None
  return attention


def backward_block(head_dim: int) -> int:
  """Tokens of a block in the backward pass of JAX's kernel.

  On an H200, a layer of 12 heads of 64 dimensions took 2.6 ms with blocks of 64,
  and 4.0 ms with 32, forward and backward, for 64 sequences of 1,024 tokens.
  Five blocks of twice the dimensions exceed the 99 KiB of shared memory of an
  L4 or a 4090.
  """
  return BLOCK if head_dim <= 64 else BLOCK // 2


def pallas(
  query: Float[Array, 'B T N H'],
  key: Float[Array, 'B T K H'],
  value: Float[Array, 'B T K H'],
  ids: Int[Array, 'B T'],
  scale: float,
) -> Float[Array, 'B T N H']:
  """Attention by JAX's kernel in Pallas, which masks what a query must not see.

  Its time depends on the length of sequences, and not on their segments.
  """
  kernel = pallas_attention()
  length = query.shape[1]
  # The kernel takes whole blocks. Tokens added at the end see each other.
  more, backward = -length % BLOCK, backward_block(query.shape[3])
  query, key, value = (
    jnp.pad(x, ((0, 0), (0, more), (0, 0), (0, 0)))
    # With fewer key heads than query heads its numbers are wrong.
    for x in (query, _repeated(query, key), _repeated(query, value))
  )
  mixed = kernel.mha(
    query,
    key,
    value,
    jnp.pad(ids, ((0, 0), (0, more))),
    sm_scale=scale,
    causal=True,
    block_sizes=kernel.BlockSizes(
      block_q=BLOCK,
      block_k=BLOCK,
      block_q_dkv=backward,
      block_kv_dkv=backward,
      block_q_dq=backward,
      block_kv_dq=backward,
    ),
  )
  return mixed[:, :length]
