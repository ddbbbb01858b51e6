"""Selection rules: which examples of the scored split an arm keeps.

A rule ranks by a SQL expression over the score table, or by chance, and keeps
one end, the middle or a band of the ranking up to a budget. No global sort: a
radix selection finds the threshold in a few passes over histograms of weights,
and what ties there goes by a seeded hash.
"""

import dataclasses
import re
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from infoprune_jax import artifacts
from infoprune_jax.config import RuleConfig, UserError
from infoprune_jax.data.hashing import mix, uniform
from infoprune_jax.data.token_store import TokenStore
from infoprune_jax.progress import logger
from infoprune_jax.score import table
from infoprune_jax.selection.ranks import mid_ranks

WEIGHTS = {'tokens': 'num_tokens', 'bytes': 'num_bytes', 'examples': None}
_DIGIT_BITS = 16
_KEY = ['shard', 'row']
_POSITION = (
  '__position'  # The number of the example, beside the table's columns.
)


@dataclasses.dataclass(frozen=True, eq=False)
class Examples:
  """The scored split, as a rule sees it."""

  table: pa.Table  # the score table
  index: np.ndarray  # [examples] int64: the document's number in the store

  def __len__(self) -> int:
    return self.table.num_rows

  def weight(self, unit: str) -> np.ndarray:
    """What each example takes of a budget, [examples] int64."""
    column = WEIGHTS[unit]
    if column is None:
      return np.ones(len(self), np.int64)
    return self.table[column].to_numpy().astype(np.int64)

  def groups(self, per: str) -> Iterator[np.ndarray]:
    """The examples that share a budget, as positions."""
    if not per:
      yield np.arange(len(self))
      return
    codes = self.table[per].combine_chunks().dictionary_encode()
    codes = codes.indices.to_numpy(zero_copy_only=False)
    order = np.argsort(codes, kind='stable')
    starts = np.flatnonzero(np.diff(codes[order])) + 1
    yield from np.split(order, starts)


def scored_examples(workdir: str, store: TokenStore) -> Examples:
  """Scores and statistics of a workdir, in the order of its store.

  Raises:
    UserError: a table is missing or damaged, or they hold other examples.
  """
  scored = table.read_table(artifacts.scores_dir(workdir))
  path = artifacts.statistics_dir(workdir)
  found = table.read_table(path)
  if not found.select(_KEY).equals(scored.select(_KEY)):
    raise UserError(
      f'{path} holds other examples than {artifacts.scores_dir(workdir)}: '
      f'delete {path} and run --job=statistics again.'
    )
  for name in found.column_names[len(_KEY) :]:
    scored = scored.append_column(found.field(name), found[name])
  offsets = np.concatenate([[0], np.cumsum(store.documents_per_part)])
  index = offsets[scored['shard'].to_numpy()] + scored['row'].to_numpy()
  return Examples(scored, index.astype(np.int64))


def score(examples: Examples, expression: str) -> np.ndarray:
  """Evaluates a SQL expression for each example.

  Args:
    examples: Whose columns the expression may name.
    expression: Of DuckDB's SQL; it can read neither files nor the network.

  Returns:
    [examples] float64.

  Raises:
    UserError: it does not parse, names no column, or gives no number.
  """
  import duckdb  # Not on machines that only score and train.

  with duckdb.connect(config={'enable_external_access': False}) as connection:
    numbered = examples.table.append_column(
      _POSITION, pa.array(np.arange(len(examples)))
    )
    connection.register('scores', numbered)
    try:
      # Parsed by itself, so that it can be an expression and nothing more.
      parsed = duckdb.SQLExpression(expression).cast('DOUBLE')
      found = (
        connection.view('scores')
        .select(duckdb.ColumnExpression(_POSITION), parsed.alias('score'))
        .to_arrow_table()
      )
    except duckdb.Error as error:
      reason = str(error).split('\n')[0]
      raise UserError(
        f'The rule expression {expression!r} cannot be evaluated: {reason} '
        f'Columns are {", ".join(examples.table.column_names)}.'
      ) from None
  result = np.full(len(examples), np.nan)
  # Window functions give rows in an order of their own.
  result[found[_POSITION].to_numpy()] = found['score'].to_numpy()
  missing = int(np.count_nonzero(~np.isfinite(result)))
  if missing or found.num_rows != len(examples):
    raise UserError(
      f'The rule expression {expression!r} gives no finite number for {missing} '
      f'of {len(examples)} examples: say what they get, for instance with '
      'coalesce(..., 0).'
    )
  return result


def reads_reference(expression: str) -> bool:
  """Whether an expression reads the NLL of a reference model.

  Word frequencies, lengths and compressed sizes need no model.

  >>> reads_reference('NLL_SUM / 2'), reads_reference('unigram_nll_sum / 2')
  (True, False)
  >>> reads_reference('nll_sum_early / num_tokens')
  True
  """
  return bool(re.search(r'\bnll_sum(_|\b)', expression, re.IGNORECASE))


def ranked_within_folds(examples: Examples, expression: str) -> bool:
  """Whether an expression's values are in the scales of several models."""
  folds = np.unique(examples.table['fold'].to_numpy())
  return len(folds) > 1 and reads_reference(expression)


def ranking(examples: Examples, expression: str) -> np.ndarray:
  """What examples are ranked by: a score, or its rank within the fold.

  Two reference models differ in scale, so what they say of their folds is made
  comparable before it is joined: by mid-ranks, as shares of a fold's examples.

  Args:
    examples: Whose columns the expression may name.
    expression: As for `score`.

  Returns:
    [examples] float64.

  Raises:
    UserError: as `score` does.
  """
  values = score(examples, expression)
  if ranked_within_folds(examples, expression):
    fold = examples.table['fold'].to_numpy()
    for number in np.unique(fold):
      values[fold == number] = mid_ranks(values[fold == number])
  return values


def check(
  rules: Sequence[RuleConfig], where: str, columns: Sequence[str]
) -> None:
  """Evaluates the expressions of rules over no example.

  Args:
    rules: Of an arm.
    where: Which, for the message.
    columns: Those of NLL that the score table has.

  Raises:
    UserError: one cannot be evaluated; `where` and the expression are named.
  """
  empty = table.example_schema(columns).empty_table()
  nothing = Examples(empty, np.zeros(0, np.int64))
  for rule in rules:
    if rule.needs_score:
      try:
        score(nothing, rule.score)
      except UserError as error:
        raise UserError(f'In {where}: {error}') from None


def apply(
  rules: Sequence[RuleConfig], examples: Examples, draw: int
) -> np.ndarray:
  """Applies rules one after another.

  Args:
    rules: Each keeps a fraction of the whole scored split, out of what the
      ones before it kept.
    examples: The scored split.
    draw: Added to the seed of rules that draw: the run's seed.

  Returns:
    [examples] bool.

  Raises:
    UserError: an expression cannot be evaluated, or a threshold would be in
      the scales of two reference models.
  """
  kept = np.ones(len(examples), bool)
  for rule in rules:
    if rule.keep == 'threshold':
      kept = kept & _between(rule, examples)
    elif rule.keep == 'distinct':
      kept = _first_of_each_text(rule, examples, kept)
    elif rule.keep not in ('all', 'everything'):
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
  values = score(examples, rule.score)
  return (values >= rule.low) & (values <= rule.high)


def _first_of_each_text(
  rule: RuleConfig, examples: Examples, candidates: np.ndarray
) -> np.ndarray:
  """The first candidate, in store order, of each content hash."""
  content = examples.table['content_hash'].to_numpy()
  kept = np.zeros(len(examples), bool)
  for group in examples.groups(rule.per):
    left = group[candidates[group]]
    left = left[np.argsort(examples.index[left])]
    _, first = np.unique(content[left], return_index=True)
    kept[left[first]] = True
  return kept


def _keys(rule: RuleConfig, examples: Examples, draw: int) -> np.ndarray:
  """uint64 keys; what a rule keeps comes first in their order."""
  if rule.keep == 'random':
    return mix(examples.index, rule.seed + draw + 1)
  values = ranking(examples, rule.score)
  if rule.keep == 'sample':
    # Kept in the order of score / temperature + Gumbel noise, examples are
    # drawn without replacement, likelier by exp(score / temperature). The same
    # order, times the temperature: a low one cannot overflow.
    chance = uniform(examples.index, rule.seed + draw + 1)
    noise = -np.log(-np.log(np.maximum(chance, 2.0**-54)))
    values = values + rule.temperature * noise
  key = ordered_bits(values)
  return ~key if rule.keep in ('top', 'sample') else key


def _up_to_budget(
  rule: RuleConfig, examples: Examples, candidates: np.ndarray, draw: int
) -> np.ndarray:
  """The candidates of a rule's part of the ranking, as the budget allows."""
  weight = examples.weight(rule.unit)
  tie = mix(examples.index, rule.seed)
  key = _keys(rule, examples, draw)
  kept = np.zeros(len(examples), bool)
  for group in examples.groups(rule.per):
    total = int(weight[group].sum())
    left = group[candidates[group]]
    share = rule.high - rule.low if rule.keep == 'band' else rule.fraction
    budget, skipped = int(share * total), 0
    if rule.keep == 'band':
      skipped = int(rule.low * total)
    elif rule.keep == 'middle':
      skipped = max((int(weight[left].sum()) - budget) // 2, 0)
    if skipped:
      left = left[~lowest(key[left], tie[left], weight[left], skipped)]
    if weight[left].sum() < budget:
      logger.warning(
        "select: earlier rules left %d of %s's budget of %d %s: all are kept",
        weight[left].sum(),
        rule.keep,
        budget,
        rule.unit,
      )
    kept[left[lowest(key[left], tie[left], weight[left], budget)]] = True
  return kept


def ordered_bits(values: np.ndarray) -> np.ndarray:
  """uint64 keys in the order of float64 values; zeros of both signs tie."""
  bits = (values + 0.0).view(np.uint64)
  sign = np.uint64(1 << 63)
  return np.where(bits & sign, ~bits, bits | sign)


def lowest(
  key: np.ndarray, tie: np.ndarray, weight: np.ndarray, budget: int
) -> np.ndarray:
  """The longest prefix in (key, tie) order whose weights fit a budget.

  Args:
    key: [examples] uint64.
    tie: [examples] uint64, decides between equal keys.
    weight: [examples] int64.
    budget: The most that the prefix may weigh.

  Returns:
    [examples] bool.

  >>> key = np.array([5, 3, 9], np.uint64)
  >>> lowest(key, key, np.array([1, 1, 1]), 2).tolist()
  [True, True, False]
  """
  kept = np.zeros(len(key), bool)
  undecided = np.arange(len(key))
  for values in (key, tie):
    for shift in range(64 - _DIGIT_BITS, -1, -_DIGIT_BITS):
      digits = (values[undecided] >> np.uint64(shift)).astype(np.int64)
      digits &= (1 << _DIGIT_BITS) - 1
      sums = np.bincount(digits, weight[undecided], 1 << _DIGIT_BITS)
      total = np.cumsum(sums)
      # The digit at whose examples the budget runs out.
      threshold = int(np.searchsorted(total, budget, side='right'))
      kept[undecided[digits < threshold]] = True
      if threshold == len(total):
        return kept
      budget -= int(total[threshold - 1]) if threshold else 0
      undecided = undecided[digits == threshold]
  return kept


def needs_scores(rules: Sequence[Any]) -> bool:
  """Whether any of the rules ranks by a score."""
  return any(rule.needs_score for rule in rules)
