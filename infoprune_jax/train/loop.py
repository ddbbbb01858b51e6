"""The train loop: one run of a model over packed rows, resumed exactly."""

import dataclasses
import math
from typing import Any

import jax

from infoprune_jax import artifacts
from infoprune_jax.config import ModelConfig, TrainingConfig, UserError
from infoprune_jax.data import loader
from infoprune_jax.evaluate.perplexity import Curve
from infoprune_jax.model import checkpoints, flops
from infoprune_jax.progress import Progress, logger
from infoprune_jax.train import state as state_lib
from infoprune_jax.train.metrics import MetricsWriter


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


def train(run: Run) -> None:
  """Trains to `num_steps`, from the newest checkpoint if there is one.

  Writes checkpoints, metrics and, last, the manifest.

  Raises:
    UserError: the loss is not finite.
  """
  run.artifact.begin()
  path, training = run.artifact.path, run.training
  program = state_lib.compile_program(
    run.model, training, run.vocab_size, run.mesh, run.reader.max_pieces
  )
  saved = checkpoints.Checkpoints(path, training.max_checkpoints)
  first = saved.latest_step() or 0
  if first:
    state, metrics = _restore(saved, first, program.shapes, run.artifact.job)
    logger.info('%s: resumed at step %d', run.name, first)
  else:
    state, metrics = program.init(run.seed), None
  writer = MetricsWriter(path, first, metrics, run.artifact.job)
  loop = _Loop(run, program, saved, writer, first)
  try:
    state = loop.run(state)
  finally:
    saved.close()
    writer.close()
  _finish(run, state, loop.tokens_before(training.num_steps), writer.facts())


def _restore(
  saved: checkpoints.Checkpoints,
  step: int,
  shapes: state_lib.State,
  job: str,
) -> tuple[state_lib.State, dict[str, Any]]:
  """The state, and what the metrics were."""
  rest = {name: shapes[name] for name in ('opt_state', 'step')}
  items, metrics = saved.restore(
    step, {'params': shapes['params'], 'rest': rest}, job
  )
  return {'params': items['params'], **items['rest']}, metrics


class _Loop:
  """The steps of a run, and what is done between them."""

  def __init__(
    self,
    run: Run,
    program: state_lib.Program,
    saved: checkpoints.Checkpoints,
    writer: MetricsWriter,
    first: int,
  ):
    self._run, self._program = run, program
    self._saved, self._writer, self._first = saved, writer, first
    training = run.training
    self._tokens_a_step = training.tokens_per_step
    self._progress = Progress(
      run.name,
      'tokens',
      training.num_steps * self._tokens_a_step,
      done=first * self._tokens_a_step,
    )
    self._previous: tuple[int, Any] | None = None

  def tokens_before(self, step: int) -> int:
    """Slots of all rows of the first `step` steps."""
    return step * self._tokens_a_step

  def run(self, state: state_lib.State) -> state_lib.State:
    """Takes the steps that are left."""
    training = self._run.training
    batches = self._run.reader.batches(self._first, training.num_steps)
    for step, batch in enumerate(batches, self._first + 1):
      state, metrics = self._program.step(state, self._program.put(batch))
      self._read_previous()
      self._previous = step, metrics
      if _due(step, training.eval_every, training.num_steps):
        self._evaluate(step, state)
      if _due(step, training.checkpoint_every, training.num_steps):
        self._checkpoint(step, state)
    self._read_previous()
    self._progress.finish()
    return state

  def _read_previous(self) -> None:
    """Reads the last step's metrics, which the device has by now."""
    if self._previous is None:
      return
    step, metrics = self._previous
    self._previous = None
    values = {name: float(value) for name, value in metrics.items()}
    if not math.isfinite(values['loss'] + values['grad_norm']):
      raise UserError(
        f'{self._run.name}: the loss is not finite at step {step} (loss '
        f'{values["loss"]}, gradient norm {values["grad_norm"]}). The last '
        f'checkpoint is of step {self._saved.latest_step() or "none"}; lower '
        'learning_rate or max_grad_norm, and run in a new --workdir.'
      )
    self._progress.add(self._tokens_a_step, f'loss {values["loss"]:.3f}')
    if _due(step, self._run.training.log_every, self._run.training.num_steps):
      self._writer.write(
        step,
        {
          'tokens': self.tokens_before(step),
          **{name: value for name, value in values.items() if name != 'tokens'},
        },
      )

  def _evaluate(self, step: int, state: state_lib.State) -> None:
    self._read_previous()
    self._writer.write(
      step,
      {
        'tokens': self.tokens_before(step),
        **self._run.curve.losses(state['params']),
      },
    )

  def _checkpoint(self, step: int, state: state_lib.State) -> None:
    self._read_previous()  # Never a checkpoint of a state that is not finite.
    rest = {name: state[name] for name in ('opt_state', 'step')}
    self._saved.save(
      step, {'params': state['params'], 'rest': rest}, self._writer.facts()
    )


def _due(step: int, every: int, last: int) -> bool:
  return step % every == 0 or step == last


def _finish(
  run: Run, state: state_lib.State, tokens: int, metrics: dict[str, Any]
) -> None:
  """Writes the manifest of a finished run."""
  steps = run.training.num_steps
  digest = checkpoints.params_hash(state['params'])
  per_token = flops.training_flops_per_token(
    run.model, run.vocab_size, run.training.row_length
  )
  run.artifact.finish(
    {'params': {'sha256': digest}},
    step=steps,
    params_hash=digest,
    metrics=metrics,
    num_params=flops.num_params(run.model, run.vocab_size),
    vocabulary=run.vocabulary,
    vocab_size=run.vocab_size,
    **run.reader.facts(steps),
    tokens=tokens,
    flops=tokens * per_token,
    devices=jax.device_count(),
    platform=jax.devices()[0].platform,
  )
