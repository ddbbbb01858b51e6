"""Frozen dataclasses for every section of a config, and their validation.

They hold names, types, units, defaults and bounds. A default is part of the
format of artifacts (`runtime/options.py`): it never changes once it is
released. Seeds have no default, and neither have values that only an experiment
can know. `configs/base.py` holds the values of a first experiment. Standard
library only.
"""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

from infoprune_jax.config import token_weights
from infoprune_jax.config.arms import SelectConfig, expand
from infoprune_jax.config.classifier import ClassifierConfig, check_name
from infoprune_jax.config.corpus import CorpusConfig, VocabularyConfig
from infoprune_jax.config.evaluate import EvaluateConfig
from infoprune_jax.config.model import ModelConfig
from infoprune_jax.config.scoring import ScoringConfig
from infoprune_jax.config.selection import NearDuplicatesConfig
from infoprune_jax.config.training import TrainConfig, TrainingConfig
from infoprune_jax.config.validation import (
  UserError,
  build,
  check_choice,
  check_positive,
  check_range,
  check_seeds,
)

# Formats with a folder for each arm, then those that hold all arms at once.
ARM_EXPORTS = (
  *('jsonl', 'parquet', 'array_record', 'tfds', 'keep_set'),
  *('megatron', 'mds', 'levanter'),
)
JOINT_EXPORTS = ('scores', 'dolma_attributes')
EXPORT_FORMATS = ARM_EXPORTS + JOINT_EXPORTS
REPORT_MEASURES = ('macro', 'bytes')


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeshConfig:
  """Devices of a slice along each mesh axis; -1 on one axis takes what is left.

  With TPUs in several slices, `dcn_data` times `dcn_fsdp` is the number of
  slices: the axis `data` then has `dcn_data` times `data` devices, and `fsdp`
  likewise.
  """

  data: int = -1
  fsdp: int = 1
  tensor: int = 1
  # Splits the tokens of each sequence over devices, for sequences that do not
  # fit in one.
  sequence: int = 1
  dcn_data: int = 1  # slices along `data`
  dcn_fsdp: int = 1  # slices along `fsdp`
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
  """A trained model: a step of a run, a file, or one of Hugging Face."""

  # The folder of a finished run, a .safetensors file that
  # tools/export_params.py wrote, the folder of a Hugging Face model, its id on
  # the Hub (ORG/NAME or hf://ORG/NAME@REVISION), or a GGUF file; '' for the run
  # of the stage `reference`.
  path: str = ''
  # -1 for the last step. Of a run elsewhere it must be one that it has kept.
  step: int = -1

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
  """The models whose NLL is the score.

  With one fold, a model trains on the reference split and scores the scored
  split. With two, each of two models trains on one half of both splits and
  scores the other half. `checkpoint` takes a trained model instead, and
  `extra_models` score in the same pass, for instance an earlier step.
  """

  model: ModelConfig
  training: TrainingConfig
  seed: int
  folds: int = 1
  checkpoint: CheckpointConfig = CheckpointConfig()  # scores column `nll_sum`
  # Each scores a column `nll_sum_<name>`.
  extra_models: Mapping[str, CheckpointConfig] = dataclasses.field(
    default_factory=dict
  )

  def __post_init__(self):
    check_seeds('reference.seed', self.seed)
    check_choice('reference.folds', self.folds, (1, 2))
    if self.checkpoint.path and self.folds > 1:
      raise UserError(
        f'reference.folds is {self.folds}, but reference.checkpoint.path gives '
        'one model: set reference.folds=1, or leave the path empty.'
      )
    for name in self.extra_models:
      if not re.fullmatch('[a-z][a-z0-9_]*', name):
        raise UserError(
          f'reference.extra_models: {name!r} names a column, nll_sum_<name>: use '
          'lower-case letters, digits and _.'
        )

  @property
  def checkpoints(self) -> dict[str, CheckpointConfig]:
    """The model that scores each column of NLL."""
    return {
      'nll_sum': self.checkpoint,
      **{f'nll_sum_{name}': other for name, other in self.extra_models.items()},
    }

  @property
  def kept_steps(self) -> frozenset[int]:
    """The steps of its own run that score, besides the last."""
    own = [c for c in self.checkpoints.values() if not c.path]
    return frozenset(c.step for c in own if c.step >= 0)

  @property
  def is_trained(self) -> bool:
    """Whether the stage `reference` has a model to train."""
    return any(not c.path for c in self.checkpoints.values())


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReportConfig:
  """The contents of the reports."""

  baseline: str  # the arm that differences are taken against
  bootstrap_samples: int = 1000
  num_examples: int = 10  # shown at each end of the score, and near a threshold
  # Kinds of sources: for each kind, patterns that match names of sources. A
  # source has at most one kind. With {'code': ('code-*',), 'talk': ('irc',
  # '*-podcasts')} tables also have one row for each kind. A source that no
  # pattern matches has the kind 'other'.
  kinds: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
  # The measure that decides: 'macro' (bits per byte, the mean over sources) or
  # 'bytes' (bits per byte over all bytes, where large sources weigh most).
  measure: str = 'macro'
  # The kinds, or patterns of names of sources, that decide; () for all. The
  # other sources are reported as the price.
  target: tuple[str, ...] = ()
  # Arms named before any result was seen: they are judged on all held-out
  # texts. Without them, the best of several arms is chosen on one half of the
  # texts and judged on the other half.
  hypothesis: tuple[str, ...] = ()
  # Sentences shown below the result: what this experiment cannot show.
  notes: tuple[str, ...] = ()

  def __post_init__(self):
    check_positive('report', self)
    check_choice('report.measure', self.measure, REPORT_MEASURES)
    if not all(name.strip() for name in self.target):
      raise UserError(
        f'report.target is {self.target!r}, with an empty name: give kinds of '
        "report.kinds, or patterns of the names of sources such as ('code-*',)."
      )
    if self.baseline in self.hypothesis:
      raise UserError(
        f'report.hypothesis names {self.baseline!r}, which is report.baseline: '
        'name the arms that are compared with it.'
      )
    for kind, patterns in self.kinds.items():
      if not kind.strip() or not patterns or not all(patterns):
        raise UserError(
          f'report.kinds: {kind!r} is {patterns!r}: give a name, and patterns '
          "of the names of sources such as ('code-*',)."
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class LabelsConfig:
  """Pages that people judged, with which --job=labels compares scores."""

  # JSONL, plain, .gz or .zst: a file, folder, glob or URL; '' for none.
  path: str = ''
  text_column: str = 'text'  # 'a.b' is field b of column a, here and below
  label_column: str = 'label'  # 0 and 1, or false and true
  group_column: str = ''  # strings; results also within each group; '' for none
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
      raise UserError('labels.scores is empty: name a score to compare.')


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExportConfig:
  """The exports that `--job=export` writes for other programs."""

  arms: tuple[str, ...] = ()  # names in select.arms; () for all of them
  # Some of EXPORT_FORMATS. 'jsonl' (.jsonl.zst) and 'parquet' hold every field
  # of the records that an arm keeps. 'array_record' (for MaxText) and 'tfds'
  # hold id, source and text. 'keep_set' is a table of all documents, with a
  # column `kept`; 'scores' is one for all arms, with scores. 'dolma_attributes'
  # has one line for each line of the sources. Where an arm repeats examples,
  # each has a column `repeats`, too. 'megatron' and 'levanter' hold token ids,
  # and 'mds' (for Streaming) id, source and text: an example is there as often
  # as an epoch uses it.
  formats: tuple[str, ...] = ('jsonl', 'scores')
  folder: str = ''  # ARM/FORMAT/ is made in it; '' for export/ in the workdir
  # Adds file and record of each document to 'scores' and 'keep_set'. To do so,
  # the stage reads the corpus again. The default id of a document is its file
  # and record already.
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
  # Each scores a column `classifier_<name>`.
  classifiers: Mapping[str, ClassifierConfig] = dataclasses.field(
    default_factory=dict
  )
  select: SelectConfig
  model: ModelConfig
  train: TrainConfig
  evaluate: EvaluateConfig
  report: ReportConfig
  labels: LabelsConfig
  export: ExportConfig = ExportConfig()

  def __post_init__(self):
    for name in self.classifiers:
      check_name(name)
    arms = self.select.trained
    for arm in self.train.arms:
      check_choice('train.arms', arm, arms)
    for arm in self.export.arms:
      check_choice('export.arms', arm, tuple(self.select.arms))
    for arm in self.arms:
      branch = self.select.shared(arm)
      if branch and branch.arm not in self.arms:
        raise UserError(
          f'select.arms.{arm} starts from the run of {branch.arm!r}, which '
          f'train.arms leaves out ({", ".join(self.arms)}): add it. Or give '
          f'its rules as the first phase, in base.phases((0.0, ...), '
          f'({branch.at:g}, ...)): the run then takes those steps itself.'
        )
    check_choice('report.baseline', self.report.baseline, arms)
    if self.train.budgets:
      self._check_budgets()
    for arm in self.report.hypothesis:
      check_choice('report.hypothesis', arm, arms)
    token_weights.check(
      self.train.token_weights,
      self.select,
      self.score,
      tuple(self.reference.extra_models),
      self.train.training.reader,
    )

  def _check_budgets(self) -> None:
    baseline, select = self.report.baseline, self.select
    for arm in self.budget_arms:
      if arm in select.arms:
        raise UserError(
          f'train.budgets trains {baseline} under the name {arm!r}, which is '
          'another arm in select.arms: rename that arm.'
        )
    weights = self.train.token_weights
    if (
      baseline not in self.arms
      or not select.has_plain_run(baseline)
      or baseline in weights
    ):
      raise UserError(
        f'train.budgets trains report.baseline, {baseline!r}, at other budgets: '
        'it must be in train.arms, have one phase, no token weights and no rule with '
        "keep='all_plus_reference'. Name another baseline, or leave train.budgets "
        'empty.'
      )

  @property
  def budget_arms(self) -> dict[str, float]:
    """The baseline at other budgets than 1.0: names of its runs, and budgets."""
    return {
      f'{self.report.baseline}_x{budget:g}'.replace('.', '_'): budget
      for budget in self.train.budgets
      if budget != 1.0
    }

  @property
  def split_groups(self) -> NearDuplicatesConfig | None:
    """How the groups of the split are found; None if it goes by content."""
    by_content = self.corpus.split_by == 'content'
    return None if by_content else self.near_duplicates

  @property
  def arms(self) -> tuple[str, ...]:
    """The arms that this run trains, evaluates and reports."""
    return self.train.arms or self.select.trained

  @property
  def own_scored(self) -> tuple[str, ...]:
    """The arms of this run that score with their own checkpoints.

    An arm comes after the one whose run it starts from.
    """
    own = filter(self.select.scores_itself, self.arms)
    return tuple(sorted(own, key=lambda arm: len(self.select.phases(arm))))

  @property
  def selected(self) -> tuple[str, ...]:
    """The arms with keep sets: all, but those of `own_scored` of other runs."""
    return tuple(
      arm
      for arm in self.select.arms
      if arm in self.arms or not self.select.scores_itself(arm)
    )

  @property
  def score_columns(self) -> list[str]:
    """The columns of sums in the score table."""
    return self.score.columns(self.reference.checkpoints)

  @property
  def runs(self) -> list[tuple[str, int]]:
    """Arm and seed of each run; those of `budget_arms` come last."""
    arms = (*self.arms, *self.budget_arms)
    return [(arm, seed) for arm in arms for seed in self.train.seeds]


def from_mapping(value: Mapping[str, Any]) -> Config:
  """The frozen config of nested mappings, such as a `ConfigDict`.

  Raises:
    UserError: a key is unknown or missing, or a value is out of range; the
      message names the section.
  """
  select: Any = value.get('select')
  if hasattr(select, 'items') and all(
    hasattr(part, 'items')
    for part in (select.get('arms'), select.get('branches', {}))
  ):
    value = {**value, 'select': expand(select)}
  return build(Config, value, 'config')
