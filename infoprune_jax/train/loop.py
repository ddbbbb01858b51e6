"""The train loop: one run of a model over packed sequences, resumed exactly.

All processes of a job run it alike. What one of them is asked to do by its
machine or its clock, the others learn with the batch, and do at the same step.
"""

import contextlib
import dataclasses
import time
from collections.abc import Iterator
from typing import Any

import jax

from infoprune_jax.batches import loader
from infoprune_jax.config.model import ModelConfig
from infoprune_jax.config.training import TrainingConfig
from infoprune_jax.config.validation import UserError
from infoprune_jax.evaluate.perplexity import Curve
from infoprune_jax.model import checkpoints, flops
from infoprune_jax.runtime import artifacts, distributed, files, preemption
from infoprune_jax.runtime.files import FileFacts
from infoprune_jax.runtime.progress import Progress, logger
from infoprune_jax.score import ceiling
from infoprune_jax.train import memory, state as state_lib
from infoprune_jax.train.metrics import MetricsWriter
from infoprune_jax.train.timing import Timing
from infoprune_jax.train.watchdog import Watchdog

_STATE = ('opt_state', 'step', 'loss_mean')  # What scoring need not read.
_MOST_SKIPPED = 10  # in a row: then it is no accident


@dataclasses.dataclass(frozen=True)
class Run:
  """What one training run is made of."""

  name: str  # for the user
  artifact: artifacts.Artifact
  model: ModelConfig
  training: TrainingConfig
  seed: int
  reader: loader.Reader
  curve: Curve
  vocab_size: int
  vocabulary: str  # its hash
  mesh: Any

  @property
  def flops_per_step(self) -> float:
    """By formula."""
    return self.training.tokens_per_step * flops.training_flops_per_token(
      self.model, self.vocab_size, self.training.sequence_length
    )

  def compiled(
    self, model: ModelConfig, training: TrainingConfig
  ) -> state_lib.Program:
    """The program of this run, or of one that is computed otherwise."""
    return state_lib.compile_program(
      model, training, self.vocab_size, self.mesh, self.reader.max_segments
    )


def train(run: Run) -> None:
  """Trains to `num_steps`, from the newest sound checkpoint if there is one.

  Writes checkpoints, metrics and, last, the manifest.

  Raises:
    UserError: the loss is not finite or too often bad, or memory ran out.
    preemption.Stopped: a signal asked for it; a checkpoint is written.
  """
  begun = time.time()
  run = _begin(run)
  path, training = run.artifact.path, run.training
  with contextlib.ExitStack() as closing:
    closing.enter_context(
      memory.oom_as_user_error(
        run.name,
        run.model,
        training,
        run.mesh,
        lambda model, training: run.compiled(model, training).step,
      )
    )
    program = run.compiled(run.model, training)
    # Before Orbax opens the folder, which remembers what is there.
    first, facts = distributed.on_first(
      f'the newest checkpoint of {run.name}',
      lambda: checkpoints.newest_sound(
        path, ('params', 'rest'), run.artifact.job
      ),
    )
    saved = closing.enter_context(
      contextlib.closing(
        checkpoints.Checkpoints(
          path,
          training.max_checkpoints,
          training.keep_checkpoints_every,
          run.artifact.write_file,
        )
      )
    )
    if first:
      state = _restore(saved, first, program.shapes)
      logger.info('%s: resumed at step %d', run.name, first)
    else:
      state = program.init(run.seed)
    writer = None
    if distributed.index() == 0:
      writer = _open_metrics(run.artifact, first, facts)
      closing.enter_context(contextlib.closing(writer))
    closing.enter_context(preemption.listening())
    loop = _Loop(run, program, saved, writer, first, begun)
    state = closing.enter_context(contextlib.closing(loop)).run(state)
    saved.wait()
    distributed.barrier(f'the last checkpoint of {run.name}')
    _finish(run, state, writer)
    # Asked too late for a step to say so; what comes next would not know of it.
    stop = preemption.is_asked()
    asked = distributed.all_gather(f'the end of {run.name}', stop)
  if any(asked):
    raise preemption.Stopped(f'{run.name} is finished')


def _begin(run: Run) -> Run:
  """The run, as the newest attempt at it, which process 0 begins."""
  attempt = distributed.on_first(
    f'the start of {run.name}', lambda: run.artifact.begin().attempt
  )
  artifact = dataclasses.replace(run.artifact, attempt=attempt)
  return dataclasses.replace(run, artifact=artifact)


def _open_metrics(
  artifact: artifacts.Artifact, step: int, facts: FileFacts | None
) -> MetricsWriter:
  """The metrics of a run that goes on after a step with these facts."""
  return MetricsWriter(
    artifact.path, step, facts or None, artifact.job, artifact.write_file
  )


def _restore(
  saved: checkpoints.Checkpoints, step: int, shapes: state_lib.State
) -> state_lib.State:
  rest = {name: shapes[name] for name in _STATE}
  items = saved.restore(step, {'params': shapes['params'], 'rest': rest})
  return {'params': items['params'], **items['rest']}


class _Loop:
  """The steps of a run, and what is done between them."""

  def __init__(
    self,
    run: Run,
    program: state_lib.Program,
    saved: checkpoints.Checkpoints,
    writer: MetricsWriter | None,
    first: int,
    begun: float,
  ):
    """Takes what it reads and writes; only process 0 has a writer."""
    self._run, self._program = run, program
    self._saved, self._writer, self._first = saved, writer, first
    training = run.training
    self._progress = Progress(
      run.name,
      'tokens',
      training.num_steps * training.tokens_per_step,
      done=first * training.tokens_per_step,
    )
    self._watchdog = Watchdog(run.name, training.watchdog_minutes)
    peak = ceiling.matmul_flops_per_second(run.model.dtype)
    self._timing = Timing(
      run.artifact.path,
      first,
      training.tokens_per_step,
      run.flops_per_step,
      peak * run.mesh.devices.size,
      begun,
      writes=writer is not None,
      writer=run.artifact.write_file,
    )
    self._previous: tuple[int, Any] | None = None
    self._skipped = 0  # in a sequence
    self._tracing: contextlib.ExitStack | None = None
    self._asked = dict.fromkeys(state_lib.HOST_REQUESTS, False)
    self._saved_at = time.monotonic()

  def run(self, state: state_lib.State) -> state_lib.State:
    """Takes the steps that are left."""
    training = self._run.training
    sequences = self._program.sequences
    batches = self._run.reader.batches(
      self._first, training.num_steps, sequences
    )
    with self._watchdog.watching():
      for step in range(self._first + 1, training.num_steps + 1):
        with self._timing.waiting('input'):
          batch = next(batches)
        self._profile(step)
        state, metrics = self._program.step(
          state, self._program.put(batch, self._requests())
        )
        self._read_previous()
        self._previous = step, metrics
        if _due(step, training.eval_every, training.num_steps):
          self._evaluate(step, state)
        if (
          _due(step, training.checkpoint_every, training.num_steps)
          or self._asked['save']
          or self._asked['stop']
        ):
          self._checkpoint(step, state)
        if self._asked['stop'] and step < training.num_steps:
          self._saved.wait()
          raise preemption.Stopped(f'{self._run.name} is saved at step {step}')
      self._read_previous()
      self._profile(training.num_steps + 1)
    self._progress.finish()
    return state

  def close(self) -> None:
    """Closes what it writes by itself."""
    self._timing.close()

  def _requests(self) -> tuple[bool, bool]:
    """Whether this process asks to stop, and to save."""
    minutes = self._run.training.checkpoint_minutes
    passed = time.monotonic() - self._saved_at
    due = bool(minutes) and distributed.index() == 0 and passed > 60 * minutes
    return preemption.is_asked(), due

  def _profile(self, step: int) -> None:
    """Starts or ends the trace that the config asks for, before a step."""
    training = self._run.training
    end = min(
      training.profile_from + training.profile_steps, training.num_steps + 1
    )
    if self._tracing and step == end:
      self._read_previous()  # The device is done with what was traced.
      self._tracing.close()
      self._tracing = None
    elif step == training.profile_from < end:
      self._tracing = contextlib.ExitStack()
      self._tracing.enter_context(_traced(self._run.artifact))

  def _read_previous(self) -> None:
    """Reads the last step's metrics, which the device has by now."""
    if self._previous is None:
      return
    step, metrics = self._previous
    self._previous = None
    values = jax.device_get(metrics)
    for name, asked in zip(
      state_lib.HOST_REQUESTS, values.pop('requests'), strict=True
    ):
      self._asked[name] |= bool(asked)
    bad = bool(values.pop('bad_step'))
    values = {name: float(value) for name, value in values.items()}
    self._watchdog.step_ended(step)
    self._note_bad(step, bad, values)
    training = self._run.training
    self._progress.add(training.tokens_per_step, f'loss {values["loss"]:.3f}')
    if _due(step, training.log_every, training.num_steps):
      del values['tokens']
      self._write(step, {**values, **self._run.reader.position(step)})
      if self._writer:
        self._writer.show(step, self._timing.write(step))

  def _note_bad(self, step: int, bad: bool, values: dict[str, float]) -> None:
    """Stops at a bad step, or says that it was skipped.

    Raises:
      UserError: the config says to stop, or too many follow each other.
    """
    self._skipped = self._skipped + 1 if bad else 0
    if not bad:
      return
    training = self._run.training
    ids = self._run.reader.example_ids(step - 1)
    what = (
      f'{self._run.name}: step {step} is bad: loss {values["loss"]}, gradient '
      f'norm {values["grad_norm"]}, over the examples '
      f'{", ".join(ids) if ids else "(the reader does not know)"}.'
    )
    if training.on_bad_step == 'skip' and self._skipped < _MOST_SKIPPED:
      logger.warning('%s The parameters stay as they were.', what)
      self._write(step, {'skipped': 1.0})
      return
    self._saved.wait()
    steps = checkpoints.steps(self._run.artifact.path)
    raise UserError(
      f'{what} The last checkpoint is of step '
      f'{steps[-1] if steps else "none"}; lower learning_rate or '
      'max_grad_norm and run in a new --workdir, or leave such steps out, with '
      f"on_bad_step='skip' (at most {_MOST_SKIPPED - 1} in a row)."
    )

  def _write(self, step: int, values: dict[str, float]) -> None:
    if self._writer:
      tokens = step * self._run.training.tokens_per_step
      self._writer.write(step, {'tokens': tokens, **values})

  def _evaluate(self, step: int, state: state_lib.State) -> None:
    self._read_previous()
    with self._timing.waiting('evaluation'):
      self._write(step, self._run.curve.losses(state['params']))
    self._watchdog.step_ended(step)

  def _checkpoint(self, step: int, state: state_lib.State) -> None:
    self._read_previous()  # Never a checkpoint of a state that is not finite.
    rest = {name: state[name] for name in _STATE}
    with self._timing.waiting('checkpoint'):
      self._timing.sync()
      if self._writer:
        self._writer.sync()  # The checkpoint says that the file has its lines.
      self._saved.save(
        step,
        {'params': state['params'], 'rest': rest},
        self._writer.facts() if self._writer else None,
      )
    self._saved_at, self._asked['save'] = time.monotonic(), False
    self._watchdog.step_ended(step)


@contextlib.contextmanager
def _traced(artifact: artifacts.Artifact) -> Iterator[None]:
  """Writes what the devices do in this block to the folder `profile`."""
  path = f'{artifact.path}/profile'
  name = artifact.temporary(f'{path}-{distributed.index()}')
  with files.scratch_folder(name) as folder:
    jax.profiler.start_trace(folder)
    yield
    jax.profiler.stop_trace()
    files.upload_folder(folder, path, artifact.write_file)


def _due(step: int, every: int, last: int) -> bool:
  return step % every == 0 or step == last


def _finish(
  run: Run, state: state_lib.State, writer: MetricsWriter | None
) -> None:
  """Writes the manifest of a finished run."""
  steps = run.training.num_steps
  digest = checkpoints.params_hash(state['params'])
  if writer:
    writer.sync()
    run.artifact.finish(
      {'params': {'sha256': digest}},
      step=steps,
      params_hash=digest,
      metrics=writer.facts(),
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
