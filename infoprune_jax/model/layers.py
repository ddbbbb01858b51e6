"""The layers of the decoder, in Flax NNX.

RMSNorm (arXiv 1910.07467) or LayerNorm (arXiv 1607.06450), rotary positions
(arXiv 2104.09864), SwiGLU and GEGLU (arXiv 2002.05202) or GELU, grouped queries
(arXiv 2305.13245), and norms of queries and keys (arXiv 2302.05442). Modules
name the logical axes of their parameters.
"""

import functools
import math

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

from infoprune_jax.config.model import ModelConfig
from infoprune_jax.model import attention as attention_lib, partitioning
from infoprune_jax.model.attention import Logits, Segments, matmul_precision
from infoprune_jax.model.rotary import Rotation, rotary

ACTIVATION = ('batch', 'length', 'activation_embed')
GATE = ('activation_embed', 'mlp')  # for a kernel: gathered over `fsdp`
PROJECTED = ('query_proj', 'key_proj', 'value_proj')
FUNCTIONS = {  # by `ModelConfig.activation`
  'swiglu': jax.nn.silu,
  'geglu': jax.nn.gelu,  # by tanh, as in GPT-2
  'gelu': jax.nn.gelu,
  'gelu_exact': functools.partial(jax.nn.gelu, approximate=False),
}


def concrete(choice: str) -> str:
  """The backend to use: 'xla', which runs anywhere, if `choice` is 'auto'."""
  return 'xla' if choice == 'auto' else choice


def param(
  rngs: nnx.Rngs,
  shape: tuple[int, ...],
  deviation: float,
  axes: tuple[str, ...],
) -> nnx.Param:
  """A float32 matrix, drawn from a normal distribution around 0."""
  value = jax.random.normal(rngs.params(), shape, jnp.float32) * deviation
  return nnx.Param(value, out_sharding=axes)


def product(
  x: Float[Array, 'B T *I'], matrix: Float[Array, '...']
) -> Float[Array, 'B T *O']:
  """The product of x [B, T, *I] with a matrix [*I, *O], in the dtype of `x`."""
  inner = x.ndim - 2
  matrix = matrix.astype(x.dtype)
  precision = matmul_precision(x.dtype)
  if not partitioning.one_device():
    # B and T may be sharded, so they cannot be reshaped into one axis.
    return jnp.tensordot(x, matrix, inner, precision=precision)
  # With one axis in place of B and T, the gradient sums over one axis. A sum
  # over two takes XLA twice as long on a CPU.
  size = math.prod(x.shape[2:])
  out = jnp.matmul(
    x.reshape(-1, size), matrix.reshape(size, -1), precision=precision
  )
  return out.reshape(*x.shape[:2], *matrix.shape[inner:])


def _bias(shape: tuple[int, ...], axes: tuple[str, ...]) -> nnx.Param:
  return nnx.Param(jnp.zeros(shape, jnp.float32), out_sharding=axes)


class Norm(nnx.Module):
  """RMSNorm, or LayerNorm for the kind 'layer'; computed in float32."""

  def __init__(
    self,
    shape: tuple[int, ...],
    axes: tuple[str, ...],
    epsilon: float,
    kind: str = 'rms',
  ):
    """Makes a norm over the last axes of an array, which have this shape."""
    self.epsilon, self.axes = epsilon, tuple(range(-len(shape), 0))
    self.scale = nnx.Param(jnp.ones(shape, jnp.float32), out_sharding=axes)
    self.centred = kind == 'layer'
    if self.centred:
      self.bias = _bias(shape, axes)

  def __call__(self, x: Float[Array, '*B D']) -> Float[Array, '*B D']:
    """The normalised `x`, of the same shape and dtype."""
    x32 = x.astype(jnp.float32)
    if self.centred:
      x32 -= jnp.mean(x32, axis=self.axes, keepdims=True)
    mean_square = jnp.mean(x32 * x32, axis=self.axes, keepdims=True)
    normed = x32 * jax.lax.rsqrt(mean_square + self.epsilon) * self.scale[...]
    if self.centred:
      normed += self.bias[...]
    return normed.astype(x.dtype)


def norm(config: ModelConfig) -> Norm:
  """A norm of the residual stream."""
  width = (config.embed_dim,)
  return Norm(width, ('embed',), config.norm_epsilon, config.norm)


class Attention(nnx.Module):
  """Rotary self-attention with grouped queries."""

  def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
    self.backend = concrete(config.attention)
    width, dim = config.embed_dim, config.head_dim
    heads, kv_heads = config.num_heads, config.num_kv_heads
    self.scale = config.attention_scale or dim**-0.5
    self.softcap = config.attention_softcap
    axes, kv_axes = ('heads', 'head_dim'), ('kv_heads', 'head_dim')
    matrix = functools.partial(param, rngs, deviation=width**-0.5)
    self.query = matrix((width, heads, dim), axes=('embed', *axes))
    self.key = matrix((width, kv_heads, dim), axes=('embed', *kv_axes))
    self.value = matrix((width, kv_heads, dim), axes=('embed', *kv_axes))
    self.query_norm = _head_norm(config, heads, axes)
    self.key_norm = _head_norm(config, kv_heads, kv_axes)
    # Each branch starts smaller by the root of their number, as in GPT-2,
    # because all branches add up in the residual stream.
    deviation = (heads * dim * 2 * config.num_layers) ** -0.5
    self.out = param(rngs, (heads, dim, width), deviation, (*axes, 'embed'))
    biased = config.attention_bias != 'none'
    self.query_bias = _bias((heads, dim), axes) if biased else None
    self.key_bias = _bias((kv_heads, dim), kv_axes) if biased else None
    self.value_bias = _bias((kv_heads, dim), kv_axes) if biased else None
    biased = config.attention_bias == 'all'
    self.out_bias = _bias((width,), ('embed',)) if biased else None

  def __call__(
    self,
    x: Float[Array, 'B T D'],
    rotation: Rotation | None,
    segments: Segments,
    window: int,
  ) -> Float[Array, 'B T D']:
    """Causal attention within segments, over the last `window` positions."""
    query = _plus(product(x, self.query[...]), self.query_bias)
    key = _plus(product(x, self.key[...]), self.key_bias)
    value = _plus(product(x, self.value[...]), self.value_bias)
    query = rotary(_normed(query, self.query_norm), rotation)
    key = rotary(_normed(key, self.key_norm), rotation)
    query, key, value = map(checkpoint_name, (query, key, value), PROJECTED)
    logits = Logits(self.scale, self.softcap, window)
    mixed = attention_lib.attention(
      query, key, value, segments, self.backend, logits
    )
    return _plus(product(mixed, self.out[...]), self.out_bias)


def _head_norm(
  config: ModelConfig, heads: int, axes: tuple[str, ...]
) -> Norm | None:
  """The norm of queries or keys: of each head, or of all heads together.

  With a norm of each head, all heads share one scale.
  """
  if not config.qk_norm:
    return None
  shape = (heads, config.head_dim)
  if config.qk_norm_scope == 'head':
    shape, axes = shape[1:], axes[1:]
  return Norm(shape, axes, config.norm_epsilon)


def _normed(x: Float[Array, '*B D'], norm: Norm | None) -> Array:
  return x if norm is None else norm(x)


def _plus(x: Float[Array, 'B T *O'], bias: nnx.Param | None) -> Array:
  return x if bias is None else x + bias[...].astype(x.dtype)


class MLP(nnx.Module):
  """down(f(gate(x)) * up(x)), or down(f(up(x))) without a gate."""

  def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
    self.kernel = concrete(config.mlp_kernel)
    self.function = FUNCTIONS[config.activation]
    width, hidden = config.embed_dim, config.mlp_dim
    axes, gated, biased = ('embed', 'mlp'), config.is_gated, config.mlp_bias
    matrix = functools.partial(param, rngs, (width, hidden), width**-0.5, axes)
    self.gate = matrix() if gated else None
    self.up = matrix()
    self.down = param(
      rngs,
      (hidden, width),
      (hidden * 2 * config.num_layers) ** -0.5,
      ('mlp', 'embed'),
    )
    self.gate_bias = _bias((hidden,), axes[1:]) if gated and biased else None
    self.up_bias = _bias((hidden,), axes[1:]) if biased else None
    self.down_bias = _bias((width,), axes[:1]) if biased else None

  def __call__(self, x: Float[Array, 'B T D']) -> Float[Array, 'B T D']:
    """The output of the MLP at each position."""
    up, gate = self.up[...], None if self.gate is None else self.gate[...]
    if gate is None:
      inner = self.function(_plus(product(x, up), self.up_bias))
    elif self.kernel == 'hopper':
      inner = partitioning.per_device(
        _gated_by_kernel, (ACTIVATION, GATE, GATE), (*ACTIVATION[:2], 'mlp')
      )(x, gate.astype(x.dtype), up.astype(x.dtype))
    else:
      inner = self.function(_plus(product(x, gate), self.gate_bias))
      inner *= _plus(product(x, up), self.up_bias)
    return _plus(product(inner, self.down[...]), self.down_bias)


def _gated_by_kernel(
  x: Float[Array, 'B T D'], gate: Float[Array, 'D F'], up: Float[Array, 'D F']
) -> Float[Array, 'B T F']:
  # Only a GPU needs this import.
  from infoprune_jax.model.kernels import hopper

  inner = hopper.gated(x.reshape(-1, x.shape[-1]), gate, up)
  return inner.reshape(*x.shape[:2], -1)


class Block(nnx.Module):
  """One layer."""

  def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
    self.parallel = config.parallel_residual
    pre, post = (config.norm_placement != other for other in ('post', 'pre'))
    self.attention_norm = norm(config) if pre else None
    self.attention = Attention(config, rngs=rngs)
    self.attention_post_norm = norm(config) if post else None
    self.mlp_norm = norm(config) if pre else None
    self.mlp = MLP(config, rngs=rngs)
    self.mlp_post_norm = norm(config) if post else None

  def __call__(
    self,
    x: Float[Array, 'B T D'],
    rotation: Rotation | None,
    segments: Segments,
    window: int,
  ) -> Float[Array, 'B T D']:
    """The residual stream `x` plus the outputs of attention and MLP."""
    mixed = self.attention(
      _normed(x, self.attention_norm), rotation, segments, window
    )
    after = x + _normed(mixed, self.attention_post_norm)
    inner = self.mlp(_normed(x if self.parallel else after, self.mlp_norm))
    return partitioning.constrain(
      after + _normed(inner, self.mlp_post_norm), ACTIVATION
    )
