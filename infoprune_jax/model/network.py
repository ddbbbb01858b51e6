"""The decoder-only language model: its parameters, and the NLL of a batch.

Functions that are compiled take the parameters as a plain nested dict.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from infoprune_jax.config.model import LayerKind, ModelConfig
from infoprune_jax.model import (
  attention as attention_lib,
  embedding,
  partitioning,
)
from infoprune_jax.model.attention import Segments, matmul_precision
from infoprune_jax.model.layers import (
  ACTIVATION,
  PROJECTED,
  Block,
  concrete,
  norm,
  param,
)
from infoprune_jax.model.losses import token_statistics, weighted_nll
from infoprune_jax.model.rotary import rotation

# Where neither the config nor the memory of a device says more.
LOSS_CHUNK_TOKENS, SCAN_UNROLL = 2048, 4
# What `jax.checkpoint` may keep of a layer, by `ModelConfig.remat`.
KEPT = {
  'minimal': jax.checkpoint_policies.checkpoint_dots_with_no_batch_dims,
  'save_qkv_proj': jax.checkpoint_policies.save_only_these_names(*PROJECTED),
  'full': jax.checkpoint_policies.nothing_saveable,
}


class Decoder(nnx.Module):
  """Token ids to final hidden states."""

  def __init__(self, config: ModelConfig, vocab_size: int, *, rngs: nnx.Rngs):
    self.config = config
    width = config.embed_dim
    # As small as in GPT-2: with tied embeddings, the first predictions are then
    # near uniform.
    self.embedding = param(rngs, (vocab_size, width), 0.02, ('vocab', 'embed'))
    if config.max_positions:
      shape, axes = (config.max_positions, width), ('positions', 'embed')
      self.position_embedding = param(rngs, shape, 0.02, axes)

    @nnx.split_rngs(splits=config.num_layers)
    @nnx.vmap(transform_metadata={nnx.PARTITION_NAME: 'layers'})
    def stacked(rngs: nnx.Rngs) -> Block:
      return Block(config, rngs=rngs)

    self.layers = stacked(rngs)
    self.final_norm = norm(config)
    if not config.tie_embeddings:
      shape, axes = (width, vocab_size), ('embed', 'vocab')
      self.head = param(rngs, shape, width**-0.5, axes)

  def __call__(
    self,
    tokens: Int[Array, 'B T'],
    positions: Int[Array, 'B T'],
    segments: Segments,
  ) -> Float[Array, 'B T D']:
    """Final hidden states, in the dtype of the computation."""
    x = self._embedded(tokens, positions)
    kinds = self.config.layer_kinds
    graph, stacked = nnx.split(self.layers)
    layers = [self._layer(graph, kind, positions, segments) for kind in kinds]
    # Scan over groups of layers, with one layer of each kind in a group. The
    # layers left over follow.
    groups = self.config.num_layers // len(kinds)
    whole = groups * len(kinds)
    grouped = jax.tree.map(
      lambda p: p[:whole].reshape(groups, len(kinds), *p.shape[1:]), stacked
    )

    def group(x: Array, group_params: Any) -> tuple[Array, None]:
      for number, layer in enumerate(layers):
        x = layer(x, jax.tree.map(lambda p, i=number: p[i], group_params))
      return x, None

    unroll = (self.config.scan_unroll or SCAN_UNROLL) // len(kinds)
    unroll = max(1, min(unroll, groups))
    x, _ = jax.lax.scan(group, x, grouped, unroll=unroll)
    for number in range(whole, self.config.num_layers):
      params = jax.tree.map(lambda p, i=number: p[i], stacked)
      x = layers[number - whole](x, params)
    return self.final_norm(x)

  def _embedded(
    self, tokens: Int[Array, 'B T'], positions: Int[Array, 'B T']
  ) -> Float[Array, 'B T D']:
    dtype = jnp.dtype(self.config.dtype)
    x = embedding.look_up(self.embedding[...].astype(dtype), tokens, 'vocab')
    if self.config.embed_scale != 1.0:
      x *= jnp.asarray(self.config.embed_scale, dtype)
    if self.config.max_positions:
      table = self.position_embedding[...].astype(dtype)
      x += embedding.look_up(table, positions, 'positions')
    return partitioning.constrain(x, ACTIVATION)

  def _layer(
    self,
    graph: Any,
    kind: LayerKind,
    positions: Int[Array, 'B T'],
    segments: Segments,
  ) -> Callable[[Array, Any], Array]:
    """A layer of one kind, as a function of hidden states and parameters."""
    rotated = rotation(positions, self.config.head_dim, kind)

    def layer(x: Array, params: Any) -> Array:
      return nnx.merge(graph, params)(x, rotated, segments, kind.window)

    if self.config.remat not in KEPT:
      return layer
    return jax.checkpoint(layer, policy=KEPT[self.config.remat])

  def output_head(self) -> Float[Array, 'D V']:
    """The projection to the vocabulary, in the dtype of the computation."""
    dtype = jnp.dtype(self.config.dtype)
    if self.config.tie_embeddings:
      return self.embedding[...].astype(dtype).T
    return self.head[...].astype(dtype)


def _build(config: ModelConfig, vocab_size: int, key: Array) -> Decoder:
  # `partitioning` sets the shardings, where a function is compiled.
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
  """A nested dict like `param_shapes`, of tuples of logical axes."""
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
  """Casts matrices to the dtype of the computation; norms stay float32.

  The network casts each parameter where it uses it. Scoring casts them all once
  instead, before the first batch.
  """
  return jax.tree_util.tree_map_with_path(
    lambda path, leaf: (
      leaf if path[-1].key in ('scale', 'bias') else leaf.astype(dtype)
    ),
    params,
  )


def batch_statistics(
  config: ModelConfig,
  params: dict[str, Any],
  batch: dict[str, Array],
  segment_limit: int = 0,
  names: tuple[str, ...] = ('nll',),
) -> dict[str, Float[Array, 'B T']]:
  """Statistics of each target token of packed sequences, padding included.

  Args:
    config: The model.
    params: As `init_params`.
    batch: `decoder_*` arrays of shape [B, T], see `batches.packing`.
    segment_limit: Segments of a sequence, where padding is one, see
      `gpu_attention.segment_table`; 0 if unknown. Only cuDNN's attention uses
      it, and is slower the larger it is.
    names: As for `losses.token_statistics`.

  Returns:
    float32, by name; 'nll' is in nats.
  """
  model, hidden = _final_hidden(config, params, batch, segment_limit)
  return token_statistics(
    hidden,
    model.output_head(),
    batch['decoder_target_tokens'],
    names=names,
    tile=config.loss_chunk_tokens or LOSS_CHUNK_TOKENS,
    loss_kernel=concrete(config.loss_kernel),
    softcap=config.logit_softcap,
  )


def batch_loss(
  config: ModelConfig,
  params: dict[str, Any],
  batch: dict[str, Array],
  weights: Float[Array, 'B T'],
  z_loss: float,
  segment_limit: int = 0,
) -> tuple[Float[Array, ''], Float[Array, 'B T'], Float[Array, 'B T']]:
  """The loss to differentiate, and NLL and log(Z) of each token.

  The results are those of `weighted_nll`. The arguments are those of
  `batch_statistics` and of `weighted_nll`.
  """
  model, hidden = _final_hidden(config, params, batch, segment_limit)
  return weighted_nll(
    hidden,
    model.output_head(),
    batch['decoder_target_tokens'],
    weights,
    z_loss=z_loss,
    tile=config.loss_chunk_tokens or LOSS_CHUNK_TOKENS,
    softcap=config.logit_softcap,
  )


def next_token(
  config: ModelConfig,
  params: dict[str, Any],
  batch: dict[str, Array],
  position: Int[Array, ' B'],
) -> Int[Array, ' B']:
  """The most likely token after a position of each sequence.

  Args:
    config: The model.
    params: As `init_params`.
    batch: `decoder_input_tokens`, `decoder_positions` and
      `decoder_segment_ids`, [B, T] int32.
    position: Position of the last token to read in each sequence, from 0.
  """
  model, hidden = _final_hidden(config, params, batch, 0)
  last = jnp.take_along_axis(hidden, position[:, None, None], axis=1)
  # A soft cap keeps the order of logits, so it is left out here.
  logits = jnp.matmul(
    last[:, 0],
    model.output_head(),
    precision=matmul_precision(hidden.dtype),
    preferred_element_type=jnp.float32,
  )
  return jnp.argmax(logits, axis=-1).astype(jnp.int32)


def _final_hidden(
  config: ModelConfig,
  params: dict[str, Any],
  batch: dict[str, Array],
  segment_limit: int,
) -> tuple[Decoder, Float[Array, 'B T D']]:
  """The model with its parameters, and the final hidden states of a batch."""
  vocab_size = params['embedding'].shape[0]
  graph, state = abstract(config, vocab_size)
  state = jax.tree.map(lambda x: x, state)  # A copy, because it is changed.
  nnx.replace_by_pure_dict(state, params)
  model = nnx.merge(graph, state)
  segments = attention_lib.segments(
    batch['decoder_segment_ids'],
    concrete(config.attention),
    segment_limit or batch['decoder_segment_ids'].shape[1],
  )
  hidden = model(
    batch['decoder_input_tokens'], batch['decoder_positions'], segments
  )
  return model, hidden
