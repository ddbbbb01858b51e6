"""Rule expressions: SQL over the columns of an example that gives a number.

DuckDB parses and evaluates them, shard by shard. There are two functions more
than in DuckDB: `rank(x)`, the fraction of examples whose x is lower, or with
`rank(x, w)` of all w, and `zscore(x)`, both over all examples of a reference
model. An expression with a
window or a subquery is evaluated over all examples at once, in memory.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from infoprune_jax.config.classifier import PREFIX
from infoprune_jax.config.scoring import REFERENCE_COLUMN
from infoprune_jax.config.validation import UserError
from infoprune_jax.runtime.progress import logger
from infoprune_jax.selection import database
from infoprune_jax.selection.arrays import scratch, side_by_side, steps
from infoprune_jax.selection.computed import Column
from infoprune_jax.selection.examples import Examples
from infoprune_jax.selection.parser import (
  POSITION,
  Call,
  Expression,
  parse,
  refused,
  relation,
)
from infoprune_jax.selection.ranks import (
  mid_ranks,
  weighted_mid_ranks,
  z_scores,
)

# Each takes [n] float64, and as `out` the array to write [n] float64 into.
_FUNCTIONS: Mapping[str, Callable[..., np.ndarray]] = {
  'rank': mid_ranks,
  'zscore': z_scores,
}


def score(examples: Examples, text: str, missing: str = 'refuse') -> np.ndarray:
  """Evaluates an expression for each example.

  Args:
    examples: Whose columns it may name.
    text: The expression.
    missing: For examples without a finite number: 'refuse', or 'lowest', which
      gives them minus infinity.

  Returns:
    [examples] float64.

  Raises:
    UserError: as `parse` does, or it gives no finite number for an example.
  """
  result = values(examples, text, missing)
  check_missing(examples, result, text, missing)
  return result


def values(examples: Examples, text: str, missing: str) -> np.ndarray:
  """As `score`, but missing numbers are not refused, and not logged."""
  expression = parse(text, examples.schema)
  result = scratch(len(examples), np.float64)
  for here, order, column in evaluated(examples, expression, missing, 'DOUBLE'):
    result[here][order] = column.to_numpy()

  def replace(some: slice) -> None:
    result[some][~np.isfinite(result[some])] = -np.inf

  side_by_side(replace, steps(len(result)))
  return result


def check_missing(
  examples: Examples, scores: Column, text: str, missing: str
) -> None:
  """Refuses examples without a number, or says that they rank lowest.

  Args:
    examples: The examples.
    scores: [examples] float64, minus infinity where a number is missing.
    text: The expression that gave them.
    missing: As for `score`.

  Raises:
    UserError: there are such examples, and `missing` is 'refuse'.
  """
  num_missing = int(examples.sum(_count_missing, scores))
  if not num_missing:
    return
  if missing == 'refuse':
    raise UserError(
      f'The rule expression {text!r} gives no finite number for {num_missing} '
      f'of {len(examples)} examples: give them a number, for instance with '
      "coalesce(..., 0), or rank them lowest with missing='lowest'."
    )
  logger.warning(
    'select: %r gives no finite number for %d of %d examples: they rank lowest',
    text,
    num_missing,
    len(examples),
  )


def _count_missing(scores: np.ndarray) -> np.ndarray:
  counts = side_by_side(
    lambda some: np.count_nonzero(np.isneginf(scores[some])), steps(len(scores))
  )
  return np.array(sum(counts), np.int64)


def evaluated(
  examples: Examples, expression: Expression, missing: str, kind: str = ''
) -> Iterator[tuple[slice, Any, pa.ChunkedArray]]:
  """Evaluates an expression over tables of examples, one after another.

  Args:
    examples: Whose columns it reads.
    expression: The expression.
    missing: As for `score`.
    kind: The type of DuckDB that its values are cast to; '' for their own.

  Yields:
    The positions of the examples of a table; the order of their values within
    it, as an index; and the values.

  Raises:
    UserError: a value cannot be computed.
  """
  import duckdb

  with database.connect(expression.whole) as connection:
    try:
      for here, table in _tables(examples, expression, missing):
        yield here, *_evaluate(connection, expression, table, kind)
    except duckdb.Error as error:
      text, schema = expression.text, examples.schema
      raise refused(text, str(error), schema) from None


def within_folds(
  examples: Examples,
  function: Callable[..., np.ndarray],
  values: np.ndarray,
  weight: np.ndarray | None = None,
) -> np.ndarray:
  """Replaces values by a function of them, for each reference model alone.

  Args:
    examples: The scored split.
    function: As those of `_FUNCTIONS`.
    values: [examples] float64, replaced in place. Minus infinity, which stands
      for a missing number, is left out and stays.
    weight: [examples] float64, the function's second argument; None for none.

  Returns:
    `values`.
  """
  folds, fold = examples.folds
  if len(folds) == 1:
    return _where_present(function, values, weight)
  for number in folds:
    here = fold == number
    of_fold = None if weight is None else weight[here]
    values[here] = _where_present(function, values[here], of_fold)
  return values


def _where_present(
  function: Callable[..., np.ndarray],
  values: np.ndarray,
  weight: np.ndarray | None = None,
) -> np.ndarray:
  """Replaces values by a function of them, except minus infinity."""
  absent = np.isneginf(values)
  weights = () if weight is None else (weight,)
  function(values, *weights, out=values)
  values[absent] = -np.inf
  return values


def reads_reference(text: str) -> bool:
  """Whether an expression reads what a reference model gave.

  Word frequencies, lengths and compressed sizes need no model.

  >>> reads_reference('NLL_SUM / 2'), reads_reference('unigram_nll_sum / 2')
  (True, False)
  >>> reads_reference('nll_sum_early / num_tokens')
  True
  >>> reads_reference('greedy_sum'), reads_reference('nll_last_8_sum')
  (True, True)
  """
  return bool(REFERENCE_COLUMN.search(text))


def reads_near_duplicates(text: str) -> bool:
  """Whether an expression reads the groups of near-duplicates.

  >>> reads_near_duplicates('Near_duplicate_group'), reads_near_duplicates('1')
  (True, False)
  """
  return bool(re.search(r'\bnear_duplicate', text, re.IGNORECASE))


def reads_contamination(text: str) -> bool:
  """Whether an expression reads what of it is in benchmarks.

  >>> reads_contamination('Contaminated_ngrams'), reads_contamination('nll_sum')
  (True, False)
  """
  return bool(re.search(r'\bcontaminated_', text, re.IGNORECASE))


def reads_duplicated_text(text: str) -> bool:
  """Whether an expression reads how much of an example occurs elsewhere.

  >>> reads_duplicated_text('Repeated_tokens'), reads_duplicated_text('nll_sum')
  (True, False)
  """
  own = r'\b(duplicated|repeated)_tokens\b'
  return bool(re.search(own, text, re.IGNORECASE))


def reads_table(text: str, name: str) -> bool:
  """Whether an expression may read columns of a table of the user's.

  A pattern may match the columns of any table.

  >>> reads_table('Quality.score + 1', 'quality'), reads_table('1', 'quality')
  (True, False)
  >>> reads_table("COLUMNS('score')", 'quality')
  True
  """
  own = rf'\b{name}"?\s*\.|\bcolumns\s*\('
  return bool(re.search(own, text, re.IGNORECASE))


def classifiers_read(text: str) -> set[str]:
  """The names of the classifiers whose columns an expression may read.

  >>> sorted(classifiers_read('Classifier_good - classifier_b2 + nll_sum'))
  ['b2', 'good']
  """
  names = re.findall(rf'\b{PREFIX}(\w+)', text, re.IGNORECASE)
  return {name.lower() for name in names}


def _tables(
  examples: Examples, expression: Expression, missing: str
) -> Iterator[tuple[slice, pa.Table]]:
  """The tables that an expression reads: one per shard, or one of all."""
  called = {
    column: _call(examples, call, missing)
    for column, call in expression.calls.items()
  }
  shards = (
    (where, shard.select(expression.columns))
    for where, shard in examples.shards(expression.columns)
  )
  if expression.whole:
    tables = [shard for _, shard in shards]
    shards = iter([(slice(0, len(examples)), pa.concat_tables(tables))])
  for where, shard in shards:
    for column, values in called.items():
      here = values[where]
      # Missing numbers are NULL, and so is any expression of them.
      array = pa.array(here, mask=np.isneginf(here))
      shard = shard.append_column(column, array)
    yield where, shard


def _call(examples: Examples, call: Call, missing: str) -> np.ndarray:
  """Evaluates `rank` or `zscore`, [examples]; minus infinity where missing."""
  values = score(examples, call.argument.text, missing)
  function, weight = _FUNCTIONS[call.function], None
  if call.weight:
    function = weighted_mid_ranks
    weight = score(examples, call.weight.text)
    if len(weight) and (weight.min() < 0.0 or not weight.any()):
      raise UserError(
        f'The weight {call.weight.text!r} of a rank must not be negative, and '
        'not 0 for all examples.'
      )
  if reads_reference(call.argument.text):
    return within_folds(examples, function, values, weight)
  return _where_present(function, values, weight)


def _evaluate(
  connection: Any, expression: Expression, table: pa.Table, kind: str
) -> tuple[Any, pa.ChunkedArray]:
  """Evaluates an expression over a table.

  Args:
    connection: A connection to DuckDB.
    expression: The expression.
    table: The columns that the expression reads.
    kind: As for `evaluated`.

  Returns:
    Which example each value is of, as an index of the table; and the values.

  Raises:
    duckdb.Error: a value cannot be computed.
    UserError: the expression does not give one value per example.
  """
  import duckdb

  result = relation(connection, expression, table)
  *before, last = map(duckdb.ColumnExpression, result.columns)
  value = last.cast(kind) if kind else last
  result = result.select(*before, value.alias('score')).to_arrow_table()
  if result.num_rows != table.num_rows:
    raise UserError(
      f'The rule expression {expression.text!r} gives {result.num_rows} values '
      f'for {table.num_rows} examples: write one that gives a number for each.'
    )
  order: Any = slice(None)
  if not expression.stars:
    # DuckDB reorders the records of window functions.
    order = result[POSITION].to_numpy()
  return order, result['score']
