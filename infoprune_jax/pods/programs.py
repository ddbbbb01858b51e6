"""The programs of a job, as the job compiles them, and what they need.

A program is scoring or a step of training, over packed sequences and with the
kernels of its chips.
"""

import dataclasses
import math
from typing import Any

import jax

from infoprune_jax.config.experiment import Config
from infoprune_jax.config.scoring import ScoringConfig
from infoprune_jax.config.training import TrainingConfig
from infoprune_jax.model import (
  backends,
  flops as flops_lib,
  memory,
  network,
)
from infoprune_jax.model.mesh import Mesh
from infoprune_jax.pods import hlo
from infoprune_jax.score import references, scorer
from infoprune_jax.score.references import PlannedModel
from infoprune_jax.train import optimizer as optimizer_lib, state


@dataclasses.dataclass(frozen=True)
class Needs:
  """What a compiled program needs of a chip, in bytes, and its collectives."""

  parameters: int
  optimizer: int  # its state, and counts; 0 in scoring
  batch: int
  temporaries: int  # activations, gradients, gathered parameters
  beside: int  # arrays of others that are there while it runs
  total: int  # without outputs that take the place of inputs
  # By kind; None if libtpu does not print the program.
  collectives: dict[str, hlo.Traffic] | None
  num_unknown_loops: int  # see `hlo.Module`
  remat: str  # as it is computed; 'none' in scoring


@dataclasses.dataclass(frozen=True)
class Program:
  """A program, for a mesh and a batch."""

  name: str
  planned: PlannedModel
  mesh: Mesh
  section: str  # of the config
  config: ScoringConfig | TrainingConfig  # the latter with its budget in steps
  beside: int = 0  # see `Needs`

  @property
  def is_training(self) -> bool:
    """Whether it is a step of training."""
    return isinstance(self.config, TrainingConfig)

  @property
  def dtype(self) -> str:
    """Of the computation."""
    if isinstance(self.config, TrainingConfig):
      return self.planned.model.dtype
    return self.config.dtype

  @property
  def batch_option(self) -> str:
    """The option of the config that sets the batch, and its value."""
    if isinstance(self.config, TrainingConfig):
      return f'{self.section}.batch_size={self.config.batch_size}'
    return f'{self.section}.per_device_batch_size={self.sequences}'

  @property
  def sequences(self) -> int:
    """The sequences that a shard of the batch computes at once."""
    if isinstance(self.config, TrainingConfig):
      return self.config.batch_size // self._num_groups
    return self.config.per_device_batch_size

  @property
  def _num_groups(self) -> int:
    """The groups of `sequences` in a step: shards times micro-batches."""
    parts = getattr(self.config, 'gradient_accumulation_steps', 1)
    return self.mesh.num_shards('batch') * parts

  @property
  def tokens(self) -> int:
    """Tokens of a step on all chips, padding included."""
    return self.sequences * self._num_groups * self.config.sequence_length

  @property
  def flops(self) -> float:
    """Of a step on all chips, by the formula of `model/flops.py`."""
    formula = (
      flops_lib.training_flops_per_token
      if self.is_training
      else flops_lib.forward_flops_per_token
    )
    model, vocab_size = self.planned.model, self.planned.vocab_size
    return self.tokens * formula(model, vocab_size, self.config.sequence_length)

  def check(self) -> None:
    """Raises `UserError` unless model and batch divide over the mesh."""
    model, mesh, config = self.planned.model, self.mesh, self.config
    scorer.abstract_params(model, self.planned.vocab_size, mesh)
    if isinstance(config, TrainingConfig):
      state.check_batch(mesh, config, self.section)
      backends.resolve_training(model, mesh, config.sequence_length)
    else:
      scorer.with_kernels(model, config, mesh)

  def with_sequences(self, sequences: int) -> 'Program':
    """The program with other `sequences`, computed in the least memory."""
    if not isinstance(self.config, TrainingConfig):
      config = dataclasses.replace(self.config, per_device_batch_size=sequences)
      return dataclasses.replace(self, config=config)
    model = self.planned.model
    model = dataclasses.replace(
      model,
      remat='full' if model.remat == 'auto' else model.remat,
      scan_unroll=model.scan_unroll or 1,
    )
    config = dataclasses.replace(
      self.config, batch_size=sequences * self._num_groups
    )
    planned = dataclasses.replace(self.planned, model=model)
    return dataclasses.replace(self, planned=planned, config=config)

  def parameter_bytes(self) -> int:
    """Bytes of the parameters on a chip, as the program takes them."""
    model, vocab_size = self.planned.model, self.planned.vocab_size
    if isinstance(self.config, TrainingConfig):
      shapes = scorer.abstract_params(model, vocab_size, self.mesh)
    else:
      model = dataclasses.replace(model, dtype=self.config.dtype)
      shapes = scorer.prepared_shapes(model, vocab_size, self.mesh)
    return _bytes_on_chip(shapes)

  def compile(self) -> Needs:
    """Compiles it.

    Raises:
      jax.errors.JaxRuntimeError: RESOURCE_EXHAUSTED, it does not fit.
    """
    model, vocab_size = self.planned.model, self.planned.vocab_size
    params = self.parameter_bytes()
    if isinstance(self.config, TrainingConfig):
      made = state.compile_program(model, self.config, vocab_size, self.mesh)
      optimizer = _bytes_on_chip(made.shapes) - params
      return _needs(made.step, params, optimizer, 0, made.model.remat)
    chosen = scorer.choose(model, self.config, vocab_size, self.mesh)
    return _needs(chosen.program(1), params, 0, self.beside, 'none')


def of_job(config: Config, job: str, mesh: Mesh) -> list[Program]:
  """The programs of a stage; in training the last one is its evaluation.

  Args:
    config: The experiment.
    job: 'score', 'train', 'reference' or 'evaluate'.
    mesh: The mesh, of devices that need not be there.

  Raises:
    UserError: a model from elsewhere, or the vocabulary, is missing.
  """
  if job == 'score':
    return _scoring(config, mesh)
  vocab_size = references.vocab_size(config)
  if job == 'reference':
    planned = PlannedModel(config.reference.model, vocab_size)
    section, training = 'reference.training', config.reference.training
  else:
    planned = references.arm_model(config, vocab_size)
    section, training = 'train.training', config.train.training
  training = _in_steps(training, planned, section)
  step = Program('training step', planned, mesh, section, training)
  # A run holds its own parameters beside those that are cast for evaluation.
  beside = step.parameter_bytes()
  if job != 'evaluate':
    beside = int(beside * _state_ratio(planned, training))
  scoring = config.evaluate.scoring
  evaluation = Program(
    'evaluation', planned, mesh, 'evaluate.scoring', scoring, beside
  )
  return [evaluation] if job == 'evaluate' else [step, evaluation]


def _in_steps(
  training: TrainingConfig, planned: PlannedModel, section: str
) -> TrainingConfig:
  per_token = flops_lib.training_flops_per_token(
    planned.model, planned.vocab_size, training.sequence_length
  )
  return training.in_steps(per_token, section)


def _state_ratio(planned: PlannedModel, training: TrainingConfig) -> float:
  """The bytes of a train state, as a multiple of those of its parameters."""
  shapes = network.param_shapes(planned.model, planned.vocab_size)
  axes = network.param_axes(planned.model, planned.vocab_size)
  params = sum(4 * math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes))
  return 1 + optimizer_lib.state_bytes(training, shapes, axes) / params


def _scoring(config: Config, mesh: Mesh) -> list[Program]:
  """The program of each model that scores, beside the other models."""
  programs = [
    Program(f'scoring {column}', planned, mesh, 'score', config.score)
    for column, planned in references.planned(config).items()
  ]
  held = [one.parameter_bytes() for one in programs]
  # Models of one shape share a program.
  distinct: dict[PlannedModel, Program] = {}
  for one, own in zip(programs, held, strict=True):
    beside = sum(held) - own
    distinct.setdefault(one.planned, dataclasses.replace(one, beside=beside))
  return list(distinct.values())


def _needs(
  program: Any, parameters: int, optimizer: int, beside: int, remat: str
) -> Needs:
  """What a compiled program needs."""
  used = program.memory_analysis()
  module = hlo.printed(program)
  return Needs(
    parameters=parameters,
    optimizer=optimizer,
    batch=used.argument_size_in_bytes - parameters - optimizer,
    temporaries=used.temp_size_in_bytes,
    beside=beside,
    total=memory.total_bytes(used) + beside,
    collectives=module.collectives() if module else None,
    num_unknown_loops=module.num_unknown_loops if module else 0,
    remat=remat,
  )


def _bytes_on_chip(shapes: Any) -> int:
  """Bytes of a tree of shapes with shardings, on one chip."""
  return sum(
    math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
    for leaf in jax.tree.leaves(shapes)
  )
