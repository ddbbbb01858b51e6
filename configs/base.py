"""The base config: every option, with values for a first run on one host.

It is no experiment by itself. A config file is `base.get_config()` with edits,
see `demo.py` and `tiny.py`. This file holds the values that an experiment
chooses, with their reasons. Every other option has the default of its field in
`infoprune_jax/config/`, which also gives its meaning, units and bounds. The
command line sets options too, for example `--config.train.seeds=0,1,2`.
`--dry_run` prints all of them.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from infoprune_jax.config import (
  corpus as corpus_config,
  experiment as config_lib,
  selection as rule_config,
)
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
  """A default as a `ConfigDict` holds it."""
  if dataclasses.is_dataclass(value):
    return section(type(value), **vars(value))
  return named(value) if isinstance(value, Mapping) else value


def _source(format: str, paths: tuple[str, ...], **columns: str) -> ConfigDict:
  return section(
    corpus_config.SourceConfig, format=format, paths=paths, **columns
  )


def text(*paths: str) -> ConfigDict:
  """A source of plain text: each file is a document."""
  return _source('text', paths)


def jsonl(*paths: str, **columns: str) -> ConfigDict:
  """A source of JSONL: each line is a document.

  Args:
    *paths: Files, folders, globs or URLs.
    **columns: `text_column`, `id_column`, `source_column`.
  """
  return _source('jsonl', paths, **columns)


def parquet(*paths: str, **columns: str) -> ConfigDict:
  """A source of Parquet: each row is a document; columns as in `jsonl`."""
  return _source('parquet', paths, **columns)


def hf_dataset(*paths: str, **columns: str) -> ConfigDict:
  """Folders of `datasets.Dataset.save_to_disk`; columns as in `jsonl`."""
  return _source('hf_dataset', paths, **columns)


def tfds(*names: str, split: str = 'train', **fields: str) -> ConfigDict:
  """TFDS datasets, by name or folder; also `data_dir`, columns as in `jsonl`."""
  return _source('tfds', names, split=split, **fields)


def seqio(*names: str, split: str = 'train', **fields: str) -> ConfigDict:
  """SeqIO tasks or mixtures; also `module`, columns as in `jsonl`."""
  # What `seqio.preprocessors.tokenize` leaves of T5's usual feature.
  fields.setdefault('text_column', 'targets_pretokenized')
  return _source('seqio', names, split=split, **fields)


def arm(keep: str, score: str = '', **fields: str | float) -> ConfigDict:
  """One rule of an arm; an arm of several is a tuple of them.

  Args:
    keep: Which part of the ranking to keep, see `RuleConfig`.
    score: The SQL expression to rank by.
    **fields: Other fields of `RuleConfig`.
  """
  fields.setdefault('seed', 0)
  return section(rule_config.RuleConfig, keep=keep, score=score, **fields)


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
  """Scoring with rows as long as in training: the longest context it has seen."""
  return section(
    config_lib.ScoringConfig,
    sequence_length=256,
    window_overlap=64,
    dtype='float32',
  )


def near_duplicates() -> ConfigDict:
  """FineWeb's numbers, for `arm('distinct', 'near_duplicate_group')`."""
  return section(rule_config.NearDuplicatesConfig, seed=0)


def get_config() -> ConfigDict:
  """The base config; `corpus.sources` is left for the experiment to fill."""
  config = ConfigDict()
  config.corpus = section(corpus_config.CorpusConfig, sources=named({}), seed=0)
  config.vocabulary = section(corpus_config.VocabularyConfig)
  config.mesh = section(config_lib.MeshConfig)
  config.reference = section(
    config_lib.ReferenceConfig,
    model=model(),
    training=training(),
    seed=0,
    checkpoint=checkpoint(),  # trained here, the last step
  )
  config.score = scoring()
  config.near_duplicates = near_duplicates()
  config.select = ConfigDict()
  config.select.arms = ConfigDict(
    dict(
      full=arm('all'),
      random=arm('random', fraction=0.5),
      top_nll=arm('top', INFORMATION, fraction=0.5),
      top_sum=arm('top', f'{INFORMATION} + {INVERSE_FREQUENCY}', fraction=0.5),
      bottom_nll=arm('bottom', INFORMATION, fraction=0.5),
    ),
    sort_keys=False,  # The report shows arms in this order.
  )
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
