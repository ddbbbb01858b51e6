"""Selection rules: which examples of the scored split an arm keeps.

A rule ranks by a SQL expression over the score table, or by chance, and keeps
one end, the middle or a band of the ranking up to a budget, without a sort.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from infoprune_jax.config.selection import RuleConfig
from infoprune_jax.config.validation import UserError
from infoprune_jax.runtime.hashing import mix, uniform
from infoprune_jax.runtime.progress import logger
from infoprune_jax.selection import (
  budget,
  copies,
  expressions,
  groups,
  parser,
  repeats,
)
from infoprune_jax.selection.arrays import scratch, side_by_side, steps
from infoprune_jax.selection.computed import HERE, Column, Computed
from infoprune_jax.selection.examples import Examples
from infoprune_jax.selection.ranks import mid_ranks


def ranked_within_folds(examples: Examples, expression: str) -> bool:
  """Whether an expression's values are in the scales of several models."""
  return (
    expressions.reads_reference(expression) and len(examples.fold_numbers) > 1
  )


def ranking(
  examples: Examples, expression: str, missing: str = 'refuse'
) -> Any:
  """The values that rank examples: scores, or their ranks within the fold.

  Two reference models differ in scale. So the scores of each fold are replaced
  by their mid-ranks, as fractions of the fold's examples. An example without a
  number has minus infinity, in either fold.

  Args:
    examples: The examples, whose columns the expression may name.
    expression: See `expressions.score`.
    missing: See `expressions.score`.

  Returns:
    [examples] float64, a `Computed` if the examples are in shards.

  Raises:
    UserError: see `expressions.score`.
  """
  values = Computed(_ranking, HERE, expression, missing)
  examples.once(
    ('missing', expression, missing),
    lambda: expressions.check_missing(examples, values, expression, missing),
  )
  return examples.value(values)


def _ranking(examples: Examples, expression: str, missing: str) -> np.ndarray:
  def compute() -> np.ndarray:
    values = expressions.values(examples, expression, missing)
    if ranked_within_folds(examples, expression):
      return expressions.within_folds(examples, mid_ranks, values)
    return values

  # Arms often keep different parts of one ranking.
  return examples.once(('ranking', expression, missing), compute)


def check(rules: Sequence[RuleConfig], where: str, schema: pa.Schema) -> None:
  """Parses the expressions of rules.

  Args:
    rules: Of an arm.
    where: Which, for the message.
    schema: The columns that they may name.

  Raises:
    UserError: one cannot be evaluated; `where` and the expression are named.
  """
  try:
    for rule in rules:
      if rule.has_score:
        expressions.parse(rule.score, schema)
      if rule.best.strip():
        expressions.parse(rule.best, schema)
      if rule.per.strip() not in ('', 'source'):
        parser.parse_groups(rule.per, schema)
  except UserError as error:
    raise UserError(f'In {where}: {error}') from None


def apply(
  rules: Sequence[RuleConfig],
  examples: Examples,
  draw: int,
  candidates: Column | None = None,
) -> Column:
  """Applies rules one after another.

  Args:
    rules: Each keeps a fraction of the whole scored split, out of what the
      ones before it kept.
    examples: The scored split.
    draw: Added to the seed of rules that draw: the run's seed.
    candidates: [examples] bool, what to choose out of; None for all.

  Returns:
    [examples] bool; or where the last rule repeats examples, how often an epoch
    uses each, [examples] uint8.

  Raises:
    UserError: an expression cannot be evaluated, or a threshold or a number of
      repeats would be in the scales of two reference models.
  """
  kept = Computed(_all, HERE) if candidates is None else candidates
  for rule in rules:
    if rule.keep == 'threshold':
      kept = _between(rule, examples, kept)
    elif rule.keep == 'distinct':
      kept = Computed(_best_of_each, rule, HERE, kept)
    elif rule.keep == 'repeat':
      kept = Computed(_repeats, rule, HERE, kept)
    elif rule.keep not in ('all', 'all_plus_reference'):
      kept = _up_to_budget(rule, examples, kept, draw)
  return examples.value(kept)


def _all(examples: Examples) -> np.ndarray:
  return np.ones(len(examples), bool)


def _between(
  rule: RuleConfig, examples: Examples, candidates: Column
) -> Column:
  """The candidates whose scores are within the bounds of a threshold."""
  _check_one_scale(rule, examples, "use keep='band'")
  values = ranking(examples, rule.score, rule.missing)
  return Computed(_within, values, candidates, rule.low, rule.high)


def _within(
  values: np.ndarray, candidates: np.ndarray, low: float, high: float
) -> np.ndarray:
  return candidates & (values >= low) & (values <= high)


def _check_one_scale(
  rule: RuleConfig, examples: Examples, repair_hint: str
) -> None:
  """Raises `UserError` for scores that several reference models gave."""
  if ranked_within_folds(examples, rule.score):
    raise UserError(
      f'keep={rule.keep!r} with {rule.score!r} reads the NLL of two reference '
      'models (reference.folds), whose scales differ, so that no number means '
      f'the same in both: {repair_hint}, which uses ranks within each fold, or '
      'reference.folds=1.'
    )


def _repeats(
  rule: RuleConfig, examples: Examples, candidates: np.ndarray
) -> np.ndarray:
  """How often an epoch uses each example, [examples] uint8."""
  if rule.curve:
    names, group = groups.of(examples, rule.per)
    expected = repeats.by_curve(
      rule.curve,
      ranking(examples, rule.score, rule.missing),
      examples.weight(rule.unit),
      len(names),
      group,
    )
  else:
    _check_one_scale(rule, examples, 'give it a curve')
    expected = expressions.score(examples, rule.score, rule.missing)
    repeats.check_counts(expected, rule.score)
  return repeats.rounded(
    expected, examples.index, candidates, rule.max_repeats, rule.seed
  )


def _best_of_each(
  rule: RuleConfig, examples: Examples, candidates: np.ndarray
) -> np.ndarray:
  """Of each text or value the best candidates, or the first of the store."""
  if rule.has_score:
    values = expressions.score(examples, rule.score, rule.missing)
  else:
    values = examples.column('content_hash', np.int64)
  best = None
  if rule.best.strip():
    best = ranking(examples, rule.best, rule.missing)
  group = groups.of(examples, rule.per).codes
  content = scratch(len(examples), np.uint64)

  def fill(some: slice) -> None:
    bits = values[some]
    if rule.has_score:
      bits = budget.ordered_bits(bits)
    content[some] = mix(bits, 0)
    if rule.per:  # A text of another group is another text.
      content[some] ^= mix(group[some], 1)

  side_by_side(fill, steps(len(examples)))
  kept = candidates.copy()
  for same, starts in copies.groups(content, candidates):
    index, size = examples.index[same], np.diff(starts, append=len(same))
    if best is None and rule.copies == 1:
      kept[same] = index == np.repeat(np.minimum.reduceat(index, starts), size)
      continue
    # By group, then the best first, then in store order.
    start = np.repeat(starts, size)
    keys = [index, start]
    if best is not None:
      keys.insert(1, ~budget.ordered_bits(best[same]))
    kept[same[np.lexsort(keys)]] = np.arange(len(same)) - start < rule.copies
  return kept


def _ranked(
  examples: Examples,
  values: np.ndarray | None,
  group: np.ndarray,
  rule: RuleConfig,
  draw: int,
) -> budget.Ranking:
  """The examples in the order of a rule: what it keeps comes first.

  Args:
    examples: The examples.
    values: [examples] float64, as from `ranking`; None for an order by chance.
    group: [examples] int32.
    rule: The rule.
    draw: As for `apply`.
  """
  if values is None:
    keys = _random_keys(rule, examples, draw)
  else:
    keys = _keys(rule, examples, values, draw)
  weight = examples.weight(rule.unit)
  return budget.Ranking(keys, examples.index, weight, group, rule.seed)


def _keys(
  rule: RuleConfig, examples: Examples, values: np.ndarray, draw: int
) -> np.ndarray:
  """uint64 keys; what a rule keeps comes first in their order."""
  keys, index = scratch(len(examples), np.uint64), examples.index

  def fill(some: slice) -> None:
    here = values[some]
    if rule.keep == 'sample':
      noise = _gumbel(index[some], rule.seed + draw + 1)
      here = here + rule.temperature * noise
    key = budget.ordered_bits(here)
    keys[some] = ~key if rule.keep in ('top', 'sample') else key

  side_by_side(fill, steps(len(keys)))
  return keys


def _random_keys(rule: RuleConfig, examples: Examples, draw: int) -> np.ndarray:
  """uint64 keys in an order by chance, another one for each `draw`."""
  keys, index = scratch(len(examples), np.uint64), examples.index

  def fill(some: slice) -> None:
    keys[some] = mix(index[some], rule.seed + draw + 1)

  side_by_side(fill, steps(len(keys)))
  return keys


def _gumbel(index: np.ndarray, seed: int) -> np.ndarray:
  """Gumbel noise of each document.

  Kept in the order of score / temperature + noise, examples are drawn without
  replacement, likelier by exp(score / temperature). So they are in the order of
  that times the temperature, and a low one cannot overflow.
  """
  chance = np.maximum(uniform(index, seed), 2.0**-54)
  # Logarithms differ in their last bit between machines.
  return np.round(-np.log(-np.log(chance)), 9)


def _up_to_budget(
  rule: RuleConfig, examples: Examples, candidates: Column, draw: int
) -> Column:
  """The candidates that a rule keeps by its ranking, and by its floor."""
  per = rule.per.strip()
  names = groups.names(examples, per)
  group = Computed(groups.codes, HERE, per, names)
  values = None
  if rule.keep != 'random':
    values = ranking(examples, rule.score, rule.missing)
  by_rank = Computed(_ranked, HERE, values, group, rule, draw)

  def add_up(some: Column) -> np.ndarray:
    return examples.sum(_add_up, by_rank, some, len(names))

  total, left = examples.sum(_add_up_all, HERE, by_rank, candidates, len(names))
  if rule.keep == 'band':
    most = of_rank = _fraction_of(total, rule.high - rule.low)
    below = _fraction_of(total, rule.low)
  else:
    fractions = groups.fractions(rule, names)
    most = _fraction_of(total, fractions)
    # With `floor` of what is then cut, it is `most`.
    of_rank = _fraction_of(most - rule.floor * left, 1.0 / (1.0 - rule.floor))
    below = np.maximum((left - of_rank) // 2, 0) * (rule.keep == 'middle')
  ranked = _above(examples, by_rank, candidates, below)
  if ranked is not candidates:
    left = add_up(ranked)
  _warn_if_short(rule, names, left, of_rank)
  kept = budget.lowest(examples, by_rank, ranked, of_rank)
  if not rule.floor:
    return kept
  cut = Computed(_without, candidates, kept)
  if rule.keep == 'band':
    of_chance = _fraction_of(add_up(cut), rule.floor)
  else:
    of_chance = most - add_up(kept)
  by_chance = Computed(_ranked, HERE, None, group, rule, draw)
  more = budget.lowest(examples, by_chance, cut, of_chance)
  return Computed(np.logical_or, kept, more)


def _add_up_all(
  examples: Examples,
  ranking: budget.Ranking,
  some: np.ndarray,
  groups: int,
) -> np.ndarray:
  """The weights of each group, of all examples and of some, [2, groups]."""
  everything = np.broadcast_to(np.True_, len(examples))
  both = (_add_up(ranking, each, groups) for each in (everything, some))
  return np.stack([*both])


def _add_up(
  ranking: budget.Ranking, some: np.ndarray, groups: int
) -> np.ndarray:
  """The weight of some examples of each group, [groups] int64."""
  return budget.add_up(ranking.weight, ranking.group, some, groups)


def _above(
  examples: Examples, ranking: Computed, candidates: Column, below: np.ndarray
) -> Column:
  """The candidates without the first of the ranking, which weigh `below`."""
  if not below.any():
    return candidates
  # Of nothing to skip, not even what weighs nothing.
  skipped = np.where(below > 0, below, -1)
  first = budget.lowest(examples, ranking, candidates, skipped)
  return Computed(_without, candidates, first)


def _without(candidates: np.ndarray, others: np.ndarray) -> np.ndarray:
  return candidates & ~others


def _warn_if_short(
  rule: RuleConfig, names: Sequence[str], left: np.ndarray, most: np.ndarray
) -> None:
  for number in np.flatnonzero(left < most):
    logger.warning(
      "select: %searlier rules left %d, fewer than the budget of '%s', %d %s: "
      'all of them are kept',
      f'{names[int(number)]}: ' if rule.per else '',
      left[number],
      rule.keep,
      most[number],
      rule.unit,
    )


def _fraction_of(total: np.ndarray, fraction: float | np.ndarray) -> np.ndarray:
  """A fraction of each group's total, [groups] int64."""
  fractions = np.broadcast_to(fraction, len(total)).tolist()
  return np.array(
    [int(f * int(n)) for f, n in zip(fractions, total, strict=True)], np.int64
  )
