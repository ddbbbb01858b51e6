"""The base config: every option, with values for a first run on one host.

This is not an experiment by itself. A config file is `base.get_config()` with
edits, see `demo.py` and `tiny.py`. This file holds the values that an
experiment chooses, with their reasons. Every other option has the default of
its field in `infoprune_jax/config/`, which also gives its meaning, units and
bounds. The command line sets options too, for example
`--config.train.seeds=0,1,2`. `--dry_run=full` prints all of them.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from infoprune_jax.config import (
  arms as arms_config,
  corpus as corpus_config,
  experiment as config_lib,
  selection as rule_config,
)
from infoprune_jax.config.classifier import ClassifierConfig
from infoprune_jax.config.decontamination import BenchmarksConfig
from infoprune_jax.config.duplicated_text import DuplicatedTextConfig
from infoprune_jax.config.model import ModelConfig
from infoprune_jax.config.training import MixturePhase, TrainingConfig
from infoprune_jax.config.validation import default_of

# The two terms of arXiv 2406.14124, per token, so that long and short examples
# compare. The first is the reference model's NLL. The second is the mean of
# -log of the words' frequencies; here they are the tokens' frequencies in the
# reference split.
INFORMATION = 'nll_sum / num_tokens'
INVERSE_FREQUENCY = 'unigram_nll_sum / num_tokens'
COMPRESSION = 'compressed_bytes / num_bytes'
# The standard deviation of the frequencies of an example's tokens, as in arXiv
# 2509.18577. `greatest` is there because rounding can leave less than zero.
FREQUENCY_DEVIATION = (
  'sqrt(greatest(unigram_frequency_square_sum / num_tokens'
  ' - pow(unigram_frequency_sum / num_tokens, 2), 0))'
)


def section(kind: type, **values: Any) -> ConfigDict:
  """All options of a section: those given, and the defaults of the others."""
  defaults = {
    field.name: _shown(default_of(field))
    for field in dataclasses.fields(kind)
    if field.name not in values and default_of(field) is not dataclasses.MISSING
  }
  return ConfigDict({**defaults, **values})


def named(items: Mapping[str, Any]) -> ConfigDict:
  """Items under names that the user chooses, in order; names may hold dots."""
  return ConfigDict(items, sort_keys=False, allow_dotted_keys=True)


def _shown(value: Any) -> Any:
  """A default in the types that a `ConfigDict` holds."""
  if dataclasses.is_dataclass(value):
    return section(type(value), **vars(value))
  return named(value) if isinstance(value, Mapping) else value


def _source(
  format: str, paths: tuple[str, ...], **fields: str | int
) -> ConfigDict:
  return section(
    corpus_config.SourceConfig, format=format, paths=paths, **fields
  )


def text(*paths: str, **limits: int) -> ConfigDict:
  """A source of plain text: each file is a document.

  Args:
    *paths: Files, folders, globs or URLs.
    **limits: `max_bytes`, `max_document_bytes`, `max_heldout_bytes`.
  """
  return _source('text', paths, **limits)


def jsonl(*paths: str, **fields: str | int) -> ConfigDict:
  """A source of JSONL: each line is a document.

  Args:
    *paths: Files, folders, globs or URLs.
    **fields: `text_column`, `id_column`, `source_column`; limits as in `text`.
  """
  return _source('jsonl', paths, **fields)


def parquet(*paths: str, **fields: str | int) -> ConfigDict:
  """A source of Parquet: each row is a document; fields as in `jsonl`."""
  return _source('parquet', paths, **fields)


def hf_dataset(*paths: str, **fields: str | int) -> ConfigDict:
  """Folders of `datasets.Dataset.save_to_disk`; fields as in `jsonl`."""
  return _source('hf_dataset', paths, **fields)


def tfds(*names: str, split: str = 'train', **fields: str | int) -> ConfigDict:
  """TFDS datasets, by name or folder; fields as in `jsonl`, and `data_dir`."""
  return _source('tfds', names, split=split, **fields)


def seqio(*names: str, split: str = 'train', **fields: str | int) -> ConfigDict:
  """SeqIO tasks or mixtures; fields as in `jsonl`, and `module`."""
  # `seqio.preprocessors.tokenize` keeps the text of T5's `targets` under this
  # name.
  fields.setdefault('text_column', 'targets_pretokenized')
  return _source('seqio', names, split=split, **fields)


def arm(
  keep: str, score: str = '', **fields: str | float | Mapping[str, float]
) -> ConfigDict:
  """One rule of an arm; a tuple of rules is an arm of several.

  Args:
    keep: Which part of the ranking to keep, see `RuleConfig`.
    score: The SQL expression to rank by.
    **fields: Other fields of `RuleConfig`.
  """
  fields = {'seed': 0, **{name: _shown(fields[name]) for name in fields}}
  return section(rule_config.RuleConfig, keep=keep, score=score, **fields)


def table(*paths: str, on: str | tuple[str, ...], **fields: Any) -> ConfigDict:
  """A table of yours, for `config.select.tables`.

  Args:
    *paths: Files, folders, globs or URLs of Parquet, JSONL or Arrow.
    on: 'example_id', ('source', 'example_id'), 'content_hash' or ('shard',
      'doc_index').
    **fields: `columns` and `missing` of `TableConfig`.
  """
  keys = (on,) if isinstance(on, str) else tuple(on)
  return section(rule_config.TableConfig, paths=paths, on=keys, **fields)


def benchmarks(*paths: str, **fields: Any) -> ConfigDict:
  """Benchmarks to look for in the corpus, for `config.select.decontaminate`.

  Args:
    *paths: Files, folders, globs or URLs of JSONL; each file is a benchmark.
    **fields: `ngram` and `text_columns` of `BenchmarksConfig`.
  """
  return section(BenchmarksConfig, paths=paths, **fields)


def phases(*starts_and_rules: tuple[float, Any]) -> tuple[ConfigDict, ...]:
  """An arm that trains on one keep set after another.

    arms.easy_first = base.phases(
      (0.0, base.arm('bottom', base.INFORMATION, fraction=0.5)),
      (0.7, base.arm('top', base.INFORMATION, fraction=0.5)),
    )

  Args:
    *starts_and_rules: Of each phase, the fraction of the steps before it, 0.0
      for the first; and its rule, or a tuple of rules.
  """
  return tuple(
    section(arms_config.PhaseConfig, at=at, rules=rules)
    for at, rules in starts_and_rules
  )


def branch(
  arm: str, at: float, then: Any, score_with: str = 'reference'
) -> tuple[ConfigDict, ...]:
  """An arm that starts from another arm's run, and goes on with other rules.

    arms.late = base.branch('full', at=0.5, then=base.arm(...))

  Args:
    arm: The other arm, which is trained too.
    at: The fraction of the steps after which it starts, in (0, 1).
    then: Its rule, or a tuple of rules.
    score_with: The model whose scores the rules read: 'reference', or 'itself'
      for the checkpoint that the arm starts from.
  """
  kind = arms_config.PhaseConfig
  then = section(kind, at=at, rules=then, score_with=score_with)
  return section(kind, at=0.0, arm=arm), then


def sweep(
  name: str,
  keep: str,
  score: str = '',
  *,
  fractions: Sequence[float],
  **fields: str | float,
) -> ConfigDict:
  """Arms of one rule, one for each fraction, for `config.select.arms.update`.

  Args:
    name: What the names of the arms begin with: 'top' gives `top_30` for 0.3.
    keep: As for `arm`.
    score: As for `arm`.
    fractions: What the arms keep.
    **fields: As for `arm`.
  """
  arms = {
    f'{name}_{100 * fraction:g}'.replace('.', '_'): arm(
      keep, score, fraction=fraction, **fields
    )
    for fraction in fractions
  }
  return named(arms)


def model() -> ConfigDict:
  """A decoder of 1.2M parameters: a toy that a CPU trains in minutes."""
  return section(
    ModelConfig,
    num_layers=4,
    embed_dim=128,
    mlp_dim=352,  # 8/3 of the width, as in Llama, in multiples of 32
    num_heads=4,
    num_kv_heads=2,
    head_dim=32,
    # What the memory of the device allows.
    remat='auto',
    scan_unroll=0,
    loss_chunk_tokens=0,
  )


def training() -> ConfigDict:
  """A run of 2M tokens."""
  return section(
    TrainingConfig,
    num_steps=500,
    batch_size=16,
    sequence_length=256,
    learning_rate=3e-3,
    warmup_steps=50,
  )


def phase(from_step: int, weights: dict[str, float]) -> ConfigDict:
  """Weights of a mixture's sources, from a step on."""
  return section(MixturePhase, from_step=from_step, weights=named(weights))


def checkpoint(path: str = '', step: int = -1) -> ConfigDict:
  """A model that scores: a run's folder and step, or a parameter file.

  For the difference between an early and the last step of the reference model:

    config.reference.extra_models.early = base.checkpoint(step=250)
    arm('top', '(nll_sum_early - nll_sum) / num_tokens', fraction=0.5)
  """
  return section(config_lib.CheckpointConfig, path=path, step=step)


def scoring() -> ConfigDict:
  """Scoring with sequences as long as in training."""
  return section(
    config_lib.ScoringConfig,
    sequence_length=256,
    window_overlap=64,
    dtype='float32',
  )


def near_duplicates() -> ConfigDict:
  """The values of FineWeb, for `arm('distinct', 'near_duplicate_group')`."""
  return section(rule_config.NearDuplicatesConfig, seed=0)


def classifier(**fields: Any) -> ConfigDict:
  """A classifier of good and bad texts, for `config.classifiers`.

  Args:
    **fields: Of `ClassifierConfig`: `good` and `bad` are sources such as
      `jsonl('good/*.jsonl')`, one or a tuple; `good_sources` and `bad_sources`
      are names or patterns of sources of the corpus.
  """
  fields.setdefault('seed', 0)
  return section(ClassifierConfig, **fields)


def get_config() -> ConfigDict:
  """The base config, for an experiment to fill.

  It adds `corpus.sources`, and its arms to `full` and `random`.
  """
  config = ConfigDict()
  config.corpus = section(corpus_config.CorpusConfig, sources=named({}), seed=0)
  config.vocabulary = section(corpus_config.VocabularyConfig)
  config.mesh = section(config_lib.MeshConfig)
  config.reference = section(
    config_lib.ReferenceConfig,
    model=model(),
    training=training(),
    seed=0,
    checkpoint=checkpoint(),  # the last step of the stage `reference`
  )
  config.score = scoring()
  config.near_duplicates = near_duplicates()
  config.classifiers = named({})
  # What every rule is compared with. An experiment adds its own arms, or a set
  # of configs/baselines.py: each arm is trained once for each seed.
  config.select = ConfigDict()
  config.select.tables = named({})
  config.select.decontaminate = benchmarks()
  config.select.duplicated_text = section(DuplicatedTextConfig)
  config.select.arms = ConfigDict(
    dict(
      full=arm('all'),
      random=arm('random', fraction=0.5),
    ),
    sort_keys=False,  # The report shows arms in this order.
  )
  config.select.branches = named({})
  config.model = model()
  config.train = section(
    config_lib.TrainConfig, seeds=(0, 1), training=training()
  )
  config.evaluate = section(config_lib.EvaluateConfig, scoring=scoring())
  config.report = section(config_lib.ReportConfig, baseline='random')
  config.labels = section(
    config_lib.LabelsConfig,
    scores=ConfigDict(
      dict(
        nll=INFORMATION,
        bits_per_byte='nll_sum / ln(2) / num_bytes',
        unigram_mean=INVERSE_FREQUENCY,
        unigram_deviation=FREQUENCY_DEVIATION,
        paper_sum=f'{INFORMATION} + {INVERSE_FREQUENCY}',
        compression=COMPRESSION,
        length='num_tokens',
      ),
      sort_keys=False,  # The table shows scores in this order.
    ),
    seed=0,
  )
  config.export = section(config_lib.ExportConfig)
  return config
