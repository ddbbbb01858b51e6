"""The train state and the compiled step, one for every run of a shape."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from infoprune_jax.batches import packing
from infoprune_jax.config.model import ModelConfig
from infoprune_jax.config.training import TrainingConfig
from infoprune_jax.model import attention, backends, network, partitioning
from infoprune_jax.train import optimizer

# It runs once: code for random numbers is slow to optimise, quick to run.
INIT_COMPILER_OPTIONS = {'xla_backend_optimization_level': 0}

# What any process may ask of all, with its fraction of a batch.
HOST_REQUESTS = ('stop', 'save')
# Of the running mean of the loss; before it is settled nothing is a spike.
MEAN_DECAY, SETTLED_AFTER = 0.98, 50

# 'params', 'opt_state', 'step' (int32) and 'loss_mean' (float32).
State = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Program:
  """Initialisation and training step, compiled for a mesh.

  Every arm and seed of a shape shares one, and the reference model too when
  its shape is theirs: `compile_program` caches.
  """

  mesh: Any
  shapes: State  # of jax.ShapeDtypeStruct, with shardings
  init: Any  # seed -> State
  step: Any  # (State, batch) -> (State, metrics); the state is donated
  sequences: np.ndarray  # of a global batch: which ones this process feeds

  def put(
    self,
    batch: Mapping[str, np.ndarray],
    requests: tuple[bool, bool] = (False, False),
  ) -> dict[str, jax.Array]:
    """This host's sequences, and its HOST_REQUESTS, onto its devices."""
    return {
      **partitioning.global_batch(self.mesh, batch),
      'requests': partitioning.flags(self.mesh, requests),
    }


def compile_program(
  model: ModelConfig,
  training: TrainingConfig,
  vocab_size: int,
  mesh: Any,
  max_segments: int = 0,
) -> Program:
  """Chooses attention, and compiles the training of a model.

  Args:
    model: The model.
    training: Its batches and its optimizer.
    vocab_size: Sequences of the embedding.
    mesh: Where it is trained.
    max_segments: At least the segments of any sequence; 0 if unknown. Only
      cuDNN's attention wants to know: it is the slower the more there may be.

  Raises:
    UserError: the shapes do not divide over the mesh, or the attention that the
      config names does not run there.
  """
  check_batch(mesh, training, 'training')
  model = backends.resolve_training(model, mesh, training.sequence_length)
  limit = 0
  if model.attention == 'cudnn' and max_segments:
    limit = attention.segment_limit(max_segments)
  return _compile(model, training, vocab_size, mesh, limit)


@functools.lru_cache(maxsize=4)
def _compile(
  model: ModelConfig,
  training: TrainingConfig,
  vocab_size: int,
  mesh: Any,
  max_segments: int,
) -> Program:
  axes = network.param_axes(model, vocab_size)
  transform = optimizer.make(training, axes)
  gradients = functools.partial(_gradients, model, training, axes, max_segments)

  def init(seed: jax.Array) -> State:
    params = network.init_params(model, vocab_size, jax.random.key(seed))
    return {
      'params': params,
      'opt_state': transform.init(params),
      'step': jnp.zeros((), jnp.int32),
      'loss_mean': jnp.zeros((), jnp.float32),
    }

  step = _make_step(training, gradients, transform)

  shapes = jax.eval_shape(init, jax.ShapeDtypeStruct((), jnp.uint32))
  shardings = _state_shardings(mesh, shapes, axes)
  shapes = jax.tree.map(
    lambda leaf, s: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=s),
    shapes,
    shardings,
  )
  batch = jax.tree.map(
    lambda leaf: jax.ShapeDtypeStruct(
      leaf.shape, leaf.dtype, sharding=partitioning.batch_sharding(mesh)
    ),
    packing.empty_sequences(training.batch_size, training.sequence_length),
  )
  batch['requests'] = partitioning.flags_shape(mesh, len(HOST_REQUESTS))
  with partitioning.use_mesh(mesh):
    compiled_step = (
      jax.jit(step, donate_argnums=0, out_shardings=(shardings, None))
      .lower(shapes, batch)
      .compile()
    )

  @functools.cache  # A run that is resumed does without.
  def compiled_init() -> Any:
    with partitioning.use_mesh(mesh):
      return (
        jax.jit(init, out_shardings=shardings)
        .lower(jax.ShapeDtypeStruct((), jnp.uint32))
        .compile(INIT_COMPILER_OPTIONS)
      )

  return Program(
    mesh,
    shapes,
    lambda seed: compiled_init()(np.uint32(seed)),
    compiled_step,
    partitioning.local_batch_indices(mesh, training.batch_size),
  )


def _make_step(
  training: TrainingConfig, gradients: Callable[..., Any], transform: Any
) -> Callable[[State, Any], tuple[State, dict[str, jax.Array]]]:
  """The step of `Program`, before it is compiled.

  Args:
    training: Its options.
    gradients: Of parameters and a batch: losses by name, and gradients.
    transform: The optimizer.
  """
  schedule = optimizer.learning_rate_schedule(training)

  def step(state: State, batch: Any) -> tuple[State, dict[str, jax.Array]]:
    batch = dict(batch)
    requests = batch.pop('requests')
    losses, grads = gradients(state['params'], batch)
    updates, opt_state = transform.update(
      grads, state['opt_state'], state['params']
    )
    grad_norm = optax.tree.norm(grads)
    bad, loss_mean = _find_bad_loss(training, state, losses['loss'], grad_norm)
    metrics = {
      **losses,
      'bad_step': bad,
      'requests': jnp.any(requests, axis=0),
      'tokens': jnp.sum(batch['decoder_loss_weights']),
      'grad_norm': grad_norm,
      'param_norm': optax.tree.norm(state['params']),
      'learning_rate': schedule(state['step']),
    }
    learnt = {
      'params': optax.apply_updates(state['params'], updates),
      'opt_state': opt_state,
    }
    if training.on_bad_step == 'skip':
      learnt = jax.tree.map(
        functools.partial(_keep_old_if, bad),
        learnt,
        {name: state[name] for name in learnt},
      )
    return {
      **learnt,
      'step': state['step'] + 1,
      'loss_mean': loss_mean,
    }, metrics

  return step


def _keep_old_if(bad: jax.Array, new: jax.Array, old: jax.Array) -> jax.Array:
  """What stays of an array after a step that may be bad.

  Counts go on: the schedule is one of steps, taken or skipped.
  """
  return (
    new if jnp.issubdtype(new.dtype, jnp.integer) else jnp.where(bad, old, new)
  )


def _find_bad_loss(
  training: TrainingConfig,
  state: State,
  loss: jax.Array,
  grad_norm: jax.Array,
) -> tuple[jax.Array, jax.Array]:
  """Whether a step is bad, and the running mean of the losses of good ones."""
  mean, step = state['loss_mean'], state['step']
  bad = ~jnp.isfinite(loss + grad_norm)
  if training.max_loss_spike:
    spike = loss > training.max_loss_spike * mean
    bad |= spike & (step >= SETTLED_AFTER)
  # Unbiased: as if the mean had begun with the first loss alone.
  fraction = jnp.maximum(1 - MEAN_DECAY, 1 / (step + 1.0))
  return bad, jnp.where(bad, mean, mean + fraction * (loss - mean))


def check_batch(mesh: Any, training: TrainingConfig, section: str) -> None:
  """Raises `UserError` unless what a device computes at once spreads evenly."""
  parts = training.gradient_accumulation_steps
  partitioning.check_batch(
    mesh,
    training.batch_size // parts,
    f'{section}.batch_size'
    + (' / gradient_accumulation_steps' if parts > 1 else ''),
  )
  partitioning.check_sequence_length(
    mesh, training.sequence_length, f'{section}.sequence_length'
  )


def _gradients(
  model: ModelConfig,
  training: TrainingConfig,
  axes: Any,
  max_segments: int,
  params: Any,
  batch: Any,
) -> tuple[dict[str, jax.Array], Any]:
  """Losses of a batch, means over its tokens, and the gradients of their sum.

  Parts of a batch are weighted by their tokens, not alike: each is divided by
  the tokens of the whole.
  """
  tokens = jnp.maximum(jnp.sum(batch['decoder_loss_weights']), 1)

  def losses(params: Any, part: Any) -> tuple[jax.Array, dict[str, jax.Array]]:
    weights = part['decoder_loss_weights'] / tokens
    total, nll, log_z = network.batch_loss(
      model, params, part, weights, training.z_loss, max_segments
    )
    found = {'loss': jnp.sum(nll * weights)}
    if training.z_loss:
      found['z_loss'] = training.z_loss * jnp.sum(log_z**2 * weights)
    return total, found

  def one(part: Any) -> tuple[dict[str, jax.Array], Any]:
    grads, found = jax.grad(losses, has_aux=True)(params, part)
    return found, grads

  parts = training.gradient_accumulation_steps
  if parts == 1:
    return one(batch)

  def add(total: Any, part: Any) -> tuple[Any, None]:
    part = jax.tree.map(
      lambda x: partitioning.constrain(x, ('batch', 'length')), part
    )
    found, grads = jax.tree.map(jnp.add, total, one(part))
    return (found, jax.tree.map(partitioning.constrain, grads, axes)), None

  # Every n-th sequence: a device's sequences stay on it.
  split = jax.tree.map(
    lambda x: x.reshape(-1, parts, x.shape[1]).swapaxes(0, 1), batch
  )
  shapes = jax.eval_shape(one, jax.tree.map(lambda x: x[0], split))
  zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
  return jax.lax.scan(add, zeros, split)[0]


def _state_shardings(mesh: Any, shapes: State, axes: Any) -> State:
  """A moment of its parameter's shape is spread as that is.

  Counts, and moments by rows and columns, are small: every device has them.
  """
  params = partitioning.shardings(mesh, shapes['params'], axes, 'Parameter')
  everywhere = partitioning.replicated(mesh)
  by_path = {
    path: (leaf.shape, sharding)
    for (path, leaf), sharding in zip(
      jax.tree_util.tree_leaves_with_path(shapes['params']),
      jax.tree.leaves(params),
      strict=True,
    )
  }

  def of_moment(path: Any, leaf: Any) -> Any:
    # The optimizer's own names come first, the parameter's last.
    ends = (path[first:] for first in range(len(path)))
    shape, sharding = next(
      (by_path[end] for end in ends if end in by_path), (None, None)
    )
    return sharding if leaf.shape == shape else everywhere

  return {
    'params': params,
    'opt_state': jax.tree_util.tree_map_with_path(
      of_moment, shapes['opt_state']
    ),
    'step': everywhere,
    'loss_mean': everywhere,
  }
