"""Classifiers that score examples, and their validation. Standard library only."""

import dataclasses
import re

from infoprune_jax.config.corpus import FILE_FORMATS, SourceConfig
from infoprune_jax.config.validation import (
  UserError,
  check_choice,
  check_range,
  check_seeds,
)

LABELS = ('good', 'bad')
PREFIX = 'classifier_'  # of the columns


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClassifierConfig:
  """A linear classifier over n-grams of tokens, as in fastText.

  It learns to tell good texts from bad ones. Its log odds that an example is
  good are the column `classifier_<name>`.
  """

  # Files of texts, as `base.jsonl`, `parquet`, `text` and `hf_dataset` name
  # them: one source or a tuple of them.
  good: tuple[SourceConfig, ...] = ()
  bad: tuple[SourceConfig, ...] = ()
  # Sources of the corpus, by name or pattern ('web-*', '*'). Their texts are
  # those of the reference split, or if there is none, of the scored split.
  good_sources: tuple[str, ...] = ()
  bad_sources: tuple[str, ...] = ()
  ngram: int = 2  # tokens of the longest n-gram
  # N-grams are hashed into 2^hash_bits features.
  hash_bits: int = 20
  max_texts: int = 20_000  # distinct texts of each label, drawn by chance
  # Of the texts of each label: for the accuracy and AUC that are printed.
  heldout_fraction: float = 0.1
  # Times half the squared norm of the weights, added to the mean loss, where
  # a text has features of norm 1 on average.
  l2: float = 1e-5
  seed: int  # of draws

  def __post_init__(self):
    for label in LABELS:
      if not (getattr(self, label) or getattr(self, f'{label}_sources')):
        raise UserError(
          f'there are no {label} texts: name files in `{label}`, such as '
          f"base.jsonl('{label}/*.jsonl'), or sources of the corpus in "
          f'`{label}_sources`.'
        )
      for source in getattr(self, label):
        check_choice(f'{label}: the format', source.format, FILE_FORMATS)
    check_range('ngram', self.ngram, 1, 8)
    check_range('hash_bits', self.hash_bits, 8, 26)
    check_range('max_texts', self.max_texts, 20, 2**31 - 1)
    check_range('heldout_fraction', self.heldout_fraction, 0.01, 0.5)
    check_range('l2', self.l2, 1e-9, 1e3)
    check_seeds('seed', self.seed)


def check_name(name: str) -> None:
  """Raises `UserError` unless a classifier's name can end that of a column."""
  if not re.fullmatch('[a-z][a-z0-9_]*', name):
    raise UserError(
      f'classifiers: {name!r} names a column, {PREFIX}<name>: use lower-case '
      'letters, digits and _.'
    )
