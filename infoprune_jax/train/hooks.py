"""The hooks of the train loop: the work between two steps.

The loop calls every hook once for each step, in the order of its list. First it
starts the next step on the devices, so that they never wait for the hooks. If a
hook needs the state after a step, the loop calls the hooks of that step before
it starts the next one.
"""

import contextlib
import dataclasses
import faulthandler
import os
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping

import jax

from infoprune_jax.batches import loader
from infoprune_jax.config.model import ModelConfig
from infoprune_jax.config.training import TrainingConfig
from infoprune_jax.config.validation import UserError
from infoprune_jax.evaluate.perplexity import Curve
from infoprune_jax.model import checkpoints, flops
from infoprune_jax.model.mesh import Mesh
from infoprune_jax.runtime import (
  distributed,
  files,
  peers,
  preemption,
  progress,
)
from infoprune_jax.runtime.artifacts import Artifact
from infoprune_jax.runtime.progress import logger
from infoprune_jax.score.references import Reference
from infoprune_jax.train.branches import Start
from infoprune_jax.train.metrics import MetricsWriter
from infoprune_jax.train.state import Program, State, compile_program
from infoprune_jax.train.timing import Timing

STATE_ITEMS = ('opt_state', 'step', 'loss_mean')  # Scoring does not read them.
MAX_SKIPPED = 10  # bad steps in a row; that many are not chance
WATCHDOG_EXIT_CODE = peers.LOST_EXIT_CODE


@dataclasses.dataclass(frozen=True)
class Run:
  """One training run: its config, its data and its folder."""

  name: str  # for the user
  workdir: str
  artifact: Artifact
  model: ModelConfig
  training: TrainingConfig  # with its budget in steps
  seed: int
  reader: loader.Reader
  curve: Curve
  vocab_size: int
  vocabulary: str  # its hash
  mesh: Mesh
  initial: Reference | None = None  # the model to start from
  # The last step of a finished run that goes on; 0 for one that does not. Its
  # checkpoint is kept until the new end.
  finished_step: int = 0
  start: Start | None = None  # the checkpoint to start from
  kept_steps: Collection[int] = ()  # that other runs start from

  @property
  def flops_per_step(self) -> float:
    """FLOPs of a step, by the formula of `model/flops.py`."""
    return self.training.tokens_per_step * flops.training_flops_per_token(
      self.model, self.vocab_size, self.training.sequence_length
    )

  def compile(self, model: ModelConfig, training: TrainingConfig) -> Program:
    """The program of this run, or of the same run computed in less memory."""
    return compile_program(
      model, training, self.vocab_size, self.mesh, self.reader.segments
    )


@dataclasses.dataclass(frozen=True)
class Session:
  """A run that this process trains, with its open files."""

  run: Run
  first: int  # the step of the checkpoint it starts from; 0 for a new run
  saved: checkpoints.Checkpoints
  writer: MetricsWriter
  timing: Timing

  def is_due(self, every: int, number: int) -> bool:
    """Whether a step is a multiple of `every`, or the last step."""
    return number % every == 0 or number == self.run.training.num_steps


@dataclasses.dataclass(frozen=True)
class Step:
  """A step that the devices have finished."""

  number: int  # from 1
  state: State | None  # after the step; None if the next step has taken it over
  values: Mapping[str, float]  # loss, grad_norm, ..., see `state.Program`
  is_bad: bool  # its loss or gradient is not finite, or a spike
  requests: Mapping[str, bool]  # whether any process asks, by HOST_REQUESTS


class Hook:
  """Work between two steps. All processes have the same hooks."""

  def __init__(self, session: Session):
    self._session, self._run = session, session.run
    self._training = session.run.training

  def is_due(self, number: int) -> bool:
    """Whether the hook needs the state after this step."""
    del number
    return False

  def request(self) -> str:
    """The request, one of HOST_REQUESTS, of this process to all; or ''."""
    return ''

  def __call__(self, step: Step) -> None:
    """Does the work after a step."""
    raise NotImplementedError

  def close(self) -> None:
    """Ends all that the hook has started. A second call does nothing."""


class Watchdog(Hook):
  """Ends a process whose training hangs, with the stacks of its threads."""

  def __init__(
    self,
    name: str,
    minutes: float,
    exit_process: Callable[[int], None] = os._exit,
  ):
    """Starts to watch.

    Args:
      name: Name of the run, for the message.
      minutes: The longest time between two calls; 0.0 for no limit.
      exit_process: Ends the process with an exit code.
    """
    self._name, self._seconds, self._exit = name, 60 * minutes, exit_process
    self._number, self._since = 0, time.monotonic()
    self._closed = threading.Event()
    if minutes:
      self._thread = threading.Thread(target=self._watch, daemon=True)
      self._thread.start()

  def __call__(self, step: Step) -> None:
    """Notes the time of the step."""
    self._number, self._since = step.number, time.monotonic()

  def close(self) -> None:
    """Ends the thread."""
    self._closed.set()
    if self._seconds:
      self._thread.join()

  def _watch(self) -> None:
    while not self._closed.wait(min(self._seconds / 10, 10.0)):
      if time.monotonic() - self._since > self._seconds:
        self._report_and_exit()
        return

  def _report_and_exit(self) -> None:
    progress.wipe()
    print(
      f'infoprune_jax: {self._name}: process {distributed.index()} of '
      f'{distributed.count()} has ended no step after step {self._number} for '
      f'{self._seconds / 60:g} minutes (watchdog_minutes). Its threads are:',
      file=sys.stderr,
      flush=True,
    )
    faulthandler.dump_traceback(all_threads=True)
    self._exit(WATCHDOG_EXIT_CODE)


class BadSteps(Hook):
  """Stops the run at a bad step, or logs that the step was skipped."""

  _in_a_row = 0

  def __call__(self, step: Step) -> None:
    """Counts bad steps in a row.

    Raises:
      UserError: the config says to stop, or too many steps are bad.
    """
    self._in_a_row = self._in_a_row + 1 if step.is_bad else 0
    if not step.is_bad:
      return
    examples = self._run.reader.examples(step.number - 1)
    names = ', '.join(f'{id_} of {source}' for source, id_ in examples)
    message = (
      f'{self._run.name}: step {step.number} is bad: loss '
      f'{step.values["loss"]}, gradient norm {step.values["grad_norm"]}, '
      f'examples {names or "unknown to this reader"}.'
    )
    if self._training.on_bad_step == 'skip' and self._in_a_row < MAX_SKIPPED:
      logger.warning('%s The parameters do not change.', message)
      self._session.writer.write(step.number, {'skipped': 1.0})
      return
    self._session.saved.wait()
    saved = checkpoints.steps(self._run.artifact.path)
    raise UserError(
      f'{message} The last checkpoint is of step '
      f'{saved[-1] if saved else "none"}; lower learning_rate or '
      'max_grad_norm and run in a new --workdir, or skip such steps, with '
      f"on_bad_step='skip' (at most {MAX_SKIPPED - 1} in a row)."
    )


class Metrics(Hook):
  """Writes metrics and times every `log_every` steps."""

  def __call__(self, step: Step) -> None:
    """Writes them if they are due."""
    if not self._session.is_due(self._training.log_every, step.number):
      return
    position = self._run.reader.position(step.number)
    values = {k: v for k, v in step.values.items() if k != 'tokens'}
    self._session.writer.write(step.number, {**values, **position})
    self._session.writer.write_timing(
      step.number, self._session.timing.write(step.number)
    )


class Evaluate(Hook):
  """Writes the loss on held-out documents."""

  def is_due(self, number: int) -> bool:
    """Due every `eval_every` steps."""
    return self._session.is_due(self._training.eval_every, number)

  def __call__(self, step: Step) -> None:
    """Evaluates if it is due."""
    if step.state is None or not self.is_due(step.number):
      return
    with self._session.timing.waiting('evaluation'):
      losses = self._run.curve.losses(step.state['params'])
      self._session.writer.write(step.number, losses)


class Checkpoint(Hook):
  """Saves the state: by steps, by the clock, and before the run stops.

  It comes after `BadSteps`, so that it never saves a state that is not finite.
  """

  def __init__(self, session: Session):
    super().__init__(session)
    self._is_requested, self._saved_at = False, time.monotonic()

  def is_due(self, number: int) -> bool:
    """Due every `checkpoint_every` steps, for others, and after a request."""
    is_asked = self._is_requested or number in self._run.kept_steps
    return is_asked or self._session.is_due(
      self._training.checkpoint_every, number
    )

  def request(self) -> str:
    """Process 0 asks for a checkpoint after `checkpoint_minutes`."""
    minutes = self._training.checkpoint_minutes
    passed = time.monotonic() - self._saved_at
    late = minutes and passed > 60 * minutes and distributed.index() == 0
    return 'save' if late else ''

  def __call__(self, step: Step) -> None:
    """Saves if it is due."""
    self._is_requested |= step.requests['save'] or step.requests['stop']
    if step.state is not None and self.is_due(step.number):
      self.save(step.number, step.state)
      self._is_requested, self._saved_at = False, time.monotonic()

  def save(self, number: int, state: State) -> None:
    """Starts to write a checkpoint."""
    with self._session.timing.waiting('checkpoint'):
      self._session.timing.sync()
      # The checkpoint holds the size and checksum of the metrics so far.
      self._session.writer.sync()
      rest = {name: state[name] for name in STATE_ITEMS}
      items = {'params': state['params'], 'rest': rest}
      self._session.saved.save(number, items, self._session.writer.facts())


class Profile(Hook):
  """Traces `profile_steps` steps into the folder `profile` of the run."""

  def __init__(self, session: Session):
    """Starts the trace now if the next step is its first one."""
    super().__init__(session)
    self._begin = self._training.profile_from - 1
    self._end = min(
      self._begin + self._training.profile_steps, self._training.num_steps
    )
    self._trace = contextlib.ExitStack()
    self._begin_at(session.first)

  def is_due(self, number: int) -> bool:
    """Due before the first step of the trace, and after its last."""
    return self._begin < self._end and number in (self._begin, self._end)

  def __call__(self, step: Step) -> None:
    """Starts or ends the trace if it is due."""
    if step.number == self._end:
      self.close()
    self._begin_at(step.number)

  def close(self) -> None:
    """Ends the trace, if there is one, and uploads it."""
    self._trace.close()

  def _begin_at(self, number: int) -> None:
    if number == self._begin < self._end:
      self._trace.enter_context(_traced(self._run.artifact))


@contextlib.contextmanager
def _traced(artifact: Artifact) -> Iterator[None]:
  path = f'{artifact.path}/profile'
  name = artifact.temporary(f'{path}-{distributed.index()}')
  with files.scratch_folder(name) as folder:
    jax.profiler.start_trace(folder)
    yield
    jax.profiler.stop_trace()
    files.upload_folder(folder, path, artifact.write_file)


class Progress(Hook):
  """Logs how far the run is, its rate and its loss, every few seconds."""

  def __init__(self, session: Session):
    super().__init__(session)
    tokens = self._training.tokens_per_step
    self._progress = progress.Progress(
      self._run.name,
      'tokens',
      self._training.num_steps * tokens,
      done=session.first * tokens,
    )

  def __call__(self, step: Step) -> None:
    """Counts the tokens of a step."""
    loss = f'loss {step.values["loss"]:.3f}'
    self._progress.add(self._training.tokens_per_step, loss)
    if step.number == self._training.num_steps:
      self._progress.finish(loss)


class Stop(Hook):
  """Ends the run after a signal to any process, at one step on all of them.

  It comes after `Checkpoint`, which saves that step.
  """

  _is_requested = False

  def request(self) -> str:
    """Asks all processes to stop after SIGTERM or SIGINT."""
    return 'stop' if preemption.is_asked() else ''

  def __call__(self, step: Step) -> None:
    """Stops, unless this is the last step.

    Raises:
      preemption.Stopped: a checkpoint of this step is written.
    """
    self._is_requested |= step.requests['stop']
    is_last = step.number == self._training.num_steps
    if self._is_requested and step.state is not None and not is_last:
      self._session.saved.wait()
      name = self._run.name
      told = distributed.all_gather(
        f'the signals to {name}', preemption.is_asked()
      )
      # One process alone has said so when the signal came.
      who = ', '.join(
        str(index) for index, is_told in enumerate(told) if is_told
      )
      raise preemption.Stopped(
        f'{name} is saved at step {step.number}'
        + f' because process {who} was told to stop' * (len(told) > 1)
      )
