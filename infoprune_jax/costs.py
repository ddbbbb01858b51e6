"""The cost of each stage, for the dry run: tokens, FLOPs, memory."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from infoprune_jax.config.experiment import Config
from infoprune_jax.config.scoring import ScoringConfig
from infoprune_jax.config.training import TrainingConfig
from infoprune_jax.corpus.records import InputFile
from infoprune_jax.model import flops, network
from infoprune_jax.runtime.progress import counted, quantity
from infoprune_jax.score.references import PlannedModel
from infoprune_jax.train import branches, optimizer


@dataclasses.dataclass(frozen=True)
class Plan:
  """A job that is not run: the inputs of its costs."""

  config: Config
  workdir: str
  vocab_size: int
  models: Mapping[str, PlannedModel]  # those that score, by column
  arm: PlannedModel
  inputs: Sequence[InputFile]
  unverified: Sequence[str]  # Parquet sources without page checksums
  unwritten: Sequence[str]  # columns that export cannot write, a message each
  splits: Mapping[str, Any] | None  # of the token store; None if there is none


@dataclasses.dataclass(frozen=True)
class Cost:
  """The cost of one stage."""

  text: str  # sizes
  flops: float = 0.0  # of all models; 0.0 without any, or if not known


def tokenize(plan: Plan) -> Cost:
  """The number of sources, and of files and their size, for each format."""
  by_format: dict[str, list[InputFile]] = {}
  for file in plan.inputs:
    by_format.setdefault(file.config.format, []).append(file)
  texts = []
  for name, files in by_format.items():
    size = quantity(sum(file.size for file in files), 'B')
    sources = len({file.source for file in files})
    texts.append(
      f'{counted(sources, f"{name} source")}: {counted(len(files), "file")}, {size}'
    )
  if limit := plan.config.corpus.max_bytes_per_source:
    texts.append(f'at most {quantity(limit, "B")} of each')
  if plan.unverified:
    texts.append(
      f'{counted(len(plan.unverified), "source")} without page checksums'
    )
  return Cost('; '.join(texts))


def statistics(plan: Plan) -> Cost:
  """The cost of stages without a model: tokens, and no FLOPs."""
  return _scoring([], 1, _scored_tokens(plan))


def reference(plan: Plan) -> Cost:
  """Training one model for each fold."""
  section = plan.config.reference
  if not section.is_trained:
    return Cost('the model is given, nothing to train')
  model = PlannedModel(section.model, plan.vocab_size)
  return _training(model, section.training, section.folds)


def score(plan: Plan) -> Cost:
  """One forward pass of each model that scores."""
  models = list(plan.models.values())
  scoring = plan.config.score
  return _scoring(
    models, scoring.sequence_length, _scored_tokens(plan, scoring)
  )


def own_scores(plan: Plan) -> Cost:
  """Scoring for each seed of each arm that scores with its own checkpoint.

  The run that the arm starts from is counted in `train`.
  """
  config = plan.config
  num_tables = len(config.own_scored) * len(config.train.seeds)
  tokens = _scored_tokens(plan, config.score)
  if tokens is not None:
    tokens *= num_tables
  cost = _scoring([plan.arm], config.score.sequence_length, tokens)
  training = _in_steps(plan.arm, config.train.training)
  texts = [cost.text]
  for arm in config.own_scored:
    begins = branches.origin(config, arm, training.num_steps)
    if begins:
      texts.append(f'{arm} scores with step {begins[1]} of {begins[0]}')
  return Cost('; '.join(texts), cost.flops)


def select(plan: Plan) -> Cost:
  """The number of arms."""
  return Cost(counted(len(plan.config.select.arms), 'arm'))


def join(plan: Plan) -> Cost:
  """The number of tables."""
  return Cost(counted(len(plan.config.select.tables), 'table'))


def decontaminate(plan: Plan) -> Cost:
  """The text that is read again; the benchmarks were read by the checks."""
  section = plan.config.select.decontaminate
  size = quantity(sum(file.size for file in plan.inputs), 'B')
  return Cost(
    f'reads the corpus twice, {size}; n-grams of {section.ngram} words'
  )


def train(plan: Plan) -> Cost:
  """Training each arm for each seed; steps that runs share count once."""
  config = plan.config
  training = _in_steps(plan.arm, config.train.training)
  cost = _training(plan.arm, training, len(config.runs))
  texts, steps = [cost.text], 0
  for arm in dict.fromkeys(arm for arm, _ in config.runs):
    own = branches.training(config, arm, training).num_steps
    if begins := branches.origin(config, arm, training.num_steps):
      other, first = begins
      texts.append(f'{arm} starts from {other} at step {first}, to {own}')
      own -= first
    steps += own
  runs = len(config.runs) / len(config.train.seeds)
  fraction = steps / runs / training.num_steps
  return Cost('; '.join(texts), cost.flops * fraction)


def evaluate(plan: Plan) -> Cost:
  """One forward pass of each run over the held-out documents, and tasks."""
  config = plan.config
  tokens = None
  if plan.splits is not None:
    tokens = plan.splits['heldout']['tokens'] * len(config.runs)
  sequence_length = config.evaluate.scoring.sequence_length
  cost = _scoring([plan.arm], sequence_length, tokens)
  names = ', '.join((*config.evaluate.downstream, *config.evaluate.tasks))
  text = f'{cost.text}; also tasks: {names}' if names else cost.text
  return Cost(text, cost.flops)


def _scored_tokens(
  plan: Plan, scoring: ScoringConfig | None = None
) -> int | None:
  """The tokens that get a score; None before the corpus is tokenized."""
  names = (
    ('scored',) if plan.config.reference.folds == 1 else ('scored', 'reference')
  )
  if plan.splits is None:
    return None
  splits = [plan.splits[name] for name in names]
  if scoring is None:
    return sum(split['tokens'] for split in splits)
  return sum(
    scoring.scored_tokens(split['documents'], split['tokens'])
    for split in splits
  )


def _training(
  planned: PlannedModel, training: TrainingConfig, num_runs: int
) -> Cost:
  model, vocab_size = planned.model, planned.vocab_size
  training = _in_steps(planned, training)
  tokens = training.num_steps * training.tokens_per_step
  shapes = network.param_shapes(model, vocab_size)
  axes = network.param_axes(model, vocab_size)
  # Float32: parameters, a gradient, and its sum when gradients are accumulated.
  copies = 2 + (training.gradient_accumulation_steps > 1)
  num_params = flops.num_params(model, vocab_size)
  memory = 4 * copies * num_params
  memory += optimizer.state_bytes(training, shapes, axes)
  return Cost(
    f'{quantity(num_params, "parameters")} in {quantity(memory, "B")}, '
    f'{counted(num_runs, "run")} of {training.num_steps} steps and '
    f'{quantity(tokens, "tokens")}',
    num_runs * tokens * _flops_per_token(planned, training),
  )


def _in_steps(
  planned: PlannedModel, training: TrainingConfig
) -> TrainingConfig:
  return training.in_steps(_flops_per_token(planned, training), 'training')


def _flops_per_token(planned: PlannedModel, training: TrainingConfig) -> float:
  return flops.training_flops_per_token(
    planned.model, planned.vocab_size, training.sequence_length
  )


def _scoring(
  models: list[PlannedModel],
  sequence_length: int,
  tokens: int | None,
) -> Cost:
  if tokens is None:
    return Cost('known once the corpus is tokenized')
  per_token = sum(
    flops.forward_flops_per_token(one.model, one.vocab_size, sequence_length)
    for one in models
  )
  return Cost(quantity(tokens, 'tokens'), tokens * per_token)
