"""The tables that rules read."""

from collections.abc import Iterable, Sequence

from infoprune_jax.config.classifier import PREFIX
from infoprune_jax.config.experiment import Config
from infoprune_jax.config.selection import RuleConfig
from infoprune_jax.runtime.workdir import (
  classifier_dir,
  contamination_dir,
  near_duplicates_dir,
  scores_dir,
  statistics_dir,
  user_table_dir,
  user_table_input,
)
from infoprune_jax.selection import expressions


def folders_read(
  config: Config, workdir: str, rules: Sequence[RuleConfig]
) -> dict[str, str]:
  """The folders of the tables that rules read, by the names of the inputs."""
  read = {}
  if reads_tables(rules):
    read['scores'] = scores_dir(workdir)
    read['statistics'] = statistics_dir(workdir)
  if reads_near_duplicates(rules):
    read['near_duplicates'] = near_duplicates_dir(workdir)
  if reads_contamination(rules):
    read['contamination'] = contamination_dir(workdir)
  for name in tables_read(rules, config.select.tables):
    read[user_table_input(name)] = user_table_dir(workdir, name)
  for name in classifiers_read(rules):
    read[PREFIX + name] = classifier_dir(workdir, name)
  return read


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
