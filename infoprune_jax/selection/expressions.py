"""Rule expressions: SQL over the columns of an example that gives a number.

DuckDB parses and evaluates them, part by part. Beside its own functions there
are `rank(x)`, the share of examples whose x is lower, and `zscore(x)`, both over
all examples of a reference model; an expression with a window or a subquery is
evaluated over all examples at once, in memory.
"""

import dataclasses
import difflib
import functools
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from infoprune_jax.config import UserError
from infoprune_jax.progress import logger
from infoprune_jax.selection.arrays import scratch, side_by_side, steps
from infoprune_jax.selection.examples import Examples
from infoprune_jax.selection.ranks import mid_ranks, z_scores

# Beside DuckDB's: of numbers, [n] float64, and `out`, where to put as many.
FUNCTIONS: Mapping[str, Callable[..., np.ndarray]] = {
  'rank': mid_ranks,
  'zscore': z_scores,
}
_POSITION = '__position'  # The number of an example, beside its columns.
_SELECT = 'SELECT ('


@dataclasses.dataclass(frozen=True)
class Expression:
  """A rule expression, parsed.

  Attributes:
    text: As the user wrote it.
    sql: With a column in place of each call of ours.
    columns: Those of the table that it reads.
    calls: By the name of that column, the function and its argument.
    whole: Whether it looks at other examples than its own.
  """

  text: str
  sql: str
  columns: tuple[str, ...]
  calls: Mapping[str, tuple[str, 'Expression']]
  whole: bool


def parse(text: str, schema: pa.Schema) -> Expression:
  """Parses an expression, and evaluates it over no example.

  Args:
    text: Of DuckDB's SQL; it can read neither files nor the network.
    schema: Of the columns that it may name.

  Raises:
    UserError: it does not parse, names no column, gives no number, or gives
      another one each time.
  """
  import duckdb  # Not on machines that only score and train.

  with _connection() as connection:
    try:
      # By itself, so that it can be an expression and nothing more.
      duckdb.SQLExpression(text)
      [[tree]] = connection.execute(
        'SELECT json_serialize_sql(?)', [f'{_SELECT}{text}\n)']
      ).fetchall()
    except duckdb.Error as error:
      raise _refused(text, str(error), schema, ()) from None
    found = _found(text, json.loads(tree), schema)
    volatile = found.functions & _volatile()
    if volatile:
      raise _refused(
        text,
        f'{sorted(volatile)[0]}() gives another value each time; '
        "keep='random' and keep='sample' draw by a seed.",
        schema,
        (),
      )
    expression = found.expression
    try:
      _evaluate(connection, expression, _nothing(expression, schema))
    except duckdb.Error as error:
      raise _refused(text, str(error), schema, found.names) from None
  return expression


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
  done = 0
  with _connection() as connection:
    try:
      for where, table in _tables(examples, expression, missing):
        done += _evaluate(connection, expression, table, values[where])
    except duckdb.Error as error:
      raise _refused(text, str(error), examples.schema, ()) from None
  lacking = sum(
    side_by_side(
      lambda some: int(np.count_nonzero(~np.isfinite(values[some]))),
      steps(len(values)),
    )
  )
  if done != len(examples) or (lacking and missing == 'refuse'):
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
  """Puts a function of each reference model's values in their place."""
  folds, fold = examples.folds
  if len(folds) == 1:
    return function(values, out=values)
  for number in folds:
    here = fold == number
    values[here] = function(values[here])
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


def _connection() -> Any:
  """With views of its own, to a database without a file."""
  return _database().cursor()


@functools.lru_cache(maxsize=1)
def _database() -> Any:
  """Opened once: that takes longer than most evaluations."""
  import duckdb

  return duckdb.connect(config={'enable_external_access': False})


@dataclasses.dataclass(frozen=True)
class _Found:
  """What is in the tree of an expression."""

  expression: Expression
  names: tuple[str, ...]  # of columns, there or not
  functions: frozenset[str]


def _found(text: str, tree: Any, schema: pa.Schema) -> _Found:
  names: set[str] = set()
  functions: set[str] = set()
  classes: set[str] = set()
  calls: dict[str, tuple[str, Expression]] = {}
  replaced: list[tuple[int, int, str]] = []
  body = text.encode()

  def walk(node: Any) -> None:
    if isinstance(node, list):
      for item in node:
        walk(item)
    if not isinstance(node, dict):
      return
    kind = node.get('class', '')
    classes.add(kind)
    name = node.get('function_name', '').lower()
    if kind == 'FUNCTION' and name in FUNCTIONS:
      start = node['query_location'] - len(_SELECT)
      end = start + node['query_location_length']
      call = body[start:end].decode()
      argument = call[call.index('(') + 1 : call.rindex(')')]
      column = f'__{name}_{len(calls)}'
      calls[column] = name, parse(argument, schema)
      replaced.append((start, end, column))
      return
    functions.add(name)
    names.update(node.get('column_names', ())[-1:])
    for value in node.values():
      walk(value)

  walk(tree)
  sql = body
  for start, end, column in sorted(replaced, reverse=True):
    sql = sql[:start] + column.encode() + sql[end:]
  known = {name.lower() for name in names}
  everything = 'STAR' in classes
  columns = tuple(
    name for name in schema.names if everything or name.lower() in known
  )
  whole = bool(classes & {'WINDOW', 'SUBQUERY'})
  expression = Expression(text, sql.decode(), columns, calls, whole)
  return _Found(expression, tuple(sorted(names)), frozenset(functions))


@functools.lru_cache(maxsize=1)
def _volatile() -> frozenset[str]:
  """Functions whose value is not that of their arguments alone."""
  with _connection() as connection:
    rows = connection.execute(
      'SELECT DISTINCT function_name FROM duckdb_functions() '
      "WHERE stability IN ('VOLATILE', 'CONSISTENT_WITHIN_QUERY')"
    ).fetchall()
  return frozenset(name for [name] in rows)


def _nothing(expression: Expression, schema: pa.Schema) -> pa.Table:
  """What an expression reads, of no example."""
  read = [schema.field(name) for name in expression.columns]
  called = [pa.field(name, pa.float64()) for name in expression.calls]
  return pa.schema([*read, *called]).empty_table()


def _tables(
  examples: Examples, expression: Expression, missing: str
) -> Iterator[tuple[slice, pa.Table]]:
  """What an expression reads, and of which examples: by parts, or all at once."""
  called = {}
  for column, (name, argument) in expression.calls.items():
    values = score(examples, argument.text, missing)
    one_scale = not reads_reference(argument.text)
    called[column] = (
      FUNCTIONS[name](values, out=values)
      if one_scale
      else within_folds(examples, FUNCTIONS[name], values)
    )
  parts = examples.parts(expression.columns)
  if expression.whole:
    tables = [part.select(expression.columns) for _, part in parts]
    parts = iter([(slice(0, len(examples)), pa.concat_tables(tables))])
  for where, part in parts:
    for column, values in called.items():
      part = part.append_column(column, pa.array(values[where]))
    yield where, part


def _evaluate(
  connection: Any,
  expression: Expression,
  table: pa.Table,
  values: np.ndarray | None = None,
) -> int:
  """Evaluates an expression over a table.

  Args:
    connection: To DuckDB.
    expression: What to evaluate.
    table: With the columns that it reads.
    values: [examples] float64, what to fill.

  Returns:
    How many values there were.
  """
  import duckdb

  position = np.arange(table.num_rows, dtype=np.int32)
  numbered = table.append_column(_POSITION, pa.array(position))
  connection.register('scores', numbered)
  parsed = duckdb.SQLExpression(expression.sql).cast('DOUBLE')
  # Beside a column, an aggregate is refused.
  found = (
    connection.view('scores')
    .select(duckdb.ColumnExpression(_POSITION), parsed.alias('score'))
    .to_arrow_table()
  )
  if values is not None:
    # Window functions give rows in an order of their own.
    where = found[_POSITION].to_numpy()
    in_order = np.array_equal(where, position)
    values[:] = np.nan
    values[slice(None) if in_order else where] = found['score'].to_numpy()
  return found.num_rows


def _refused(
  text: str, error: str, schema: pa.Schema, names: Sequence[str]
) -> UserError:
  """What is wrong with an expression, the columns there are, the nearest."""
  reason = error.split('\n')[0].rstrip('.')
  known = {name.lower() for name in schema.names}
  near = [
    f'for {name!r} perhaps {match!r}'
    for name in names
    if name.lower() not in known
    for match in difflib.get_close_matches(name.lower(), schema.names, 1)
  ]
  return UserError(
    f'The rule expression {text!r} cannot be evaluated: {reason}. '
    f'Columns are {", ".join(schema.names)}'
    + (f'; {"; ".join(near)}.' if near else '.')
  )
