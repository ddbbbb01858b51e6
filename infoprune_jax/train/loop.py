"""The train loop: one run of a model over packed sequences, resumed exactly.

All processes of a job run the same loop. A signal or a clock reaches only one
process. The others learn of it with the batch, so all act at the same step.
"""

import contextlib
import dataclasses
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax

from infoprune_jax.config.model import REMAT, ModelConfig
from infoprune_jax.config.training import TrainingConfig
from infoprune_jax.config.validation import to_plain
from infoprune_jax.model import (
  checkpoints,
  digests,
  flops,
  memory,
  partitioning,
)
from infoprune_jax.runtime import distributed, preemption
from infoprune_jax.runtime.progress import logger
from infoprune_jax.score import ceiling, references
from infoprune_jax.train import hooks as hooks_lib, metrics
from infoprune_jax.train.branches import Start
from infoprune_jax.train.hooks import STATE_ITEMS, Hook, Run, Session, Step
from infoprune_jax.train.state import HOST_REQUESTS, Program, State
from infoprune_jax.train.timing import StepCost, Timing


def train(run: Run) -> None:
  """Trains to `num_steps`, from the newest undamaged checkpoint, if any.

  Writes checkpoints, metrics and, last, the manifest.

  Raises:
    UserError: a step is bad, or device memory ran out.
    preemption.Stopped: a signal stopped the run; a checkpoint is written.
  """
  begun = time.time()
  run = _begin(run)
  with contextlib.ExitStack() as stack:
    stack.enter_context(oom_as_user_error(run))
    program = run.compile(run.model, run.training)
    session, state = _open(run, program, begun, stack)
    stack.enter_context(preemption.listening())
    hooks = _hooks(session)
    for hook in hooks:
      stack.callback(hook.close)
    state = _take_steps(session, program, hooks, state)
    session.saved.wait()
    distributed.barrier(f'the last checkpoint of {run.name}')
    _finish(session, state)
    # A signal that comes now reaches no step, but must stop the next run.
    stop = preemption.is_asked()
    asked = distributed.all_gather(f'the end of {run.name}', stop)
  if any(asked):
    raise preemption.Stopped(f'{run.name} is finished')


def _hooks(session: Session) -> list[Hook]:
  """The hooks, in the order in which they are called after each step."""
  run = session.run
  watchdog = hooks_lib.Watchdog(run.name, run.training.watchdog_minutes)
  return [
    watchdog,  # Each step, evaluation and checkpoint has the full minutes.
    hooks_lib.BadSteps(session),
    hooks_lib.Metrics(session),
    hooks_lib.Evaluate(session),
    watchdog,
    hooks_lib.Checkpoint(session),
    watchdog,
    hooks_lib.Profile(session),
    hooks_lib.Progress(session),
    hooks_lib.Stop(session),
  ]


def _take_steps(
  session: Session, program: Program, hooks: Sequence[Hook], state: State
) -> State:
  """Takes the steps that are left, and calls all hooks after each."""
  first, last = session.first, session.run.training.num_steps
  batches = session.run.reader.batches(first, last, program.sequences)
  # Number and metrics of a step whose hooks have not been called yet.
  waiting: tuple[int, Any] | None = None
  for number in range(first + 1, last + 1):
    with session.timing.waiting('input'):
      batch = next(batches)
    asked = [hook.request() for hook in hooks]
    requests = [name in asked for name in HOST_REQUESTS]
    step = program.step_for(batch)
    state, on_device = step(state, program.put(batch, requests))
    if waiting:
      _call(hooks, *waiting, None)
    waiting = number, on_device
    if number == last or any(hook.is_due(number) for hook in hooks):
      _call(hooks, *waiting, state)
      waiting = None
  return state


def _call(
  hooks: Sequence[Hook], number: int, on_device: Any, state: State | None
) -> None:
  """Calls the hooks for a step, when the devices have finished it."""
  values = jax.device_get(on_device)
  asked = zip(HOST_REQUESTS, values.pop('requests'), strict=True)
  is_bad = bool(values.pop('bad_step'))
  step = Step(
    number,
    state,
    {name: float(value) for name, value in values.items()},
    is_bad,
    {name: bool(value) for name, value in asked},
  )
  for hook in hooks:
    hook(step)


def _begin(run: Run) -> Run:
  """Begins a new attempt at the run, see `artifacts`, on process 0."""
  attempt = distributed.on_first(
    f'the start of {run.name}', lambda: run.artifact.begin().attempt
  )
  artifact = dataclasses.replace(run.artifact, attempt=attempt)
  return dataclasses.replace(run, artifact=artifact)


def _open(
  run: Run, program: Program, begun: float, stack: contextlib.ExitStack
) -> tuple[Session, State]:
  """Opens the files of the run, and initializes or restores its state."""
  artifact, training = run.artifact, run.training
  # This may rename checkpoints, so it comes before Orbax lists them.
  first, facts = distributed.on_first(
    f'the newest checkpoint of {run.name}',
    lambda: checkpoints.newest_sound(
      artifact.path, ('params', 'rest'), artifact.job
    ),
  )
  saved = checkpoints.Checkpoints(
    artifact.path,
    training.max_checkpoints,
    training.keep_checkpoints_every,
    artifact.write_file,
    run.finished_step,
    run.kept_steps,
  )
  stack.enter_context(contextlib.closing(saved))
  if first:
    state = _state_of(saved.restore(first, _items(program)))
    logger.info('%s: resumed at step %d', run.name, first)
  elif run.start:
    first = run.start.step
    state, facts = _take_over(run, run.start, program)
  else:
    state = program.init(run.seed)
    if run.initial:
      del state['params']  # Both may be more than a device holds.
      state['params'] = references.load(run.initial, run.mesh)
      logger.info('%s: starts from %s', run.name, run.initial.path)
  writer = _open_metrics(run, first, facts)
  stack.enter_context(contextlib.closing(writer))
  timing = _open_timing(run, first, begun)
  stack.enter_context(contextlib.closing(timing))
  return Session(run, first, saved, writer, timing), state


def _items(program: Program) -> dict[str, Any]:
  """The items of a checkpoint, as `Checkpoints.restore` takes them."""
  rest = {name: program.shapes[name] for name in STATE_ITEMS}
  return {'params': program.shapes['params'], 'rest': rest}


def _state_of(items: Mapping[str, Any]) -> State:
  return {'params': items['params'], **items['rest']}


def _take_over(
  run: Run, start: Start, program: Program
) -> tuple[State, dict[str, Any]]:
  """The state of another run at a step, and the facts on its metrics.

  The run has the metrics of the other one up to that step, as if it had taken
  these steps itself.
  """
  items, facts = checkpoints.read(
    start.path, start.step, _items(program), run.artifact.job
  )
  if distributed.index() == 0:
    metrics.copy(start.path, facts, run.artifact)
  logger.info('%s: starts from step %d of %s', run.name, start.step, start.path)
  return _state_of(items), facts


def _open_metrics(
  run: Run, first: int, facts: dict[str, Any]
) -> metrics.MetricsWriter:
  """Opens the sinks that the config names. Only process 0 writes."""
  tokens = run.training.tokens_per_step
  if distributed.index():
    return metrics.MetricsWriter(tokens, None)
  record = metrics.JsonLines(run.artifact, facts)
  sections = {'model': run.model, 'training': run.training, 'seed': run.seed}
  info = metrics.RunInfo(
    run.artifact, run.name, run.workdir, first + 1, to_plain(sections)
  )
  names = dict.fromkeys(run.training.metric_sinks)
  sinks = [metrics.SINKS[name](info) for name in names]
  return metrics.MetricsWriter(tokens, record, sinks)


def _open_timing(run: Run, first: int, begun: float) -> Timing:
  peak = ceiling.matmul_flops_per_second(run.model.dtype)
  cost = StepCost(
    run.training.tokens_per_step,
    run.flops_per_step,
    peak * run.mesh.devices.size,
  )
  writer = run.artifact.write_file if distributed.index() == 0 else None
  return Timing(run.artifact.path, first, cost, begun, writer)


def _finish(session: Session, state: State) -> None:
  """Writes the manifest of a finished run."""
  run, steps = session.run, session.run.training.num_steps
  digest = digests.params_hash(state['params'])
  if distributed.index() == 0:
    session.writer.sync()
    run.artifact.finish(
      {'params': {'sha256': digest}},
      step=steps,
      params_hash=digest,
      metrics=session.writer.facts(),
      num_params=flops.num_params(run.model, run.vocab_size),
      vocabulary=run.vocabulary,
      vocab_size=run.vocab_size,
      **run.reader.facts(steps),
      # Which another run has taken.
      **({'shared_steps': run.start.step} if run.start else {}),
      tokens=steps * run.training.tokens_per_step,
      flops=steps * run.flops_per_step,
      devices=jax.device_count(),
      platform=jax.devices()[0].platform,
    )
  distributed.barrier(f'the manifest of {run.name}')
  session.saved.keep_step = 0


def oom_as_user_error(run: Run) -> contextlib.AbstractContextManager[None]:
  """Turns a lack of device memory into a message with options that fit.

  A step with these options computes the same values, with more gradient
  accumulation or more rematerialization. A run that has begun may use them.

  Raises:
    UserError: device memory ran out in this block.
  """

  def explain() -> str:
    advice = 'nothing smaller fits: spread it over more devices, with mesh.fsdp'
    for other in _smaller(run):
      logger.info(
        '%s: device memory ran out, trying %s', run.name, _choices(*other)
      )
      if memory.fits(lambda other=other: run.compile(*other).step, run.mesh):
        advice = f'{_choices(*other)} fits'
        break
    return (
      f'{run.name}: a step of {run.training.batch_size} sequences of '
      f'{run.training.sequence_length} tokens, with '
      f'{_choices(run.model, run.training)}, needs more memory than a device '
      f'has: {advice}.'
    )

  return memory.oom_as_user_error(explain)


def _choices(model: ModelConfig, training: TrainingConfig) -> str:
  parts = training.gradient_accumulation_steps
  return (
    f'training.gradient_accumulation_steps={parts} and '
    f'model.remat={model.remat!r}'
  )


def _smaller(run: Run) -> Iterator[tuple[ModelConfig, TrainingConfig]]:
  """More and more gradient accumulation, then more rematerialization."""
  model, training = run.model, run.training
  num_shards = partitioning.num_batch_shards(run.mesh)
  parts = training.gradient_accumulation_steps * 2
  while training.batch_size % (parts * num_shards) == 0:
    training = dataclasses.replace(training, gradient_accumulation_steps=parts)
    yield model, training
    parts *= 2
  if model.remat == 'auto':  # The step tries all policies.
    return
  for policy in REMAT[REMAT.index(model.remat) + 1 :]:
    yield dataclasses.replace(model, remat=policy), training
