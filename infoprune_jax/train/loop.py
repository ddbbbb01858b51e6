"""The train loop: one run of a model over packed sequences, resumed exactly.

All processes of a job run it alike. A signal or a clock reaches one of them.
The others learn of it with the batch, and all act at the same step.
"""

import contextlib
import dataclasses
import time
from collections.abc import Iterator, Sequence
from typing import Any

import jax

from infoprune_jax.config.model import REMAT, ModelConfig
from infoprune_jax.config.training import TrainingConfig
from infoprune_jax.config.validation import to_plain
from infoprune_jax.model import checkpoints, flops, memory, partitioning
from infoprune_jax.runtime import distributed, preemption
from infoprune_jax.runtime.progress import logger
from infoprune_jax.score import ceiling
from infoprune_jax.train import hooks as hooks_lib, metrics
from infoprune_jax.train.hooks import STATE_ITEMS, Hook, Run, Session, Step
from infoprune_jax.train.state import HOST_REQUESTS, Program, State
from infoprune_jax.train.timing import StepCost, Timing


def train(run: Run) -> None:
  """Trains to `num_steps`, from the newest undamaged checkpoint, if any.

  Writes checkpoints, metrics and, last, the manifest.

  Raises:
    UserError: the loss is not finite or too often bad, or memory ran out.
    preemption.Stopped: a signal asked for it; a checkpoint is written.
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
    # No step has seen a signal that came now, and the next run must not start.
    stop = preemption.is_asked()
    asked = distributed.all_gather(f'the end of {run.name}', stop)
  if any(asked):
    raise preemption.Stopped(f'{run.name} is finished')


def _hooks(session: Session) -> list[Hook]:
  """The hooks, in the order in which they are called after each step."""
  run = session.run
  watchdog = hooks_lib.Watchdog(run.name, run.training.watchdog_minutes)
  return [
    watchdog,  # A step, an evaluation and a checkpoint have the minutes each.
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
  # Number and metrics of a step whose hooks are still to be called.
  waiting: tuple[int, Any] | None = None
  for number in range(first + 1, last + 1):
    with session.timing.waiting('input'):
      batch = next(batches)
    asked = [hook.request() for hook in hooks]
    requests = [name in asked for name in HOST_REQUESTS]
    state, on_device = program.step(state, program.put(batch, requests))
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
  )
  stack.enter_context(contextlib.closing(saved))
  if first:
    rest = {name: program.shapes[name] for name in STATE_ITEMS}
    items = {'params': program.shapes['params'], 'rest': rest}
    items = saved.restore(first, items)
    state = {'params': items['params'], **items['rest']}
    logger.info('%s: resumed at step %d', run.name, first)
  else:
    state = program.init(run.seed)
  writer = _open_metrics(run, first, facts)
  stack.enter_context(contextlib.closing(writer))
  timing = _open_timing(run, first, begun)
  stack.enter_context(contextlib.closing(timing))
  return Session(run, first, saved, writer, timing), state


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
  digest = checkpoints.params_hash(state['params'])
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
      tokens=steps * run.training.tokens_per_step,
      flops=steps * run.flops_per_step,
      devices=jax.device_count(),
      platform=jax.devices()[0].platform,
    )
  distributed.barrier(f'the manifest of {run.name}')


def oom_as_user_error(run: Run) -> contextlib.AbstractContextManager[None]:
  """Turns a lack of device memory into a message with a step that fits.

  That step computes the same, with more gradient accumulation or with more
  rematerialization. A run that has begun may go on with it.

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
  for policy in REMAT[REMAT.index(model.remat) + 1 :]:
    yield dataclasses.replace(model, remat=policy), training
