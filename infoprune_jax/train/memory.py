"""What is said when a training step does not fit its devices."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

from infoprune_jax.config.model import REMAT, ModelConfig
from infoprune_jax.config.training import TrainingConfig
from infoprune_jax.model import memory, partitioning
from infoprune_jax.runtime.progress import logger


def oom_as_user_error(
  name: str,
  model: ModelConfig,
  training: TrainingConfig,
  mesh: Any,
  compiled: Callable[[ModelConfig, TrainingConfig], Any],
) -> contextlib.AbstractContextManager[None]:
  """Turns a lack of device memory into a message with a step that fits.

  The same step, computed otherwise: in parts, or with less of it kept. A run
  that has begun may go on so.

  Args:
    name: Of the run, for the user.
    model: Its model.
    training: Its training.
    mesh: Where it runs.
    compiled: Gives the compiled step of another such model and training.

  Raises:
    UserError: device memory ran out in this block.
  """

  def explain() -> str:
    advice = 'nothing smaller fits: spread it over more devices, with mesh.fsdp'
    for other in _smaller(model, training, mesh):
      logger.info(
        '%s: device memory ran out, trying %s', name, _choices(*other)
      )
      if memory.fits(lambda other=other: compiled(*other), mesh):
        advice = f'{_choices(*other)} fits'
        break
    return (
      f'{name}: a step of {training.batch_size} sequences of {training.sequence_length} '
      f'tokens, with {_choices(model, training)}, needs more memory than a '
      f'device has: {advice}.'
    )

  return memory.oom_as_user_error(explain)


def _choices(model: ModelConfig, training: TrainingConfig) -> str:
  parts = training.gradient_accumulation_steps
  return f"training.gradient_accumulation_steps={parts} and model.remat='{model.remat}'"


def _smaller(
  model: ModelConfig, training: TrainingConfig, mesh: Any
) -> Iterator[tuple[ModelConfig, TrainingConfig]]:
  """Ever more parts, then ever less that is kept."""
  num_shards = partitioning.num_batch_shards(mesh)
  parts = training.gradient_accumulation_steps * 2
  while training.batch_size % (parts * num_shards) == 0:
    training = dataclasses.replace(training, gradient_accumulation_steps=parts)
    yield model, training
    parts *= 2
  for policy in REMAT[REMAT.index(model.remat) + 1 :]:
    yield dataclasses.replace(model, remat=policy), training
