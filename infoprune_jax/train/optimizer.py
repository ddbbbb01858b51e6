"""The optimizers and their schedules, made with optax."""

import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import optax
import optax.contrib

from infoprune_jax.config.training import TrainingConfig

MUON_RMS = 0.2  # Of AdamW's updates, as measured by arXiv 2502.16982.


def learning_rate_schedule(config: TrainingConfig) -> optax.Schedule:
  """Linear warm-up from zero to the peak, then `config.schedule`.

  Args:
    config: The training, with its budget in steps.
  """
  peak, steps = config.learning_rate, config.num_steps
  end = peak * config.final_learning_rate_ratio
  # A run may end with its warm-up.
  rest = max(1, steps - config.warmup_steps)
  if config.schedule == 'cosine':
    return optax.warmup_cosine_decay_schedule(
      init_value=0.0,
      peak_value=peak,
      warmup_steps=config.warmup_steps,
      decay_steps=config.warmup_steps + rest,
      end_value=end,
    )
  pieces = [optax.linear_schedule(0.0, peak, config.warmup_steps)]
  boundaries = [config.warmup_steps]
  if config.schedule != 'linear':
    pieces.append(optax.constant_schedule(peak))
  if config.schedule == 'linear':
    pieces.append(optax.linear_schedule(peak, end, rest))
  if config.schedule == 'wsd':
    pieces.append(optax.linear_schedule(peak, end, config.decay_steps))
    boundaries.append(steps - config.decay_steps)
  return optax.join_schedules(pieces, boundaries)


def decays(logical_axes: tuple[str, ...]) -> bool:
  """Whether weight decay applies: to matrices, by their logical axes.

  Biases and scales of heads have two axes, and neither is `embed`. The embedding
  counts as a matrix: if tied it is also the head, and without decay the vectors
  of rare tokens would stay at their initial values.
  """
  axes = [axis for axis in logical_axes if axis != 'layers']
  return len(axes) > 1 and 'embed' in axes


def _is_table(logical_axes: tuple[str, ...]) -> bool:
  """Whether a matrix has a vector for each token or position."""
  return 'vocab' in logical_axes or 'positions' in logical_axes


def in_out_axes(
  logical_axes: tuple[str, ...],
) -> tuple[tuple[int, ...], tuple[int, ...]]:
  """The input axes and the output axes of a layer's matrix.

  One side is `embed`. The other may be several axes, such as attention heads.

  >>> in_out_axes(('layers', 'heads', 'head_dim', 'embed'))
  ((1, 2), (3,))
  """
  first = logical_axes[0] == 'layers'
  inner = tuple(range(first, len(logical_axes)))
  cut = first + 1 if logical_axes[first] == 'embed' else len(logical_axes) - 1
  return inner[: cut - first], inner[cut - first :]


def make(
  config: TrainingConfig, param_axes: Any
) -> optax.GradientTransformation:
  """Clipping by the global norm, an optimizer, and decoupled weight decay.

  The update of each layer is the same, stacked or not.

  Args:
    config: Rates and betas.
    param_axes: The tree of parameters, with tuples of logical axes.
  """
  mask = _map_axes(decays, param_axes)
  clip = optax.clip_by_global_norm(config.max_grad_norm)
  schedule = learning_rate_schedule(config)
  if config.optimizer == 'adamw':
    adamw = optax.adamw(
      schedule,
      b1=config.beta1,
      b2=config.beta2,
      weight_decay=config.weight_decay,
      mask=mask,
    )
    return optax.chain(clip, adamw)
  scale = {'adafactor': _adafactor, 'muon': _muon}[config.optimizer]
  return optax.chain(
    clip,
    scale(config, param_axes),
    optax.add_decayed_weights(config.weight_decay, mask),
    optax.scale_by_learning_rate(schedule),
  )


def state_bytes(config: TrainingConfig, shapes: Any, param_axes: Any) -> int:
  """The bytes of the optimizer's state for parameters of these shapes."""
  state = jax.eval_shape(make(config, param_axes).init, shapes)
  return sum(
    math.prod(leaf.shape) * leaf.dtype.itemsize
    for leaf in jax.tree.leaves(state)
  )


def _map_axes(
  function: Callable[[tuple[str, ...]], Any], param_axes: Any
) -> Any:
  """Applies a function to the logical axes of each parameter."""
  return jax.tree.map(
    function, param_axes, is_leaf=lambda node: isinstance(node, tuple)
  )


def _adafactor(
  config: TrainingConfig, param_axes: Any
) -> optax.GradientTransformation:
  """Adafactor: second moments by rows and columns of each layer's matrices."""
  del config
  alone = optax.chain(
    optax.scale_by_factored_rms(),
    optax.clip_by_block_rms(1.0),
    optax.scale_by_param_block_rms(),
  )
  # Each layer of a stack is a block of its own.
  by_layer = optax.GradientTransformation(
    jax.vmap(alone.init), jax.vmap(alone.update)
  )
  labels = _map_axes(
    lambda axes: 'layers' if axes[0] == 'layers' else 'alone', param_axes
  )
  transforms = {'layers': by_layer, 'alone': alone}
  used = {label: transforms[label] for label in jax.tree.leaves(labels)}
  inner = optax.partition(used, labels)

  def matrices(tree: Any) -> Any:
    return jax.tree.map(_matrix, tree, param_axes)

  def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
    scaled, state = inner.update(matrices(updates), state, matrices(params))
    return jax.tree.map(lambda x, y: x.reshape(y.shape), scaled, updates), state

  return optax.GradientTransformation(
    lambda params: inner.init(matrices(params)), update
  )


def _matrix(x: jax.Array, axes: tuple[str, ...]) -> jax.Array:
  """A matrix, or a stack of them, with one input axis and one output axis."""
  if not decays(axes) or _is_table(axes):
    return x
  rows, columns = in_out_axes(axes)
  size = [math.prod(x.shape[axis] for axis in side) for side in (rows, columns)]
  return x.reshape(*x.shape[: rows[0]], *size)


def _muon(
  config: TrainingConfig, param_axes: Any
) -> optax.GradientTransformation:
  """Muon: orthogonalized momentum for matrices of layers, Adam for the rest."""

  def dimension_numbers(axes: tuple[str, ...]) -> Any:
    if not decays(axes) or _is_table(axes):
      return optax.MaskedNode()
    return optax.contrib.MuonDimensionNumbers(*in_out_axes(axes))

  dimensions = _map_axes(dimension_numbers, param_axes)

  def rescale(updates: Any, params: Any) -> Any:
    del params
    return jax.tree.map(_rescale_to_adam, updates, dimensions)

  muon = optax.chain(
    optax.contrib.scale_by_muon(weight_dimension_numbers=dimensions),
    optax.stateless(rescale),
  )
  labels = _map_axes(
    lambda axes: (
      'adam'
      if isinstance(dimension_numbers(axes), optax.MaskedNode)
      else 'muon'
    ),
    param_axes,
  )
  adam = optax.scale_by_adam(config.beta1, config.beta2)
  return optax.partition({'muon': muon, 'adam': adam}, labels)


def _rescale_to_adam(
  x: jax.Array, dimensions: optax.contrib.MuonDimensionNumbers
) -> jax.Array:
  """Scales orthogonal matrices to the root mean square of Adam's updates."""
  sizes = [math.prod(x.shape[n] for n in np.ravel(axes)) for axes in dimensions]
  return MUON_RMS * math.sqrt(max(sizes)) * x
