"""The train state and the compiled step, shared by runs of one shape."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from infoprune_jax.batches import packing
from infoprune_jax.config.model import ModelConfig
from infoprune_jax.config.training import TrainingConfig
from infoprune_jax.model import backends, network, partitioning
from infoprune_jax.model.kernels import gpu_attention
from infoprune_jax.model.mesh import Mesh
from infoprune_jax.train import bad_steps, memory, optimizer

# Initialization runs once, so XLA need not spend time to optimize it.
INIT_COMPILER_OPTIONS: Any = {'xla_backend_optimization_level': 0}

# Requests that a process may send to all, together with its batch.
HOST_REQUESTS = ('stop', 'save')

# 'params', 'opt_state', 'step' (int32) and 'loss_mean' (float32).
State = dict[str, Any]
Batch = dict[str, jax.Array]
Scalars = dict[str, jax.Array]  # by the names that metrics have
# (parameters, batch) -> (losses, gradients)
Gradients = Callable[[Any, Batch], tuple[Scalars, Any]]


@dataclasses.dataclass(frozen=True)
class Program:
  """Initialization and training step, compiled for a mesh.

  `compile_program` caches programs: all arms and seeds share one, and so does a
  reference model of the same shape.
  """

  mesh: Mesh
  model: ModelConfig  # as it is computed
  shapes: State  # of jax.ShapeDtypeStruct, with shardings
  init: Any  # seed -> State
  step: Any  # (State, batch) -> (State, metrics); the state is donated
  sequences: np.ndarray  # of a global batch: those that this process feeds
  micro_batches: int  # of a batch
  segment_limit: int  # of `step`; 0 for an attention that needs none
  with_limit: Callable[[int], 'Program']  # the same program for another limit

  def step_for(self, batch: Mapping[str, np.ndarray]) -> Any:
    """`step`, or one with room for more segments if this batch has too many.

    Args:
      batch: This host's sequences.
    """
    if not self.segment_limit or jax.process_count() > 1:
      return self.step
    ids = batch['decoder_segment_ids']
    # Micro-batch i has every n-th sequence of a device from the i-th on.
    shape = (partitioning.num_batch_shards(self.mesh), -1, self.micro_batches)
    mean = gpu_attention.mean_segments(
      ids.reshape(*shape, ids.shape[1]).swapaxes(1, 2)
    )
    if mean <= self.segment_limit:
      return self.step
    return self.with_limit(gpu_attention.segment_limit(mean, growth=2)).step

  def put(
    self,
    batch: Mapping[str, np.ndarray],
    requests: Sequence[bool] = (False, False),
  ) -> dict[str, jax.Array]:
    """Puts this host's sequences, and its HOST_REQUESTS, on its devices."""
    return {
      **partitioning.global_batch(self.mesh, batch),
      'requests': partitioning.flags(self.mesh, requests),
    }


def compile_program(
  model: ModelConfig,
  training: TrainingConfig,
  vocab_size: int,
  mesh: Mesh,
  segments: np.ndarray | None = None,
) -> Program:
  """Chooses how a model is computed, and compiles its training.

  All processes call this together.

  Args:
    model: The model.
    training: Its batches and its optimizer.
    vocab_size: Number of token ids.
    mesh: The mesh to train on.
    segments: [sequences] int, the segments of each sequence; None if unknown.
      Only cuDNN's attention uses them.

  Raises:
    UserError: the shapes do not divide over the mesh, or the attention that the
      config names does not run there.
  """
  check_batch(mesh, training, 'training')
  length, free = training.sequence_length, model.attention == 'auto'
  model = backends.resolve_training(model, mesh, length)
  limit = 0
  if model.attention == 'cudnn':
    limit = _first_limit(training, mesh, segments)
    if free and backends.prefers_pallas(model, mesh, length, limit):
      model, limit = dataclasses.replace(model, attention='pallas'), 0
  model = _choose(model, training, vocab_size, mesh, limit)
  return _compile(model, training, vocab_size, mesh, limit)


def _first_limit(
  training: TrainingConfig, mesh: Mesh, segments: np.ndarray | None
) -> int:
  """The segment limit of the first program, see `Program.step_for`."""
  if jax.process_count() > 1:  # All must run one program, for any batch.
    most = training.sequence_length if segments is None else segments.max()
    return gpu_attention.segment_limit(int(most) + 1)
  if segments is None:
    return gpu_attention.segment_limit(1)
  # Of the sequences that a device takes at once; few batches have more.
  parts = training.gradient_accumulation_steps
  size = training.batch_size / parts / partitioning.num_batch_shards(mesh)
  mean = segments.mean() + 2 * segments.std() / size**0.5
  return gpu_attention.segment_limit(int(np.ceil(mean)), growth=2)


@functools.lru_cache(maxsize=4)  # A choice is made, and logged, once.
def _choose(
  model: ModelConfig,
  training: TrainingConfig,
  vocab_size: int,
  mesh: Mesh,
  max_segments: int,
) -> ModelConfig:
  def step(model: ModelConfig) -> Any:
    return _compile(model, training, vocab_size, mesh, max_segments).step

  return memory.choose(model, training, vocab_size, mesh, step)


# Programs of one run may differ in their limit.
@functools.lru_cache(maxsize=8)
def _compile(
  model: ModelConfig,
  training: TrainingConfig,
  vocab_size: int,
  mesh: Mesh,
  segment_limit: int,
) -> Program:
  axes = network.param_axes(model, vocab_size)
  transform = optimizer.make(training, axes)
  init = _make_init(model, vocab_size, transform)
  gradients = _make_gradients(model, training, axes, segment_limit)
  step = _make_step(training, gradients, transform)
  shapes = _state_shapes(mesh, init, axes)
  shardings = jax.tree.map(lambda leaf: leaf.sharding, shapes)
  with partitioning.use_mesh(mesh):
    compiled_step = (
      jax.jit(step, donate_argnums=0, out_shardings=(shardings, None))
      .lower(shapes, _batch_shapes(mesh, training))
      .compile()
    )

  @functools.cache  # Compiled on demand: a resumed run does not need it.
  def compiled_init() -> Any:
    with partitioning.use_mesh(mesh):
      return (
        jax.jit(init, out_shardings=shardings)
        .lower(jax.ShapeDtypeStruct((), jnp.uint32))
        .compile(INIT_COMPILER_OPTIONS)
      )

  return Program(
    mesh,
    model,
    shapes,
    lambda seed: compiled_init()(np.uint32(seed)),
    compiled_step,
    partitioning.local_batch_indices(mesh, training.batch_size),
    training.gradient_accumulation_steps,
    segment_limit,
    functools.partial(_compile, model, training, vocab_size, mesh),
  )


def _make_init(
  model: ModelConfig, vocab_size: int, transform: optax.GradientTransformation
) -> Callable[[jax.Array], State]:
  """A function from a seed to the state of step 0."""

  def init(seed: jax.Array) -> State:
    params = network.init_params(model, vocab_size, jax.random.key(seed))
    return {
      'params': params,
      'opt_state': transform.init(params),
      'step': jnp.zeros((), jnp.int32),
      'loss_mean': jnp.zeros((), jnp.float32),
    }

  return init


def _batch_shapes(
  mesh: Mesh, training: TrainingConfig
) -> dict[str, jax.ShapeDtypeStruct]:
  """Shapes of what `Program.put` returns."""
  sharding = partitioning.batch_sharding(mesh)
  sequences = packing.empty_sequences(
    training.batch_size, training.sequence_length
  )
  return {
    **jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
      sequences,
    ),
    'requests': partitioning.flags_shape(mesh, len(HOST_REQUESTS)),
  }


def _make_step(
  training: TrainingConfig,
  gradients: Gradients,
  transform: optax.GradientTransformation,
) -> Callable[[State, Batch], tuple[State, Scalars]]:
  """The step of `Program`, before it is compiled."""
  schedule = optimizer.learning_rate_schedule(training)

  def step(state: State, batch: Batch) -> tuple[State, Scalars]:
    batch = dict(batch)
    requests = batch.pop('requests')
    losses, grads = gradients(state['params'], batch)
    updates, opt_state = transform.update(
      grads, state['opt_state'], state['params']
    )
    grad_norm = optax.tree.norm(grads)
    bad, loss_mean = bad_steps.check_loss(
      training, state, losses['loss'], grad_norm
    )
    metrics = {
      **losses,
      'bad_step': bad,
      'requests': jnp.any(requests, axis=0),
      'tokens': jnp.sum(batch['decoder_loss_weights']),
      'grad_norm': grad_norm,
      'param_norm': optax.tree.norm(state['params']),
      'learning_rate': schedule(state['step']),
    }
    learned = {
      'params': optax.apply_updates(state['params'], updates),
      'opt_state': opt_state,
    }
    if training.on_bad_step == 'skip':
      learned = bad_steps.keep_old_if(bad, learned, state)
    counts = {'step': state['step'] + 1, 'loss_mean': loss_mean}
    return {**learned, **counts}, metrics

  return step


def check_batch(mesh: Mesh, training: TrainingConfig, section: str) -> None:
  """Raises `UserError` unless a micro-batch spreads evenly over the mesh."""
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


def _make_gradients(
  model: ModelConfig, training: TrainingConfig, axes: Any, segment_limit: int
) -> Gradients:
  """Losses of a batch, as means over its tokens, and their gradients."""

  def loss(
    params: Any, sequences: Batch, weights: jax.Array
  ) -> tuple[jax.Array, Scalars]:
    total, nll, log_z = network.batch_loss(
      model, params, sequences, weights, training.z_loss, segment_limit
    )
    means = {'loss': jnp.sum(nll * weights)}
    if training.z_loss:
      means['z_loss'] = training.z_loss * jnp.sum(log_z**2 * weights)
    return total, means

  def gradients(params: Any, batch: Batch) -> tuple[Scalars, Any]:
    tokens = jnp.maximum(jnp.sum(batch['decoder_loss_weights']), 1)

    def of_rows(sequences: Batch) -> tuple[Scalars, Any]:
      if segment_limit:
        sequences = gpu_attention.fewest_segments_first(sequences)
      # Divides by the tokens of the whole batch: those of parts may differ.
      weights = sequences['decoder_loss_weights'] / tokens
      grads, means = jax.grad(loss, has_aux=True)(params, sequences, weights)
      return means, grads

    parts = training.gradient_accumulation_steps
    if parts == 1:
      return of_rows(batch)
    return _sum_over_shards(of_rows, batch, parts, axes)

  return gradients


def _sum_over_shards(
  function: Callable[[Batch], tuple[Scalars, Any]],
  batch: Batch,
  parts: int,
  axes: Any,
) -> tuple[Scalars, Any]:
  """Sums the results of a function over the micro-batches of a batch."""

  def add(total: Any, part: Batch) -> tuple[Any, None]:
    part = jax.tree.map(
      lambda x: partitioning.constrain(x, ('batch', 'length')), part
    )
    means, grads = jax.tree.map(jnp.add, total, function(part))
    return (means, jax.tree.map(partitioning.constrain, grads, axes)), None

  # Every n-th sequence: a device's sequences stay on it.
  split = jax.tree.map(
    lambda x: x.reshape(-1, parts, x.shape[1]).swapaxes(0, 1), batch
  )
  shapes = jax.eval_shape(function, jax.tree.map(lambda x: x[0], split))
  zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
  return jax.lax.scan(add, zeros, split)[0]


def _state_shapes(
  mesh: Mesh, init: Callable[[jax.Array], State], axes: Any
) -> State:
  """Shapes, dtypes and shardings of a state.

  A moment is sharded as its parameter if their shapes are equal. Counts, and
  moments by rows and columns, are small: every device has them.
  """
  shapes = jax.eval_shape(init, jax.ShapeDtypeStruct((), jnp.uint32))
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

  def shape(path: Any, leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
    # The path ends with the names of the parameter.
    ends = (path[first:] for first in range(len(path)))
    shape, sharding = next(
      (by_path[end] for end in ends if end in by_path), (None, None)
    )
    return jax.ShapeDtypeStruct(
      leaf.shape,
      leaf.dtype,
      sharding=sharding if leaf.shape == shape else everywhere,
    )

  return jax.tree_util.tree_map_with_path(shape, shapes)
