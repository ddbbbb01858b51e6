"""Selection rules: which examples of the scored split an arm keeps.

A rule ranks by a SQL expression over the score table, or by chance, and keeps
one end, the middle or a band of the ranking up to a budget, without a sort.
"""

from collections.abc import Sequence

import numpy as np

from infoprune_jax.config.selection import RuleConfig
from infoprune_jax.config.validation import UserError
from infoprune_jax.runtime.hashing import mix, uniform
from infoprune_jax.runtime.progress import logger
from infoprune_jax.selection import budget, copies, expressions
from infoprune_jax.selection.arrays import scratch, side_by_side, steps
from infoprune_jax.selection.examples import Examples
from infoprune_jax.selection.ranks import mid_ranks
from infoprune_jax.tokens import tables


def ranked_within_folds(examples: Examples, expression: str) -> bool:
  """Whether an expression's values are in the scales of several models."""
  folds, _ = examples.folds
  return len(folds) > 1 and expressions.reads_reference(expression)


def ranking(
  examples: Examples, expression: str, missing: str = 'refuse'
) -> np.ndarray:
  """What examples are ranked by: a score, or its rank within the fold.

  Two reference models differ in scale, so what they say of their folds is made
  comparable before it is joined: by mid-ranks, as fractions of a fold's
  examples. An example without a number has minus infinity, in either fold.

  Args:
    examples: Whose columns the expression may name.
    expression: As for `expressions.score`.
    missing: Likewise.

  Returns:
    [examples] float64.

  Raises:
    UserError: as `expressions.score` does.
  """

  def compute() -> np.ndarray:
    values = expressions.score(examples, expression, missing)
    if ranked_within_folds(examples, expression):
      return expressions.within_folds(examples, mid_ranks, values)
    return values

  # Arms often keep different shards of one ranking.
  return examples.once(('ranking', expression, missing), compute)


def check(
  rules: Sequence[RuleConfig], where: str, columns: Sequence[str]
) -> None:
  """Parses the expressions of rules.

  Args:
    rules: Of an arm.
    where: Which, for the message.
    columns: Those of NLL that the score table has.

  Raises:
    UserError: one cannot be evaluated; `where` and the expression are named.
  """
  for rule in rules:
    if rule.reads_tables:
      try:
        expressions.parse(rule.score, tables.rule_schema(columns))
      except UserError as error:
        raise UserError(f'In {where}: {error}') from None


def apply(
  rules: Sequence[RuleConfig],
  examples: Examples,
  draw: int,
  candidates: np.ndarray | None = None,
) -> np.ndarray:
  """Applies rules one after another.

  Args:
    rules: Each keeps a fraction of the whole scored split, out of what the
      ones before it kept.
    examples: The scored split.
    draw: Added to the seed of rules that draw: the run's seed.
    candidates: [examples] bool, what to choose out of; None for all.

  Returns:
    [examples] bool.

  Raises:
    UserError: an expression cannot be evaluated, or a threshold would be in
      the scales of two reference models.
  """
  kept = np.ones(len(examples), bool) if candidates is None else candidates
  for rule in rules:
    if rule.keep == 'threshold':
      kept = kept & _between(rule, examples)
    elif rule.keep == 'distinct':
      kept = _first_of_each(rule, examples, kept)
    elif rule.keep not in ('all', 'all_plus_reference'):
      kept = _up_to_budget(rule, examples, kept, draw)
  return kept


def _between(rule: RuleConfig, examples: Examples) -> np.ndarray:
  """Which scores are within the bounds of a threshold."""
  if ranked_within_folds(examples, rule.score):
    raise UserError(
      f"keep='threshold' with {rule.score!r} reads the NLL of two reference "
      'models (reference.folds), whose scales differ, so that no bound fits '
      "both: use keep='band', which goes by ranks within each fold, or "
      'reference.folds=1.'
    )
  values = expressions.score(examples, rule.score, rule.missing)
  return (values >= rule.low) & (values <= rule.high)


def _first_of_each(
  rule: RuleConfig, examples: Examples, candidates: np.ndarray
) -> np.ndarray:
  """The first candidate, in store order, of each text or value."""
  if rule.reads_tables:
    values = expressions.score(examples, rule.score, rule.missing)
  else:
    values = examples.column('content_hash', np.int64)
  _, group = examples.groups(rule.per)
  content = scratch(len(examples), np.uint64)

  def fill(some: slice) -> None:
    bits = values[some]
    if rule.reads_tables:
      bits = budget.ordered_bits(bits)
    content[some] = mix(bits, 0)
    if rule.per:  # A text of another group is another text.
      content[some] ^= mix(group[some], 1)

  side_by_side(fill, steps(len(examples)))
  kept = candidates.copy()
  for same, starts in copies.groups(content, candidates):
    index = examples.index[same]
    size = np.diff(starts, append=len(same))
    kept[same] = index == np.repeat(np.minimum.reduceat(index, starts), size)
  return kept


def _keys(rule: RuleConfig, examples: Examples, draw: int) -> np.ndarray:
  """uint64 keys; what a rule keeps comes first in their order."""
  values = None
  if rule.keep != 'random':
    values = ranking(examples, rule.score, rule.missing)
  keys, index = scratch(len(examples), np.uint64), examples.index

  def fill(some: slice) -> None:
    if values is None:
      keys[some] = mix(index[some], rule.seed + draw + 1)
      return
    here = values[some]
    if rule.keep == 'sample':
      noise = _gumbel(index[some], rule.seed + draw + 1)
      here = here + rule.temperature * noise
    key = budget.ordered_bits(here)
    keys[some] = ~key if rule.keep in ('top', 'sample') else key

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
  rule: RuleConfig, examples: Examples, candidates: np.ndarray, draw: int
) -> np.ndarray:
  """The candidates of a rule's part of the ranking, as the budget allows."""
  weight = examples.weight(rule.unit)
  count, group = examples.groups(rule.per)
  everything = np.broadcast_to(np.True_, len(examples))
  total = budget.add_up(weight, group, everything, count)
  fraction = rule.high - rule.low if rule.keep == 'band' else rule.fraction
  most = _fraction_of(total, fraction)
  skipped = np.zeros(count, np.int64)
  if rule.keep == 'band':
    skipped = _fraction_of(total, rule.low)
  elif rule.keep == 'middle':
    left = budget.add_up(weight, group, candidates, count)
    skipped = np.maximum((left - most) // 2, 0)
  order = (_keys(rule, examples, draw), examples.index, weight, group)
  if skipped.any():
    # Of nothing to skip, not even what weighs nothing.
    skipped = np.where(skipped > 0, skipped, -1)
    candidates = candidates & ~budget.lowest(
      *order, candidates, skipped, rule.seed
    )
  left = budget.add_up(weight, group, candidates, count)
  short = np.flatnonzero(left < most)
  for number in short:
    logger.warning(
      "select: %searlier rules left %d of %s's budget of %d %s: all are kept",
      f'{examples.sources[0][number]}: ' if rule.per else '',
      left[number],
      rule.keep,
      most[number],
      rule.unit,
    )
  return budget.lowest(*order, candidates, most, rule.seed)


def _fraction_of(total: np.ndarray, fraction: float) -> np.ndarray:
  return np.array([int(fraction * int(n)) for n in total], np.int64)


def reads_tables(rules: Sequence[RuleConfig]) -> bool:
  """Whether any of the rules has an expression to evaluate."""
  return any(rule.reads_tables for rule in rules)


def reads_near_duplicates(rules: Sequence[RuleConfig]) -> bool:
  """Whether any of the rules goes by groups of near-duplicates."""
  return any(expressions.reads_near_duplicates(rule.score) for rule in rules)
