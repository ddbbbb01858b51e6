"""Frozen dataclasses for every section of a config, and their validation.

`configs/base.py` holds the values and the reasons for them; this module holds
names, types, units and what is refused. Standard library only.
"""

import dataclasses
import difflib
import math
from collections.abc import Mapping
from typing import Any, get_args, get_origin, get_type_hints

SPLITS = ('reference', 'scored', 'heldout')
SOURCE_FORMATS = ('text', 'jsonl', 'parquet')
ON_BAD_ROW = ('refuse', 'drop')
VOCABULARY_TYPES = ('unigram', 'bpe')
DTYPES = ('float32', 'bfloat16')
KEEP_KINDS = ('top', 'bottom', 'middle', 'random', 'all')
UNITS = ('tokens', 'examples', 'bytes')
PER = ('', 'source')


class UserError(ValueError):
  """Something a user can mend: shown as one message, without a traceback."""


def check_choice(name: str, value: Any, choices: tuple[Any, ...]) -> None:
  """Raises `UserError` unless `value` is one of `choices`."""
  if value in choices:
    return
  near = difflib.get_close_matches(str(value), [str(c) for c in choices], n=1)
  hint = f' Did you mean {near[0]!r}?' if near else ''
  raise UserError(
    f'{name} must be one of {", ".join(map(repr, choices))}, got {value!r}.'
    + hint
  )


def check_range(name: str, value: float, low: float, high: float) -> None:
  """Raises `UserError` unless low <= value <= high."""
  if not low <= value <= high:
    raise UserError(f'{name} must be in [{low:g}, {high:g}], got {value:g}.')


def check_positive(section: str, instance: Any, *names: str) -> None:
  """Raises `UserError` unless fields (all numbers if none is named) are > 0."""
  for name, value in vars(instance).items():
    meant = type(value) in (int, float) and (name in names or not names)
    if meant and not 0 < value < math.inf:
      raise UserError(f'{section}.{name} must be positive, got {value}.')


def check_seeds(name: str, *seeds: int) -> None:
  """Raises `UserError` unless seeds are what every generator takes."""
  for seed in seeds:
    check_range(name, seed, 0, 2**31 - 1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SourceConfig:
  """Where the documents of one source are."""

  format: str  # 'text': a file is a document; 'jsonl', 'parquet': a row is one
  paths: tuple[str, ...]  # files, folders or globs; .gz and .zst are unpacked
  text_column: str  # of rows: the text; 'a.b' is field b of column a
  id_column: str  # of rows: a unique string or integer; '' for file:row
  source_column: str  # of rows: overrides the source's name; '' for none

  def __post_init__(self):
    check_choice('source.format', self.format, SOURCE_FORMATS)
    if not self.paths:
      raise UserError('source.paths is empty: give files, folders or globs.')
    if self.format != 'text' and not self.text_column:
      raise UserError('source.text_column is empty: name the text column.')


@dataclasses.dataclass(frozen=True, kw_only=True)
class CorpusConfig:
  """What is read, how it is split, and into how many parts it is written."""

  sources: Mapping[str, SourceConfig]
  on_bad_row: str  # 'refuse' stops at the first bad row, 'drop' counts them
  max_bytes_per_source: int  # a seeded draw of whole documents; 0 for all
  reference_share: float  # of distinct texts: the reference model's own
  heldout_share: float  # of distinct texts: for evaluation; the rest is scored
  seed: int  # of the draw and the split
  num_parts: int  # of the token store, and so of the score table
  num_workers: int  # processes; 0 for one a core

  def __post_init__(self):
    if not self.sources:
      raise UserError(
        'corpus.sources is empty: add one, for instance '
        "config.corpus.sources.mine = base.jsonl('data/*.jsonl.zst')."
      )
    check_choice('corpus.on_bad_row', self.on_bad_row, ON_BAD_ROW)
    check_positive(
      'corpus', self, 'num_parts', 'reference_share', 'heldout_share'
    )
    if self.reference_share + self.heldout_share >= 1.0:
      raise UserError(
        'corpus.reference_share + corpus.heldout_share must leave documents '
        f'to score, got {self.reference_share} + {self.heldout_share}.'
      )
    check_range(
      'corpus.max_bytes_per_source', self.max_bytes_per_source, 0, 2**62
    )
    check_range('corpus.num_workers', self.num_workers, 0, 4096)
    check_seeds('corpus.seed', self.seed)


@dataclasses.dataclass(frozen=True, kw_only=True)
class VocabularyConfig:
  """A SentencePiece model: given, or trained on the reference split."""

  path: str  # an existing .model file; '' to train one
  size: int  # pieces, when trained
  type: str  # 'unigram' (encodes faster) or 'bpe' (trains faster)
  train_bytes: int  # of the reference split, when trained

  def __post_init__(self):
    check_choice('vocabulary.type', self.type, VOCABULARY_TYPES)
    check_positive('vocabulary', self)
    # 256 byte pieces, four special ones, and something beyond them.
    check_range('vocabulary.size', self.size, 320, 2**20)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig:
  """A pre-norm decoder: RMSNorm, rotary positions, SwiGLU, grouped queries."""

  num_layers: int
  embed_dim: int
  mlp_dim: int
  num_heads: int
  num_kv_heads: int  # divides num_heads
  head_dim: int  # even: rotary positions turn pairs
  rope_theta: float  # base of the rotary frequencies
  norm_epsilon: float
  tie_embeddings: bool  # the head is the embedding, transposed
  dtype: str  # of the computation; parameters are float32
  scan_unroll: int  # layers a step of the scan over layers
  remat: bool  # recompute each layer's activations in the backward pass
  loss_tile: int  # tokens whose logits are held at once

  def __post_init__(self):
    check_choice('model.dtype', self.dtype, DTYPES)
    check_positive('model', self)
    if self.num_heads % self.num_kv_heads:
      raise UserError(
        'model.num_kv_heads must divide model.num_heads, got '
        f'{self.num_kv_heads} and {self.num_heads}.'
      )
    if self.head_dim % 2:
      raise UserError(f'model.head_dim must be even, got {self.head_dim}.')


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeshConfig:
  """Devices along each mesh axis; -1 on one axis takes what is left."""

  data: int
  fsdp: int
  tensor: int

  def __post_init__(self):
    sizes = (self.data, self.fsdp, self.tensor)
    if any(size < 1 and size != -1 for size in sizes) or sizes.count(-1) > 1:
      raise UserError(
        'mesh.data, mesh.fsdp and mesh.tensor must be positive, with -1 on at '
        f'most one of them, got {sizes}.'
      )


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingConfig:
  """Budget, batch and optimizer of one training run."""

  num_steps: int
  batch_size: int  # rows
  row_length: int  # tokens
  learning_rate: float  # peak
  warmup_steps: int  # linear, from zero
  final_learning_rate_ratio: float  # of the peak, at the end of the cosine
  weight_decay: float  # of matrices; never of norms
  beta1: float
  beta2: float
  max_grad_norm: float  # global norm; gradients above are scaled down
  log_every: int  # steps
  eval_every: int  # steps
  checkpoint_every: int  # steps
  max_checkpoints: int  # the newest are kept

  def __post_init__(self):
    sizes = ('num_steps', 'batch_size', 'row_length', 'max_checkpoints')
    every = ('log_every', 'eval_every', 'checkpoint_every')
    check_positive(
      'training', self, 'learning_rate', 'max_grad_norm', *sizes, *every
    )
    check_range('training.warmup_steps', self.warmup_steps, 0, self.num_steps)
    check_range('training.weight_decay', self.weight_decay, 0.0, 1e6)
    check_range('training.beta1', self.beta1, 0.0, 1.0)
    check_range('training.beta2', self.beta2, 0.0, 1.0)
    check_range(
      'training.final_learning_rate_ratio',
      self.final_learning_rate_ratio,
      0.0,
      1.0,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReferenceConfig:
  """The model whose surprise is the score, trained on the reference split."""

  model: ModelConfig
  training: TrainingConfig
  seed: int

  def __post_init__(self):
    check_seeds('reference.seed', self.seed)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScoringConfig:
  """How documents are laid out and run through a model to get their NLL."""

  batch_size: int  # rows
  row_length: int  # tokens
  window_overlap: int  # context tokens shared by windows of a long document
  dtype: str  # of the computation

  def __post_init__(self):
    check_positive('scoring', self, 'batch_size', 'row_length')
    check_choice('scoring.dtype', self.dtype, DTYPES)
    if not 0 <= self.window_overlap < self.row_length:
      raise UserError(
        'scoring.window_overlap must be in [0, row_length), got '
        f'{self.window_overlap} at row_length {self.row_length}.'
      )


@dataclasses.dataclass(frozen=True, kw_only=True)
class RuleConfig:
  """One step of an arm's selection, over the examples of the scored split."""

  score: str  # SQL expression over score-table columns; '' where none is read
  keep: str  # 'top', 'bottom', 'middle', 'random' or 'all'
  fraction: float  # of `unit` of the whole scored split, in (0, 1]
  unit: str  # 'tokens', 'examples' or 'bytes'
  per: str  # 'source' to spend the budget within each; '' over all
  seed: int  # of random draws and of ties

  def __post_init__(self):
    check_choice('select.keep', self.keep, KEEP_KINDS)
    check_choice('select.unit', self.unit, UNITS)
    check_choice('select.per', self.per, PER)
    check_seeds('select.seed', self.seed)
    if not 0.0 < self.fraction <= 1.0:
      raise UserError(
        f'select.fraction must be in (0, 1], got {self.fraction}.'
      )
    if self.needs_score and not self.score.strip():
      raise UserError(
        f"select.score is empty, but keep='{self.keep}' ranks by it: give a "
        "SQL expression such as 'nll_sum / num_tokens'."
      )

  @property
  def needs_score(self) -> bool:
    """Whether the rule reads a score, rather than chance or nothing."""
    return self.keep in ('top', 'bottom', 'middle')


@dataclasses.dataclass(frozen=True, kw_only=True)
class SelectConfig:
  """What each arm keeps: rules are applied one after another."""

  arms: Mapping[str, tuple[RuleConfig, ...]]

  def __post_init__(self):
    for name, rules in self.arms.items():
      if not rules:
        raise UserError(f'select.arms.{name} has no rule.')
      if not name.isidentifier():
        raise UserError(f'select.arms: {name!r} must be a Python identifier.')


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig:
  """The arms to train, each for each seed, at one budget."""

  arms: tuple[str, ...]  # names in select.arms; () for all of them
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
  curve_tokens: int  # of the held-out split, scored while training

  def __post_init__(self):
    check_positive('evaluate', self)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReportConfig:
  """What the page compares and shows."""

  baseline: str  # the arm that differences are taken against
  bootstrap_samples: int
  num_examples: int  # shown at each end of the score

  def __post_init__(self):
    check_positive('report', self)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
  """One experiment."""

  corpus: CorpusConfig
  vocabulary: VocabularyConfig
  mesh: MeshConfig
  reference: ReferenceConfig
  score: ScoringConfig
  select: SelectConfig
  model: ModelConfig
  train: TrainConfig
  evaluate: EvaluateConfig
  report: ReportConfig

  def __post_init__(self):
    arms = tuple(self.select.arms)
    for arm in self.train.arms:
      check_choice('train.arms', arm, arms)
    check_choice('report.baseline', self.report.baseline, arms)

  @property
  def arms(self) -> tuple[str, ...]:
    """The arms that this run trains, evaluates and reports."""
    return self.train.arms or tuple(self.select.arms)


def to_plain(value: Any) -> Any:
  """Dataclasses, mappings and tuples as dicts and lists, ready for JSON."""
  if dataclasses.is_dataclass(value):
    return {
      field.name: to_plain(getattr(value, field.name))
      for field in dataclasses.fields(value)
    }
  if isinstance(value, Mapping):
    return {key: to_plain(item) for key, item in value.items()}
  if isinstance(value, tuple | list):
    return [to_plain(item) for item in value]
  return value


def _build(kind: Any, value: Any, where: str) -> Any:
  """Builds a value of the annotated type `kind` out of nested mappings."""
  origin, arguments = get_origin(kind), get_args(kind)
  if dataclasses.is_dataclass(kind):
    return _build_section(kind, value, where)
  if origin is Mapping:
    if not hasattr(value, 'items'):
      raise UserError(f'In {where}: expected a section, got {value!r}.')
    return {
      name: _build(arguments[1], item, f'{where}.{name}')
      for name, item in value.items()
    }
  if origin is tuple:
    # One rule alone needs no tuple around it.
    items = (value,) if hasattr(value, 'items') else value
    if not isinstance(items, tuple | list):
      raise UserError(f'In {where}: expected a tuple, got {value!r}.')
    return tuple(_build(arguments[0], item, where) for item in items)
  if kind is float and type(value) is int:
    return float(value)
  if type(value) is not kind:
    raise UserError(
      f'In {where}: expected {kind.__name__}, got {value!r} '
      f'({type(value).__name__}).'
    )
  return value


def _build_section(kind: Any, value: Any, where: str) -> Any:
  """Builds the dataclass `kind`, naming the section in what it refuses."""
  if not hasattr(value, 'items'):  # A ConfigDict is no Mapping.
    raise UserError(f'In {where}: expected a section, got {value!r}.')
  hints = get_type_hints(kind)
  for key in value:
    check_choice(f'A key of {where}', key, tuple(hints))
  missing = [name for name in hints if name not in value]
  if missing:
    raise UserError(f'In {where}: {", ".join(missing)} missing.')
  fields = {
    name: _build(hint, value[name], f'{where}.{name}')
    for name, hint in hints.items()
  }
  try:
    return kind(**fields)
  except UserError as error:
    raise UserError(f'In {where}: {error}') from None


def from_mapping(value: Mapping[str, Any]) -> Config:
  """The frozen config of nested mappings, such as a `ConfigDict`.

  Raises:
    UserError: a key is unknown or missing, or a value is out of range; the
      message names the section.
  """
  return _build(Config, value, 'config')
