"""Parses rule expressions, and checks what they give before there are examples.

DuckDB parses and binds them. What is accepted gives one number for each
example, the same one each time.
"""

import dataclasses
import difflib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from infoprune_jax.config.validation import UserError
from infoprune_jax.selection import database, stability

# Ours, beside those of DuckDB.
FUNCTIONS = ('rank', 'zscore')
_TABLE = 'scores'
POSITION = '__position'  # The number of an example, beside its columns.
# DuckDB's types that are numbers; truth values are 0 and 1.
_NUMBERS = (
  *('TINYINT', 'SMALLINT', 'INTEGER', 'BIGINT', 'HUGEINT', 'BIGNUM', 'VARINT'),
  *('UTINYINT', 'USMALLINT', 'UINTEGER', 'UBIGINT', 'UHUGEINT'),
  *('FLOAT', 'DOUBLE', 'DECIMAL', 'BOOLEAN', '"NULL"'),
)
_AGGREGATE = (
  'Binder Error: it gives one value for all examples, one for each is expected: '
  'write OVER () after the aggregate'
)


@dataclasses.dataclass(frozen=True)
class Expression:
  """A rule expression, parsed.

  Attributes:
    text: As the user wrote it.
    sql: With a column in place of each call of ours.
    columns: Those of the table that it reads.
    calls: By the name of that column, the function and its argument.
    whole: Whether it looks at other examples than its own.
    stars: Whether it stands for columns by a pattern, such as
      COLUMNS('nll_.*').
  """

  text: str
  sql: str
  columns: tuple[str, ...]
  calls: Mapping[str, tuple[str, 'Expression']]
  whole: bool
  stars: bool


def parse(text: str, schema: pa.Schema) -> Expression:
  """Parses an expression, and binds it to no example.

  Args:
    text: Of DuckDB's SQL; it can read neither files nor the network.
    schema: Of the columns that it may name.

  Raises:
    UserError: it does not parse, names no column, does not give one number an
      example, or gives another one each time.
  """
  import duckdb  # Not on machines that only score and train.

  names: Sequence[str] = ()
  try:
    with database.connect() as connection:
      # By itself, so that it can be an expression and nothing more.
      duckdb.SQLExpression(text)
      tree = database.parse(connection, _query(text))
      names = _names(tree)
      _check_words(text, tree, schema)
      expression = _expression(connection, text, tree, schema)
    try:
      _check_stable(expression, schema)
    except database.Refused:
      _check_shape(expression, schema)  # It has the usual words for that.
      raise
    _check_shape(expression, schema)
  except (duckdb.Error, database.Refused) as error:
    # Beside the position of an example, DuckDB refuses an aggregate.
    aggregate = f'column "{POSITION}" must appear' in str(error)
    reason = _AGGREGATE if aggregate else str(error)
    raise refused(text, reason, schema, names) from None
  except RecursionError:
    raise refused(text, 'it is nested too deeply', schema) from None
  return expression


def _query(sql: str) -> str:
  return f'SELECT ({sql}\n) FROM {_TABLE}'


def _expression(
  connection: Any, text: str, tree: Any, schema: pa.Schema
) -> Expression:
  """An expression, of the tree of the query with it.

  Raises:
    UserError: as `parse` does, of an argument.
  """
  classes = {node.get('class') for node in database.nodes(tree)}
  outside = {n.get('class') for n in database.nodes(tree, but='SUBQUERY')}
  calls = _replace_calls(connection, text, tree, schema)
  whole, stars = bool(classes & {'WINDOW', 'SUBQUERY'}), 'STAR' in outside
  if stars and (whole or calls):
    reason = (
      "'*' and COLUMNS() cannot stand beside a window, a subquery, rank() or "
      'zscore(): write the columns out'
    )
    raise refused(text, reason, schema)
  sql = text
  if calls:
    selected = tree['statements'][0]['node']['select_list']
    sql = database.write_expression(connection, selected[0])
  known = {name.lower() for name in _names(tree)}
  columns = [
    name for name in schema.names if 'STAR' in classes or name.lower() in known
  ]
  # A table without a column does not know how many rows it has.
  columns = tuple(columns or schema.names[:1])
  return Expression(text, sql, columns, calls, whole, stars)


def _names(tree: Any) -> list[str]:
  """The names of columns in a statement, there or not."""
  names_of_nodes = (
    node.get('column_names', ())[-1:] for node in database.nodes(tree)
  )
  return sorted({name for names in names_of_nodes for name in names})


def _check_words(text: str, tree: Any, schema: pa.Schema) -> None:
  """Raises `UserError` for what stands for no column, or for several rows."""
  for node in database.nodes(tree):
    if node.get('class') == 'POSITIONAL_REFERENCE':
      reason = f'#{node["index"]} is the place of a column: write its name'
      raise refused(text, reason, schema)
  for node in database.nodes(tree, but='SUBQUERY'):
    if node.get('function_name', '').lower() in ('unnest', 'unlist'):
      reason = 'unnest() gives several rows: take one number of the list, such '
      raise refused(text, reason + 'as list_sum([...])', schema)
  for name in _names(tree):
    if name.startswith('__') or name.lower() in ('rowid', _TABLE):
      raise refused(text, f'{name!r} is no column', schema)


def _replace_calls(
  connection: Any, text: str, tree: Any, schema: pa.Schema
) -> dict[str, tuple[str, Expression]]:
  """Puts a column in place of each call of ours; returns `Expression.calls`.

  Args:
    connection: To DuckDB.
    text: The expression, for messages.
    tree: Of the query with it, which is changed.
    schema: Of the columns that it may name.

  Raises:
    UserError: as `parse` does, of an argument.
  """
  calls: dict[str, tuple[str, Expression]] = {}
  for node in database.nodes(tree):
    name = node.get('function_name', '').lower()
    if node.get('class') != 'FUNCTION' or name not in FUNCTIONS:
      continue
    arguments = [argument['expression'] for argument in node['arguments']]
    further = node['distinct'] or node['filter'] or node['order_bys']['orders']
    if len(arguments) != 1 or further:
      reason = f'{name}() takes one number, as in {name}(nll_sum)'
      raise refused(text, reason, schema)
    argument = database.write_expression(connection, arguments[0])
    column = f'__{name}_{len(calls)}'
    calls[column] = name, parse(argument, schema)
    node.clear()
    node.update(database.column(connection, column))
  return calls


def _check_stable(expression: Expression, schema: pa.Schema) -> None:
  """Raises `UserError` for an expression with another value each time."""
  everything = dataclasses.replace(expression, columns=tuple(schema.names))
  with database.connect() as connection:
    connection.register('everything', _nothing(everything, schema))
    connection.execute(f'CREATE TEMP TABLE {_TABLE} AS FROM everything')
    what = stability.changing(connection, _query(expression.sql))
  if what:
    reason = (
      f'{what} gives another value each time; '
      "keep='random' and keep='sample' draw by a seed"
    )
    raise refused(expression.text, reason, schema)


def _check_shape(expression: Expression, schema: pa.Schema) -> None:
  """Raises `UserError` unless an expression gives one number per example."""
  with database.connect() as connection:
    result = relation(connection, expression, _nothing(expression, schema))
    *_, kind = map(str, result.types)
    count = len(result.columns) - (not expression.stars)
    values = result.fetchall()
  reason = ''
  if count != 1:
    reason = (
      f'it gives {count} values for each example, one is expected: write the '
      'columns out, for instance greatest(nll_sum, unigram_nll_sum)'
    )
  elif values:
    reason = _AGGREGATE
  elif kind.partition('(')[0] not in _NUMBERS:
    reason = (
      f'it gives {kind}, a number is expected: for instance CAST(x AS DOUBLE) of '
      'a text, epoch(x) of a time, list_sum(x) of a list'
    )
  if reason:
    raise refused(expression.text, reason, schema)


def _nothing(expression: Expression, schema: pa.Schema) -> pa.Table:
  """What an expression reads, of no example."""
  read = [schema.field(name) for name in expression.columns]
  called = [pa.field(name, pa.float64()) for name in expression.calls]
  return pa.schema([*read, *called]).empty_table()


def relation(connection: Any, expression: Expression, table: pa.Table) -> Any:
  """The values of an expression over a table, after their positions in it.

  There are no positions where the expression stands for columns by a pattern,
  which could match them.
  """
  import duckdb

  if not expression.stars:
    position = np.arange(table.num_rows, dtype=np.int32)
    table = table.append_column(POSITION, pa.array(position))
  connection.register(_TABLE, table)
  value = duckdb.SQLExpression(expression.sql).alias('score')
  before = [] if expression.stars else [duckdb.ColumnExpression(POSITION)]
  return connection.view(_TABLE).select(*before, value)


def refused(
  text: str, error: str, schema: pa.Schema, names: Sequence[str] = ()
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
