"""The rules of selection, and their validation. Standard library only."""

import dataclasses
import itertools
import math
import re
from collections.abc import Mapping

from infoprune_jax.config.validation import (
  UserError,
  check_choice,
  check_range,
  check_seeds,
  did_you_mean,
)

# `RuleConfig` says what each keeps.
# Keep what lies on one side of a score, or between two.
CUT_KINDS = ('top', 'bottom', 'middle', 'band', 'threshold')
RANKED_KINDS = (*CUT_KINDS, 'sample', 'repeat')
KEEP_KINDS = (*RANKED_KINDS, 'random', 'distinct', 'all', 'all_plus_reference')
BUDGET_KINDS = ('top', 'bottom', 'middle', 'sample', 'random')
BOUND_KINDS = ('band', 'threshold')  # Keep from `low` to `high`.
FLOOR_KINDS = ('top', 'bottom', 'middle', 'band')
UNITS = ('tokens', 'examples', 'bytes')
OTHER_GROUPS = '*'  # in a table of fractions
# What a table of the user's may be joined on.
TABLE_KEYS = (
  ('example_id',),
  ('source', 'example_id'),
  ('content_hash',),
  ('shard', 'doc_index'),
)
MISSING = ('refuse', 'lowest')
MAX_REPEATS = 255  # a keep set with repeats has a byte for each document


@dataclasses.dataclass(frozen=True, kw_only=True)
class NearDuplicatesConfig:
  """How near-duplicates are found: by MinHash, in bands.

  The defaults are those of FineWeb (arXiv 2406.17557): documents with 3 of 4
  shingles in common are found with probability 0.77, with 9 of 10 nearly
  always, with half of them in one case of twenty.
  """

  ngram: int = 5  # tokens of a shingle
  # Documents with a fraction s of their shingles in common agree in a band of r
  # rows with probability s^r, and in one or more of b with 1 - (1 - s^r)^b.
  bands: int = 14
  rows_per_band: int = 8
  # Two that agree in a band are near-duplicates only if they have at least this
  # fraction of their shingles in common. 0 not to compare them.
  min_jaccard: float = 0.0
  # 'connected': all that pairs join are one group, also if its first and its last
  # have little in common. 'star': each is a near-duplicate of the first.
  groups: str = 'connected'
  seed: int

  def __post_init__(self):
    check_range('near_duplicates.ngram', self.ngram, 1, 1000)
    check_range('near_duplicates.bands', self.bands, 1, 1000)
    check_range('near_duplicates.rows_per_band', self.rows_per_band, 1, 1000)
    check_range('near_duplicates.min_jaccard', self.min_jaccard, 0, 1)
    check_choice('near_duplicates.groups', self.groups, ('connected', 'star'))
    check_range('near_duplicates.seed', self.seed, 0, 2**32 - 1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TableConfig:
  """A table of the user's: its columns join those of the score table.

  Under the name `quality` in `select.tables`, its column `score` is
  `quality.score`.
  """

  # Files, folders, globs or URLs of Parquet, JSONL or Arrow.
  paths: tuple[str, ...]
  # The columns that say which example a record is about: ('source',
  # 'example_id'); ('example_id',), with the column `source` if there is one;
  # ('content_hash',); or ('shard', 'doc_index').
  on: tuple[str, ...]
  columns: tuple[str, ...] = ()  # those to join; () for all but the keys
  # What an example without a record has in each column, a number or a text; ''
  # to refuse such examples.
  missing: float | str = ''

  def __post_init__(self):
    if not self.paths:
      raise UserError('table.paths is empty: give files, folders or globs.')
    if self.on not in TABLE_KEYS:
      keys = ', '.join(
        key[0] if len(key) == 1 else str(key) for key in TABLE_KEYS
      )
      raise UserError(
        f'table.on must be one of {keys}, got {", ".join(self.on) or None}.'
        + did_you_mean(', '.join(self.on), [', '.join(k) for k in TABLE_KEYS])
      )


def check_table_name(name: str) -> None:
  """Raises `UserError` unless a name can stand before columns in SQL."""
  if not re.fullmatch('[a-z][a-z0-9_]*', name) or name == 'scores':
    raise UserError(
      f'select.tables: {name!r} names columns, as in {name}.score: use '
      "lower-case letters, digits and _, and not 'scores'."
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class RuleConfig:
  """One step of an arm's selection, over the examples that were scored.

  What is kept: 'top', 'bottom' and 'middle' of the ranking by `score`, up to
  `fraction`; a 'band' of it, from `low` to `high` as fractions; every score
  from `low` to `high` ('threshold'); a 'sample' without replacement, likelier
  by exp(score / temperature); a 'random' fraction; the first of each text, or
  of each value of `score`, such as near_duplicate_group ('distinct'); 'all'; or
  'all_plus_reference', which adds the reference split and trains longer, for
  the FLOPs that the reference model and scoring cost the other arms. 'repeat'
  uses each example 0, 1, 2 or more times an epoch: as often as `curve` says at
  its rank, or as often as `score` itself says.
  """

  score: str = ''  # SQL expression over columns of the tables; '' for none
  keep: str
  # Of all that was scored, in `unit`; in (0, 1]. Or a fraction for each group
  # of `per`, in [0, 1]; '*' stands for all groups that are not named.
  fraction: float | Mapping[str, float] = dataclasses.field(
    default=1.0, hash=False
  )
  low: float = -math.inf  # of a band or threshold
  high: float = math.inf  # of a band or threshold
  # Of what 'top', 'bottom', 'middle' or 'band' cuts, in [0, 1): this fraction is
  # kept, at random. A budget includes it; to a band it is added.
  floor: float = 0.0
  temperature: float = 1.0  # of a sample, in units of the score
  # Of 'repeat': points (rank, repeats), with straight lines between them. A
  # rank is the fraction of all that was scored, in `unit`, with a lower score.
  # () to take the repeats from `score`.
  curve: tuple[tuple[float, float], ...] = ()
  max_repeats: int = MAX_REPEATS  # of 'repeat': an example with more gets these
  # Of 'distinct': so many examples of each text or value stay, those with the
  # highest value of this SQL expression; '' for the first of the store.
  copies: int = 1
  best: str = ''
  unit: str = 'tokens'  # 'tokens', 'examples' or 'bytes'
  # SQL expressions, such as 'source, language': the budget is spent within each
  # group of examples that have the same values; '' over all.
  per: str = ''
  seed: int  # of random draws and of ties
  # If an example has no finite score: 'refuse', or rank it 'lowest', below any
  # `low`. For 'distinct' such examples have one value.
  missing: str = 'refuse'

  def __post_init__(self):
    check_choice('select.keep', self.keep, KEEP_KINDS)
    check_choice('select.unit', self.unit, UNITS)
    check_choice('select.missing', self.missing, MISSING)
    check_seeds('select.seed', self.seed)
    self._check_fraction()
    if not 0.0 < self.temperature < math.inf:
      raise UserError(
        f'select.temperature must be positive, got {self.temperature}.'
      )
    self._check_kind()
    self._check_floor()
    self._check_repeats()
    check_range('select.copies', self.copies, 1, 2**31 - 1)
    if self.keep != 'distinct' and (self.copies, self.best) != (1, ''):
      raise UserError(
        "select.copies and select.best are for keep='distinct', not for "
        f"keep='{self.keep}'."
      )

  def _check_fraction(self) -> None:
    if not isinstance(self.fraction, Mapping):
      if not 0.0 < self.fraction <= 1.0:
        raise UserError(
          f'select.fraction must be in (0, 1], got {self.fraction}.'
        )
      return
    for group, fraction in self.fraction.items():
      check_range(f'select.fraction[{group!r}]', fraction, 0, 1)
    if not any(self.fraction.values()):
      raise UserError(
        f'select.fraction is {dict(self.fraction)}: give at least one group a '
        'fraction above 0.'
      )
    if not self.per.strip():
      raise UserError(
        f'select.fraction is {dict(self.fraction)}, a fraction for each group, '
        "but select.per names no groups: set it, for instance to 'source'."
      )

  def _check_kind(self) -> None:
    kind = f"keep='{self.keep}'"
    if self.keep != 'distinct' and self.needs_score != self.has_score:
      raise UserError(
        f'select.score is {self.score!r}, but {kind} '
        + (
          "ranks by it: give a SQL expression such as 'nll_sum / num_tokens'."
          if self.needs_score
          else 'reads no score: leave it empty.'
        )
      )
    if self.keep not in BUDGET_KINDS and self.fraction != 1.0:
      raise UserError(
        f'select.fraction is {self.fraction}, but {kind} has no budget.'
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

  def _check_floor(self) -> None:
    if not 0.0 <= self.floor < 1.0:
      raise UserError(f'select.floor must be in [0, 1), got {self.floor}.')
    if self.floor and self.keep not in FLOOR_KINDS:
      raise UserError(
        f"select.floor is {self.floor}, but keep='{self.keep}' cuts by no "
        f'ranking: set it to 0, or use one of {", ".join(FLOOR_KINDS)}.'
      )
    least = min(filter(None, self.fractions.values()))
    if self.keep in BUDGET_KINDS and self.floor >= least:
      raise UserError(
        f'select.floor is {self.floor}, but the budget that includes it is '
        f'select.fraction={least}: lower the floor.'
      )

  def _check_repeats(self) -> None:
    check_range('select.max_repeats', self.max_repeats, 1, MAX_REPEATS)
    if self.keep != 'repeat':
      if self.curve or self.max_repeats != MAX_REPEATS:
        raise UserError(
          "select.curve and select.max_repeats are for keep='repeat', not for "
          f"keep='{self.keep}'."
        )
      return
    got = f'select.curve is {self.curve}'
    form = (
      'write points (rank, repeats), such as ((0.0, 0), (0.4, 1), (1.0, 4))'
    )
    if any(len(point) != 2 for point in self.curve):
      raise UserError(f'{got}: {form}.')
    ranks = [rank for rank, _ in self.curve]
    repeats = [count for _, count in self.curve]
    if self.curve and not ranks[0] == 0.0 <= ranks[-1] <= 1.0:
      raise UserError(
        f'{got}, but ranks begin at 0.0 and end at most at 1.0: {form}.'
      )
    if not all(a < b for a, b in itertools.pairwise(ranks)):
      raise UserError(
        f'{got}, which is not monotone in rank: each point must have a higher '
        f'rank than the one before; {form}.'
      )
    if not all(0.0 <= count <= self.max_repeats for count in repeats):
      raise UserError(
        f'{got}, but repeats must be between 0 and '
        f'select.max_repeats={self.max_repeats}: lower them, or raise '
        f'select.max_repeats, to {MAX_REPEATS} at most.'
      )
    if repeats not in (sorted(repeats), sorted(repeats, reverse=True)):
      raise UserError(
        f'{got}, which is not monotone in rank: its repeats rise and fall. To '
        'leave out both ends of a ranking, put a rule with '
        "keep='band' before this one."
      )

  @property
  def fractions(self) -> Mapping[str, float]:
    """The fraction of each group, by its name; of all others by '*'."""
    if isinstance(self.fraction, Mapping):
      return self.fraction
    return {OTHER_GROUPS: self.fraction}

  @property
  def expressions(self) -> tuple[str, ...]:
    """The SQL expressions that read tables; sources need none."""
    per = self.per.strip()
    per = '' if per == 'source' else per
    texts = (self.score.strip(), per, self.best.strip())
    return tuple(filter(None, texts))

  @property
  def draws(self) -> bool:
    """Whether the rule keeps other examples for each seed of training."""
    return self.keep in ('sample', 'random') or self.floor > 0.0

  @property
  def needs_score(self) -> bool:
    """Whether the rule ranks by a score, rather than by chance or nothing."""
    return self.keep in RANKED_KINDS

  @property
  def has_score(self) -> bool:
    """Whether the rule has a score to evaluate."""
    return bool(self.score.strip())
