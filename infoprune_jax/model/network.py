"""The decoder-only language model, in Flax NNX.

Pre-norm RMSNorm (arXiv 1910.07467), rotary positions (arXiv 2104.09864),
SwiGLU (arXiv 2002.05202) or GELU, grouped queries (arXiv 2305.13245), and norms
of queries and keys (arXiv 2302.05442) if wanted. Modules name logical axes; at
the jit boundary parameters are a plain nested dict.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, Int

from infoprune_jax.config.model import ModelConfig
from infoprune_jax.model import attention as attention_lib, partitioning
from infoprune_jax.model.attention import (
  Rotation,
  Segments,
  matmul_precision,
  rotary,
  rotation,
)
from infoprune_jax.model.losses import token_nll, weighted_nll

ACTIVATION = ('batch', 'length', 'activation_embed')
GATE = ('activation_embed', 'mlp')  # as a kernel wants it: gathered over `fsdp`
PROJECTED = ('query_proj', 'key_proj', 'value_proj')
# What `jax.checkpoint` may keep of a layer, by `ModelConfig.remat`.
KEPT = {
  'minimal': jax.checkpoint_policies.checkpoint_dots_with_no_batch_dims,
  'save_qkv_proj': jax.checkpoint_policies.save_only_these_names(*PROJECTED),
  'full': jax.checkpoint_policies.nothing_saveable,
}


def concrete(choice: str) -> str:
  """A backend that runs anywhere, where none was chosen for a device."""
  return 'xla' if choice == 'auto' else choice


def _param(
  rngs: nnx.Rngs,
  shape: tuple[int, ...],
  deviation: float,
  axes: tuple[str, ...],
) -> nnx.Param:
  """A float32 matrix, normal with this deviation."""
  value = jax.random.normal(rngs.params(), shape, jnp.float32) * deviation
  return nnx.Param(value, out_sharding=axes)


def product(
  x: Float[Array, 'B T *I'], matrix: Float[Array, '...']
) -> Float[Array, 'B T *O']:
  """Sums over the axes of `x` after B and T, the first ones of `matrix`.

  In the dtype of `x`.
  """
  inner = x.ndim - 2
  matrix = matrix.astype(x.dtype)
  precision = matmul_precision(x.dtype)
  if not partitioning.one_device():
    # Sequences and positions may be spread: together they could not be.
    return jnp.tensordot(x, matrix, inner, precision=precision)
  # The gradient then sums over one axis: over two, XLA's products on a CPU take
  # twice as long.
  size = math.prod(x.shape[2:])
  out = jnp.matmul(
    x.reshape(-1, size), matrix.reshape(size, -1), precision=precision
  )
  return out.reshape(*x.shape[:2], *matrix.shape[inner:])


class RMSNorm(nnx.Module):
  """x / rms(x), scaled; computed in float32."""

  def __init__(self, size: int, axis: str, epsilon: float):
    self.epsilon = epsilon
    self.scale = nnx.Param(jnp.ones((size,), jnp.float32), out_sharding=(axis,))

  def __call__(self, x: Float[Array, '*B D']) -> Float[Array, '*B D']:
    """Normalises the last axis."""
    x32 = x.astype(jnp.float32)
    mean_square = jnp.mean(x32 * x32, axis=-1, keepdims=True)
    normed = x32 * jax.lax.rsqrt(mean_square + self.epsilon)
    return (normed * self.scale[...]).astype(x.dtype)


class Attention(nnx.Module):
  """Rotary self-attention with grouped queries."""

  def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
    self.backend = concrete(config.attention)
    width, dim = config.embed_dim, config.head_dim
    heads, kv_heads = config.num_heads, config.num_kv_heads
    kv_axes = ('embed', 'kv_heads', 'head_dim')
    self.query = _param(
      rngs, (width, heads, dim), width**-0.5, ('embed', 'heads', 'head_dim')
    )
    self.key = _param(rngs, (width, kv_heads, dim), width**-0.5, kv_axes)
    self.value = _param(rngs, (width, kv_heads, dim), width**-0.5, kv_axes)
    self.norms = config.qk_norm
    if config.qk_norm:  # One scale for all heads.
      self.query_norm = RMSNorm(dim, 'head_dim', config.norm_epsilon)
      self.key_norm = RMSNorm(dim, 'head_dim', config.norm_epsilon)
    # Branches add up in the residual stream: they start smaller, as in GPT-2.
    self.out = _param(
      rngs,
      (heads, dim, width),
      (heads * dim * 2 * config.num_layers) ** -0.5,
      ('heads', 'head_dim', 'embed'),
    )

  def __call__(
    self,
    x: Float[Array, 'B T D'],
    rotation: Rotation,
    segments: Segments,
  ) -> Float[Array, 'B T D']:
    """Mixes positions within segments, causally."""
    query = product(x, self.query[...])
    key = product(x, self.key[...])
    value = product(x, self.value[...])
    if self.norms:
      query, key = self.query_norm(query), self.key_norm(key)
    query = rotary(query, rotation)
    key = rotary(key, rotation)
    query, key, value = map(checkpoint_name, (query, key, value), PROJECTED)
    mixed = attention_lib.attention(query, key, value, segments, self.backend)
    return product(mixed, self.out[...])


class MLP(nnx.Module):
  """silu(x gate) * (x up), or gelu(x up) without a gate, projected down."""

  def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
    self.loss_kernel = concrete(config.loss_kernel)
    width, hidden = config.embed_dim, config.mlp_dim
    axes = ('embed', 'mlp')
    self.gated = config.activation == 'swiglu'
    if self.gated:
      self.gate = _param(rngs, (width, hidden), width**-0.5, axes)
    self.up = _param(rngs, (width, hidden), width**-0.5, axes)
    self.down = _param(
      rngs,
      (hidden, width),
      (hidden * 2 * config.num_layers) ** -0.5,
      ('mlp', 'embed'),
    )

  def __call__(self, x: Float[Array, 'B T D']) -> Float[Array, 'B T D']:
    """Transforms each position by itself."""
    up, down = self.up[...], self.down[...]
    if not self.gated:
      return product(jax.nn.gelu(product(x, up)), down)  # By tanh, as in GPT-2.
    gate = self.gate[...]
    if self.loss_kernel == 'hopper':
      inner = partitioning.per_device(
        _gated_by_kernel, (ACTIVATION, GATE, GATE), (*ACTIVATION[:2], 'mlp')
      )(x, gate.astype(x.dtype), up.astype(x.dtype))
    else:
      inner = jax.nn.silu(product(x, gate)) * product(x, up)
    return product(inner, down)


def _gated_by_kernel(
  x: Float[Array, 'B T D'], gate: Float[Array, 'D F'], up: Float[Array, 'D F']
) -> Float[Array, 'B T F']:
  # Imports what only a GPU needs.
  from infoprune_jax.model.kernels import hopper

  inner = hopper.gated(x.reshape(-1, x.shape[-1]), gate, up)
  return inner.reshape(*x.shape[:2], -1)


class Block(nnx.Module):
  """One layer."""

  def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
    norm = functools.partial(
      RMSNorm, config.embed_dim, 'embed', config.norm_epsilon
    )
    self.attention_norm = norm()
    self.attention = Attention(config, rngs=rngs)
    self.mlp_norm = norm()
    self.mlp = MLP(config, rngs=rngs)

  def __call__(
    self,
    x: Float[Array, 'B T D'],
    rotation: Rotation,
    segments: Segments,
  ) -> Float[Array, 'B T D']:
    """Adds both branches to the residual stream."""
    x = x + self.attention(self.attention_norm(x), rotation, segments)
    x = x + self.mlp(self.mlp_norm(x))
    return partitioning.constrain(x, ACTIVATION)


class Decoder(nnx.Module):
  """Token ids to final hidden states."""

  def __init__(self, config: ModelConfig, vocab_size: int, *, rngs: nnx.Rngs):
    self.config = config
    width = config.embed_dim
    # Small, as in GPT-2: a tied head starts out near uniform.
    self.embedding = _param(rngs, (vocab_size, width), 0.02, ('vocab', 'embed'))

    @nnx.split_rngs(splits=config.num_layers)
    @nnx.vmap(transform_metadata={nnx.PARTITION_NAME: 'layers'})
    def stacked(rngs: nnx.Rngs) -> Block:
      return Block(config, rngs=rngs)

    self.layers = stacked(rngs)
    self.final_norm = RMSNorm(width, 'embed', config.norm_epsilon)
    if not config.tie_embeddings:
      self.head = _param(
        rngs, (width, vocab_size), width**-0.5, ('embed', 'vocab')
      )

  def __call__(
    self,
    tokens: Int[Array, 'B T'],
    positions: Int[Array, 'B T'],
    segments: Segments,
  ) -> Float[Array, 'B T D']:
    """Final hidden states, in the dtype of the computation."""
    dtype = jnp.dtype(self.config.dtype)
    x = self.embedding[...].astype(dtype)[tokens]
    x = partitioning.constrain(x, ACTIVATION)
    graph, stacked = nnx.split(self.layers)
    rotated = rotation(positions, self.config.head_dim, self.config.rope_theta)

    def one_layer(x, layer):
      return nnx.merge(graph, layer)(x, rotated, segments), None

    if self.config.remat != 'none':
      one_layer = jax.checkpoint(one_layer, policy=KEPT[self.config.remat])
    x, _ = jax.lax.scan(
      one_layer,
      x,
      stacked,
      unroll=min(self.config.scan_unroll, self.config.num_layers),
    )
    return self.final_norm(x)

  def output_head(self) -> Float[Array, 'D V']:
    """The projection to the vocabulary, in the dtype of the computation."""
    dtype = jnp.dtype(self.config.dtype)
    if self.config.tie_embeddings:
      return self.embedding[...].astype(dtype).T
    return self.head[...].astype(dtype)


def _build(config: ModelConfig, vocab_size: int, key: Array) -> Decoder:
  # Shardings are set at the jit boundary, by partitioning's own rules.
  with nnx.use_eager_sharding(False):
    return Decoder(config, vocab_size, rngs=nnx.Rngs(key))


@functools.lru_cache(maxsize=8)
def abstract(config: ModelConfig, vocab_size: int) -> tuple[Any, Any]:
  """The graph of the model and the shapes of its state, without arrays."""
  graphs = []

  def build() -> Any:
    graph, state = nnx.split(_build(config, vocab_size, jax.random.key(0)))
    graphs.append(graph)
    return state

  state = jax.eval_shape(build)
  return graphs[0], state


def param_shapes(config: ModelConfig, vocab_size: int) -> dict[str, Any]:
  """A nested dict of `jax.ShapeDtypeStruct`."""
  return nnx.to_pure_dict(abstract(config, vocab_size)[1])


def param_axes(config: ModelConfig, vocab_size: int) -> dict[str, Any]:
  """The same nested dict of tuples of logical axes."""
  _, state = abstract(config, vocab_size)
  axes = jax.tree.map(
    lambda variable: tuple(variable.out_sharding),
    state,
    is_leaf=lambda node: isinstance(node, nnx.Variable),
  )
  return nnx.to_pure_dict(axes)


def init_params(
  config: ModelConfig, vocab_size: int, key: Array
) -> dict[str, Any]:
  """Fresh float32 parameters; the same on any mesh."""
  return nnx.to_pure_dict(nnx.state(_build(config, vocab_size, key)))


def cast_params(params: dict[str, Any], dtype: str) -> dict[str, Any]:
  """Matrices in the dtype of the computation, norms in float32.

  The network casts them so wherever it uses them; done once it costs nothing.
  """
  return jax.tree_util.tree_map_with_path(
    lambda path, leaf: leaf if path[-1].key == 'scale' else leaf.astype(dtype),
    params,
  )


def batch_nll(
  config: ModelConfig,
  params: dict[str, Any],
  batch: dict[str, Array],
  max_segments: int = 0,
) -> Float[Array, 'B T']:
  """The NLL of each target of packed sequences, nats, float32; padding included.

  Args:
    config: The model.
    params: As `init_params`.
    batch: `decoder_*` arrays of shape [B, T], see `batches.packing`.
    max_segments: At least the segments of any sequence, with padding; 0 if
      unknown. cuDNN's attention is slower the larger it is; others need it not.
  """
  model, hidden = _final_hidden(config, params, batch, max_segments)
  return token_nll(
    hidden,
    model.output_head(),
    batch['decoder_target_tokens'],
    tile=config.loss_chunk_tokens,
    loss_kernel=concrete(config.loss_kernel),
    softcap=config.logit_softcap,
  )


def batch_loss(
  config: ModelConfig,
  params: dict[str, Any],
  batch: dict[str, Array],
  weights: Float[Array, 'B T'],
  z_loss: float,
  max_segments: int = 0,
) -> tuple[Float[Array, ''], Float[Array, 'B T'], Float[Array, 'B T']]:
  """The weighted sum to differentiate, NLL and log(Z): see `weighted_nll`.

  Arguments as for `batch_nll`, and `weighted_nll`'s own.
  """
  model, hidden = _final_hidden(config, params, batch, max_segments)
  return weighted_nll(
    hidden,
    model.output_head(),
    batch['decoder_target_tokens'],
    weights,
    z_loss=z_loss,
    tile=config.loss_chunk_tokens,
    softcap=config.logit_softcap,
  )


def _final_hidden(
  config: ModelConfig,
  params: dict[str, Any],
  batch: dict[str, Array],
  max_segments: int,
) -> tuple[Decoder, Float[Array, 'B T D']]:
  """The model with its parameters, and what it makes of a batch."""
  vocab_size = params['embedding'].shape[0]
  graph, state = abstract(config, vocab_size)
  state = jax.tree.map(lambda x: x, state)  # A copy: it is filled in place.
  nnx.replace_by_pure_dict(state, params)
  model = nnx.merge(graph, state)
  segments = attention_lib.segments(
    batch['decoder_segment_ids'],
    concrete(config.attention),
    max_segments or batch['decoder_segment_ids'].shape[1],
  )
  hidden = model(
    batch['decoder_input_tokens'], batch['decoder_positions'], segments
  )
  return model, hidden
