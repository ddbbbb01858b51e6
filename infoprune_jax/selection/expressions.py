"""Rule expressions: SQL over the columns of an example that gives a number.

DuckDB parses and evaluates them, shard by shard. Beside its own functions there
are `rank(x)`, the fraction of examples whose x is lower, and `zscore(x)`, both
over all examples of a reference model; an expression with a window or a
subquery is evaluated over all examples at once, in memory.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from infoprune_jax.config.validation import UserError
from infoprune_jax.runtime.progress import logger
from infoprune_jax.selection import database
from infoprune_jax.selection.arrays import scratch, side_by_side, steps
from infoprune_jax.selection.examples import Examples
from infoprune_jax.selection.parser import (
  POSITION,
  Expression,
  parse,
  refused,
  relation,
)
from infoprune_jax.selection.ranks import mid_ranks, z_scores

# What they give of numbers, [n] float64, and `out`, where to put as many.
_FUNCTIONS: Mapping[str, Callable[..., np.ndarray]] = {
  'rank': mid_ranks,
  'zscore': z_scores,
}


def score(examples: Examples, text: str, missing: str = 'refuse') -> np.ndarray:
  """Evaluates an expression for each example.

  Args:
    examples: Whose columns it may name.
    text: The expression.
    missing: What becomes of examples without a number: 'refuse', or 'lowest',
      which is minus infinity.

  Returns:
    [examples] float64.

  Raises:
    UserError: as `parse` does, or it gives no finite number for an example.
  """
  import duckdb

  expression = parse(text, examples.schema)
  values = scratch(len(examples), np.float64)
  with database.connect(expression.whole) as connection:
    try:
      for where, table in _tables(examples, expression, missing):
        _evaluate(connection, expression, table, values[where])
    except duckdb.Error as error:
      raise refused(text, str(error), examples.schema) from None
  lacking = sum(
    side_by_side(
      lambda some: int(np.count_nonzero(~np.isfinite(values[some]))),
      steps(len(values)),
    )
  )
  if lacking and missing == 'refuse':
    raise UserError(
      f'The rule expression {text!r} gives no finite number for {lacking} '
      f'of {len(examples)} examples: say what they get, for instance with '
      "coalesce(..., 0), or rank them lowest with missing='lowest'."
    )
  if lacking:
    logger.warning(
      'select: %r gives no finite number for %d of %d examples: they are the '
      'lowest',
      text,
      lacking,
      len(examples),
    )
    values[~np.isfinite(values)] = -np.inf
  return values


def within_folds(
  examples: Examples,
  function: Callable[..., np.ndarray],
  values: np.ndarray,
) -> np.ndarray:
  """Puts a function of each reference model's values in their place.

  Args:
    examples: The scored split.
    function: Of `FUNCTIONS`.
    values: [examples] float64; minus infinity, no number, stays what it is.
  """
  folds, fold = examples.folds
  if len(folds) == 1:
    return _where_present(function, values)
  for number in folds:
    here = fold == number
    values[here] = _where_present(function, values[here])
  return values


def _where_present(
  function: Callable[..., np.ndarray], values: np.ndarray
) -> np.ndarray:
  """Puts a function of values in their place, but where there is no number."""
  absent = np.isneginf(values)
  function(values, out=values)
  values[absent] = -np.inf
  return values


def reads_reference(text: str) -> bool:
  """Whether an expression reads the NLL of a reference model.

  Word frequencies, lengths and compressed sizes need no model.

  >>> reads_reference('NLL_SUM / 2'), reads_reference('unigram_nll_sum / 2')
  (True, False)
  >>> reads_reference('nll_sum_early / num_tokens')
  True
  """
  return bool(re.search(r'\bnll_sum(_|\b)', text, re.IGNORECASE))


def reads_near_duplicates(text: str) -> bool:
  """Whether an expression reads the groups of near-duplicates.

  >>> reads_near_duplicates('Near_duplicate_group'), reads_near_duplicates('1')
  (True, False)
  """
  return bool(re.search(r'\bnear_duplicate', text, re.IGNORECASE))


def _tables(
  examples: Examples, expression: Expression, missing: str
) -> Iterator[tuple[slice, pa.Table]]:
  """What an expression reads, and of which examples: by shards, or all at once."""
  called = {
    column: _call(examples, name, argument, missing)
    for column, (name, argument) in expression.calls.items()
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
      # As NULL, so that what is made of it has no number either.
      array = pa.array(here, mask=np.isneginf(here))
      shard = shard.append_column(column, array)
    yield where, shard


def _call(
  examples: Examples, name: str, argument: Expression, missing: str
) -> np.ndarray:
  """A function of ours, [examples]; minus infinity where there is no number."""
  values = score(examples, argument.text, missing)
  if reads_reference(argument.text):
    return within_folds(examples, _FUNCTIONS[name], values)
  return _where_present(_FUNCTIONS[name], values)


def _evaluate(
  connection: Any, expression: Expression, table: pa.Table, values: np.ndarray
) -> None:
  """Evaluates an expression over a table.

  Args:
    connection: To DuckDB.
    expression: What to evaluate.
    table: With the columns that it reads.
    values: [examples] float64, what to fill.

  Raises:
    duckdb.Error: a value cannot be computed.
    UserError: there is not one value an example.
  """
  import duckdb

  result = relation(connection, expression, table)
  *before, last = map(duckdb.ColumnExpression, result.columns)
  result = result.select(*before, last.cast('DOUBLE').alias('score'))
  result = result.to_arrow_table()
  if result.num_rows != len(values):
    raise UserError(
      f'The rule expression {expression.text!r} gives {result.num_rows} values '
      f'for {len(values)} examples: write one that gives a number for each.'
    )
  where: Any = slice(None)
  if not expression.stars:
    # Window functions give rows in an order of their own.
    where = result[POSITION].to_numpy()
  values[where] = result['score'].to_numpy()
