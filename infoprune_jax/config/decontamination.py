"""Benchmarks that the corpus is compared with. Standard library only."""

import dataclasses

from infoprune_jax.config.validation import check_range


@dataclasses.dataclass(frozen=True, kw_only=True)
class BenchmarksConfig:
  """Files of benchmarks, and how texts are compared with them.

  An example gets the column `contaminated_ngrams`: how many of its n-grams of
  words occur in a benchmark; and `contaminated_by`, the names of the benchmarks.
  """

  # Files, folders, globs or URLs of JSONL; each file is a benchmark. () for none.
  paths: tuple[str, ...] = ()
  ngram: int = 13  # words, as in GPT-3 (arXiv 2005.14165)
  # The fields that hold texts, 'a.b' for field b of field a; () for all strings
  # of a record, also those in lists and objects.
  text_columns: tuple[str, ...] = ()

  def __post_init__(self):
    check_range('select.decontaminate.ngram', self.ngram, 1, 1000)
