"""What selection goes by, and its validation. Standard library only."""

import dataclasses
import math

from infoprune_jax.config.validation import (
  UserError,
  check_choice,
  check_range,
  check_seeds,
)

# What each keeps is said at `RuleConfig`.
RANKED_KINDS = ('top', 'bottom', 'middle', 'band', 'threshold', 'sample')
KEEP_KINDS = (*RANKED_KINDS, 'random', 'distinct', 'all', 'all_plus_reference')
BUDGET_KINDS = ('top', 'bottom', 'middle', 'sample', 'random')
BOUND_KINDS = ('band', 'threshold')  # From `low` to `high`.
UNITS = ('tokens', 'examples', 'bytes')
PER = ('', 'source')
MISSING = ('refuse', 'lowest')


@dataclasses.dataclass(frozen=True, kw_only=True)
class NearDuplicatesConfig:
  """Which documents are near-duplicates: by MinHash, in bands.

  The defaults are those of FineWeb (arXiv 2406.17557): documents with 3 of 4
  shingles in common are found with probability 0.77, with 9 of 10 nearly
  always, with half of them in one case of twenty.
  """

  ngram: int = 5  # tokens of a shingle
  # Documents with a fraction s of their shingles in common agree in a band of r
  # rows with probability s^r, and in any of b with 1 - (1 - s^r)^b.
  bands: int = 14
  rows_per_band: int = 8
  seed: int

  def __post_init__(self):
    check_range('near_duplicates.ngram', self.ngram, 1, 1000)
    check_range('near_duplicates.bands', self.bands, 1, 1000)
    check_range('near_duplicates.rows_per_band', self.rows_per_band, 1, 1000)
    check_range('near_duplicates.seed', self.seed, 0, 2**32 - 1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RuleConfig:
  """One step of an arm's selection, over the examples that were scored.

  What is kept: 'top', 'bottom' and 'middle' of the ranking by `score`, up to
  `fraction`; a 'band' of it, from `low` to `high` as fractions; every score
  from `low` to `high` ('threshold'); a 'sample' without replacement, likelier
  by exp(score / temperature); a 'random' part; the first of each text, or of
  each value of `score`, such as near_duplicate_group ('distinct'); 'all'; or
  'all_plus_reference', which adds the reference split and trains for the FLOPs
  that the reference model and scoring cost the other arms.
  """

  score: str = ''  # SQL expression over columns of the tables; '' for none
  keep: str
  fraction: float = 1.0  # of `unit` of all that was scored, in (0, 1]
  low: float = -math.inf  # of a band or threshold
  high: float = math.inf  # of a band or threshold
  temperature: float = 1.0  # of a sample, in units of the score
  unit: str = 'tokens'  # 'tokens', 'examples' or 'bytes'
  per: str = ''  # 'source' to spend the budget within each; '' over all
  seed: int  # of random draws and of ties
  # Where the score gives no finite number: 'refuse', or 'lowest' of all. Such
  # examples are below any `low`, and one value of 'distinct'.
  missing: str = 'refuse'

  def __post_init__(self):
    check_choice('select.keep', self.keep, KEEP_KINDS)
    check_choice('select.unit', self.unit, UNITS)
    check_choice('select.per', self.per, PER)
    check_choice('select.missing', self.missing, MISSING)
    check_seeds('select.seed', self.seed)
    if not 0.0 < self.fraction <= 1.0:
      raise UserError(
        f'select.fraction must be in (0, 1], got {self.fraction}.'
      )
    if not 0.0 < self.temperature < math.inf:
      raise UserError(
        f'select.temperature must be positive, got {self.temperature}.'
      )
    self._check_kind()

  def _check_kind(self) -> None:
    kind = f"keep='{self.keep}'"
    if self.keep != 'distinct' and self.needs_score != self.reads_tables:
      raise UserError(
        f'select.score is {self.score!r}, but {kind} '
        + (
          "ranks by it: give a SQL expression such as 'nll_sum / num_tokens'."
          if self.needs_score
          else 'reads none: leave it empty.'
        )
      )
    if self.keep not in BUDGET_KINDS and self.fraction != 1.0:
      raise UserError(
        f'select.fraction is {self.fraction}, but {kind} keeps no fraction.'
      )
    if self.keep != 'sample' and self.temperature != 1.0:
      raise UserError(f'select.temperature is for samples, not for {kind}.')
    bounds = (self.low, self.high)
    if self.keep not in BOUND_KINDS and bounds != (-math.inf, math.inf):
      raise UserError(f'select.low and select.high are not for {kind}.')
    if self.keep in BOUND_KINDS and not self.low < self.high:
      raise UserError(
        f'select.low must be below select.high, got {self.low} and {self.high}.'
      )
    if self.keep == 'band' and not 0.0 <= self.low < self.high <= 1.0:
      raise UserError(
        f'select.low and select.high of a band are fractions, got {bounds}.'
      )

  @property
  def needs_score(self) -> bool:
    """Whether the rule ranks by a score, rather than by chance or nothing."""
    return self.keep in RANKED_KINDS

  @property
  def reads_tables(self) -> bool:
    """Whether the rule has an expression to evaluate."""
    return bool(self.score.strip())
