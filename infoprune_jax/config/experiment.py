"""Frozen dataclasses for every section of a config, and their validation.

Names, types, units, defaults and what is refused. A default is part of the
format of artifacts (`runtime/options.py`): it never changes once it is
released. Seeds have none, and neither has what only an experiment can know.
`configs/base.py` holds the values of a first experiment. Standard library only.
"""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

from infoprune_jax.config.corpus import CorpusConfig, VocabularyConfig
from infoprune_jax.config.model import DTYPES, ModelConfig
from infoprune_jax.config.selection import NearDuplicatesConfig, RuleConfig
from infoprune_jax.config.training import TrainingConfig
from infoprune_jax.config.validation import (
  UserError,
  build,
  check_choice,
  check_positive,
  check_range,
  check_seeds,
)

# Those of each arm, then those that hold all arms at once.
ARM_EXPORTS = ('jsonl', 'parquet', 'array_record', 'tfds')
JOINT_EXPORTS = ('scores', 'dolma_attributes')
EXPORT_FORMATS = ARM_EXPORTS + JOINT_EXPORTS


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeshConfig:
  """Devices of a slice along each mesh axis; -1 on one axis takes what is left.

  Of TPUs in several slices `dcn_data` times `dcn_fsdp` is their number: the
  axis `data` then has `dcn_data` times `data` devices, and `fsdp` likewise.
  """

  data: int = -1
  fsdp: int = 1
  tensor: int = 1
  # Splits the tokens of each sequence over devices, for sequences that do not
  # fit in one.
  sequence: int = 1
  dcn_data: int = 1  # the number of slices, where TPUs come in several
  dcn_fsdp: int = 1
  # Changes to `model.mesh.RULES`, which name the mesh axes of a logical axis:
  # {'embed': ('fsdp', 'sequence')} shards parameters over both mesh axes.
  rules: Mapping[str, tuple[str, ...]] = dataclasses.field(
    default_factory=dict, hash=False
  )

  def __post_init__(self):
    check_positive('mesh', self, 'dcn_data', 'dcn_fsdp')
    sizes = (self.data, self.fsdp, self.sequence, self.tensor)
    if any(size < 1 and size != -1 for size in sizes) or sizes.count(-1) > 1:
      raise UserError(
        'mesh.data, mesh.fsdp, mesh.sequence and mesh.tensor must be positive, '
        f'with -1 on at most one of them, got {sizes}.'
      )


@dataclasses.dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
  """A trained model: a step of a run, or a file of parameters."""

  # The folder of a finished run, or a .safetensors file that
  # tools/export_params.py wrote; '' for the run of the stage `reference`.
  path: str = ''
  step: int = -1  # of a run, one that it has kept; -1 for its last

  def __post_init__(self):
    check_range('checkpoint.step', self.step, -1, 2**62)
    if self.is_file and self.step != -1:
      raise UserError(
        f'checkpoint.step is {self.step}, but {self.path} holds the parameters '
        'of one step: leave it at -1.'
      )

  @property
  def is_file(self) -> bool:
    """Whether it is a file of parameters, not a run."""
    return self.path.endswith('.safetensors')


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReferenceConfig:
  """The models whose surprise is the score.

  With one fold a model trains on the reference split and scores the scored one;
  with two, each of two models trains on one half of both and scores the other
  half. A model that is there already can take its place, and others can score
  in the same pass, for instance an earlier step or a smaller model.
  """

  model: ModelConfig
  training: TrainingConfig
  seed: int
  folds: int = 1
  checkpoint: CheckpointConfig = CheckpointConfig()  # scores column `nll_sum`
  # Column `nll_sum_<name>` each.
  extra_models: Mapping[str, CheckpointConfig] = dataclasses.field(
    default_factory=dict
  )

  def __post_init__(self):
    check_seeds('reference.seed', self.seed)
    check_choice('reference.folds', self.folds, (1, 2))
    if self.checkpoint.path and self.folds > 1:
      raise UserError(
        f'reference.folds is {self.folds}, but reference.checkpoint.path gives '
        'one model: with folds each half has a model that is trained here.'
      )
    for name in self.extra_models:
      if not re.fullmatch('[a-z][a-z0-9_]*', name):
        raise UserError(
          f'reference.extra_models: {name!r} names a column, nll_sum_<name>: use '
          'small letters, digits and _.'
        )

  @property
  def checkpoints(self) -> dict[str, CheckpointConfig]:
    """What scores each column of NLL."""
    return {
      'nll_sum': self.checkpoint,
      **{f'nll_sum_{name}': other for name, other in self.extra_models.items()},
    }

  @property
  def is_trained(self) -> bool:
    """Whether the stage `reference` has a model to train."""
    return any(not c.path for c in self.checkpoints.values())


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScoringConfig:
  """How documents are laid out and run through a model to get their NLL.

  A score table says its window and dtype to whoever reads it: no defaults.
  """

  # Sequences on each device along the mesh axes `data` and `fsdp`: what a
  # device computes at once does not depend on how many devices and hosts there
  # are.
  per_device_batch_size: int = 32
  sequence_length: int  # tokens
  window_overlap: int  # context tokens shared by windows of a long document
  dtype: str  # of the computation

  def __post_init__(self):
    check_positive('scoring', self, 'per_device_batch_size', 'sequence_length')
    check_choice('scoring.dtype', self.dtype, DTYPES)
    if not 0 <= self.window_overlap < self.sequence_length:
      raise UserError(
        'scoring.window_overlap must be in [0, sequence_length), got '
        f'{self.window_overlap} at sequence_length {self.sequence_length}.'
      )


@dataclasses.dataclass(frozen=True, kw_only=True)
class SelectConfig:
  """What each arm keeps: rules are applied one after another."""

  arms: Mapping[str, tuple[RuleConfig, ...]]

  def __post_init__(self):
    for name, rules in self.arms.items():
      if not rules:
        raise UserError(f'select.arms.{name} has no rule.')
      if len(rules) > 1 and any(
        rule.keep == 'all_plus_reference' for rule in rules
      ):
        raise UserError(
          f"select.arms.{name}: keep='all_plus_reference' adds what was not scored, so "
          "it stands alone: leave the other rules out, or use keep='all'."
        )
      if not name.isidentifier():
        raise UserError(f'select.arms: {name!r} must be a Python identifier.')


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig:
  """The arms to train, each for each seed, at one budget."""

  arms: tuple[str, ...] = ()  # names in select.arms; () for all of them
  seeds: tuple[int, ...]
  training: TrainingConfig

  def __post_init__(self):
    check_seeds('train.seeds', *self.seeds)
    if not self.seeds or len(set(self.seeds)) != len(self.seeds):
      raise UserError(f'train.seeds must be distinct, got {self.seeds}.')
    if len(set(self.arms)) != len(self.arms):
      raise UserError(f'train.arms must be distinct, got {self.arms}.')


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
  """Held-out losses."""

  scoring: ScoringConfig
  # Of the held-out split, scored while training.
  online_eval_tokens: int = 50_000

  def __post_init__(self):
    check_positive('evaluate', self)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReportConfig:
  """What the page compares and shows."""

  baseline: str  # the arm that differences are taken against
  bootstrap_samples: int = 1000
  num_examples: int = 10  # shown at each end of the score, and near a threshold
  # Kinds of sources: for each kind, patterns that match names of sources. A
  # source has at most one kind. With {'code': ('code-*',), 'talk': ('irc',
  # '*-podcasts')} tables also have one row for each kind. A source that no
  # pattern matches has the kind 'other'.
  kinds: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)

  def __post_init__(self):
    check_positive('report', self)
    for kind, patterns in self.kinds.items():
      if not kind.strip() or not patterns or not all(patterns):
        raise UserError(
          f'report.kinds: {kind!r} is {patterns!r}: give a name, and patterns '
          "of the names of sources such as ('code-*',)."
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class LabelsConfig:
  """Pages that people judged, to which --job=labels holds scores."""

  # JSONL, plain, .gz or .zst: a file, folder, glob or URL; '' for none.
  path: str = ''
  text_column: str = 'text'  # 'a.b' is field b of column a, here and below
  label_column: str = 'label'  # 0 and 1, or false and true
  group_column: str = ''  # strings: figures within each group too; '' for none
  scores: Mapping[str, str]  # SQL expressions over score-table columns, by name
  bootstrap_samples: int = 1000
  seed: int  # of the bootstrap

  def __post_init__(self):
    check_positive('labels', self, 'bootstrap_samples')
    check_seeds('labels.seed', self.seed)
    for name in ('text_column', 'label_column'):
      if not getattr(self, name):
        raise UserError(f'labels.{name} is empty: name a column.')
    for name, expression in self.scores.items():
      if not name.strip() or not expression.strip():
        raise UserError(
          f'labels.scores: {name!r} is {expression!r}: give a name, and a SQL '
          "expression such as 'nll_sum / num_tokens'."
        )
    if not self.scores:
      raise UserError('labels.scores is empty: name a score to hold to labels.')


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExportConfig:
  """What `--job=export` writes for other programs to read."""

  arms: tuple[str, ...] = ()  # names in select.arms; () for those of the run
  # Some of EXPORT_FORMATS. 'jsonl' (.jsonl.zst) and 'parquet' hold every field
  # of the records that an arm keeps. 'array_record' (for MaxText) and 'tfds'
  # hold id, source and text. 'scores' is one table of all documents.
  # 'dolma_attributes' has one line for each line of the sources. The last two
  # say what each arm keeps.
  formats: tuple[str, ...] = ('jsonl', 'scores')
  folder: str = ''  # ARM/FORMAT/ is made in it; '' for export/ in the workdir
  # Adds file and record of each document to 'scores'. To do so, the stage reads
  # the corpus again. The default id of a document is its file and record
  # already.
  include_locations: bool = False

  def __post_init__(self):
    if not self.formats:
      raise UserError(
        f'export.formats is empty: name some of {", ".join(EXPORT_FORMATS)}.'
      )
    for name in self.formats:
      check_choice('export.formats', name, EXPORT_FORMATS)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
  """One experiment."""

  corpus: CorpusConfig
  vocabulary: VocabularyConfig = dataclasses.field(
    default_factory=VocabularyConfig
  )
  mesh: MeshConfig = MeshConfig()
  reference: ReferenceConfig
  score: ScoringConfig
  near_duplicates: NearDuplicatesConfig
  select: SelectConfig
  model: ModelConfig
  train: TrainConfig
  evaluate: EvaluateConfig
  report: ReportConfig
  labels: LabelsConfig
  export: ExportConfig = ExportConfig()

  def __post_init__(self):
    arms = tuple(self.select.arms)
    for arm in self.train.arms:
      check_choice('train.arms', arm, arms)
    for arm in self.export.arms:
      check_choice('export.arms', arm, arms)
    check_choice('report.baseline', self.report.baseline, arms)

  @property
  def arms(self) -> tuple[str, ...]:
    """The arms that this run trains, evaluates and reports."""
    return self.train.arms or tuple(self.select.arms)

  @property
  def runs(self) -> list[tuple[str, int]]:
    """Arm and seed of each run."""
    return [(arm, seed) for arm in self.arms for seed in self.train.seeds]


def from_mapping(value: Mapping[str, Any]) -> Config:
  """The frozen config of nested mappings, such as a `ConfigDict`.

  Raises:
    UserError: a key is unknown or missing, or a value is out of range; the
      message names the section.
  """
  return build(Config, value, 'config')
