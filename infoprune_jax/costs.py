"""What each stage costs, as a line of the dry run: tokens, FLOPs, memory."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from infoprune_jax.config.experiment import Config
from infoprune_jax.config.model import ModelConfig
from infoprune_jax.config.training import TrainingConfig
from infoprune_jax.corpus.records import InputFile
from infoprune_jax.model import flops, network
from infoprune_jax.runtime.progress import quantity
from infoprune_jax.runtime.workdir import reference_dir
from infoprune_jax.score import references
from infoprune_jax.train import optimizer


@dataclasses.dataclass(frozen=True)
class Plan:
  """A job that is not run: what its costs are computed from."""

  config: Config
  workdir: str
  vocab_size: int
  inputs: Sequence[InputFile]
  splits: Mapping[str, Any] | None  # of the token store; None if there is none


def tokenize(plan: Plan) -> str:
  """The number and the size of input files."""
  size = quantity(sum(file.size for file in plan.inputs))
  return f'{len(plan.inputs)} files, {size}B as stored'


def statistics(plan: Plan) -> str:
  """Of the stages without a model: tokens, and no FLOPs."""
  return _scoring(plan, [], 1, _scored_tokens(plan))


def reference_folders(config: Config, workdir: str) -> list[str]:
  """The folder of each model that the stage `reference` trains."""
  folds = config.reference.folds if config.reference.is_trained else 0
  return [reference_dir(workdir, n, folds) for n in range(folds)]


def reference(plan: Plan) -> str:
  """Training one model for each fold."""
  section = plan.config.reference
  if not section.is_trained:
    return 'given, nothing to train'
  return _training(plan, section.model, section.training, section.folds)


def score(plan: Plan) -> str:
  """One forward pass of each model that scores."""
  models = list(references.models(plan.config).values())
  sequence_length = plan.config.score.sequence_length
  return _scoring(plan, models, sequence_length, _scored_tokens(plan))


def select(plan: Plan) -> str:
  """The names of the arms."""
  return f'{len(plan.config.arms)} arms: {", ".join(plan.config.arms)}'


def train(plan: Plan) -> str:
  """Training each arm for each seed."""
  config = plan.config
  return _training(plan, config.model, config.train.training, len(config.runs))


def evaluate(plan: Plan) -> str:
  """One forward pass of each run over the held-out documents."""
  config = plan.config
  tokens = None
  if plan.splits is not None:
    tokens = plan.splits['heldout']['tokens'] * len(config.runs)
  sequence_length = config.evaluate.scoring.sequence_length
  return _scoring(plan, [config.model], sequence_length, tokens)


def _scored_tokens(plan: Plan) -> int | None:
  """The tokens that get a score; None before the corpus is tokenized."""
  names = (
    ('scored',) if plan.config.reference.folds == 1 else ('scored', 'reference')
  )
  if plan.splits is None:
    return None
  return sum(plan.splits[name]['tokens'] for name in names)


def _training(
  plan: Plan, model: ModelConfig, training: TrainingConfig, num_runs: int
) -> str:
  per_token = flops.training_flops_per_token(
    model, plan.vocab_size, training.sequence_length
  )
  training = training.in_steps(per_token, 'training')
  tokens = training.num_steps * training.tokens_per_step
  shapes = network.param_shapes(model, plan.vocab_size)
  axes = network.param_axes(model, plan.vocab_size)
  # Float32: parameters, a gradient, and its sum when gradients are accumulated.
  copies = 2 + (training.gradient_accumulation_steps > 1)
  memory = 4 * copies * flops.num_params(model, plan.vocab_size)
  memory += optimizer.state_bytes(training, shapes, axes)
  return (
    f'{num_runs} x {training.num_steps} steps, {quantity(tokens)} tokens, '
    f'{quantity(num_runs * tokens * per_token)} FLOPs, {quantity(memory)}B of '
    'state and gradients'
  )


def _scoring(
  plan: Plan,
  models: list[ModelConfig],
  sequence_length: int,
  tokens: int | None,
) -> str:
  if tokens is None:
    return 'tokens are known once the corpus is tokenized'
  per_token = sum(
    flops.forward_flops_per_token(model, plan.vocab_size, sequence_length)
    for model in models
  )
  return f'{quantity(tokens)} tokens, {quantity(tokens * per_token)} FLOPs'
