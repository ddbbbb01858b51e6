"""The tables that rules read."""

from collections.abc import Iterable, Sequence

from infoprune_jax.config.selection import RuleConfig
from infoprune_jax.selection import expressions


def reads_tables(rules: Sequence[RuleConfig]) -> bool:
  """Whether any of the rules has an expression to evaluate."""
  return any(rule.expressions for rule in rules)


def reads_near_duplicates(rules: Sequence[RuleConfig]) -> bool:
  """Whether any of the rules reads groups of near-duplicates."""
  return any(
    expressions.reads_near_duplicates(text)
    for rule in rules
    for text in rule.expressions
  )


def reads_contamination(rules: Sequence[RuleConfig]) -> bool:
  """Whether any of the rules reads what of examples is in benchmarks."""
  return any(
    expressions.reads_contamination(text)
    for rule in rules
    for text in rule.expressions
  )


def reads_duplicated_text(rules: Sequence[RuleConfig]) -> bool:
  """Whether any of the rules reads how much of examples occurs elsewhere."""
  return any(
    expressions.reads_duplicated_text(text)
    for rule in rules
    for text in rule.expressions
  )


def tables_read(
  rules: Sequence[RuleConfig], names: Iterable[str]
) -> tuple[str, ...]:
  """Which of the user's tables, by name, the rules may read."""
  texts = [text for rule in rules for text in rule.expressions]
  return tuple(
    name
    for name in names
    if any(expressions.reads_table(text, name) for text in texts)
  )


def classifiers_read(rules: Sequence[RuleConfig]) -> list[str]:
  """The names of the classifiers that any of the rules reads."""
  texts = [text for rule in rules for text in rule.expressions]
  return sorted(set().union(*map(expressions.classifiers_read, texts)))
