"""Parses rule expressions, and checks their results before there are examples.

DuckDB parses and binds them. An accepted expression gives one number for each
example, the same one each time.
"""

import dataclasses
import difflib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from infoprune_jax.config.validation import UserError
from infoprune_jax.selection import database, stability

# Ours, beside those of DuckDB: how many arguments each takes, and an example.
FUNCTIONS = {
  'rank': (
    range(1, 3),
    'one number, as in rank(nll_sum), and perhaps a weight, as in '
    'rank(nll_sum, num_tokens)',
  ),
  'zscore': (range(1, 2), 'one number, as in zscore(nll_sum)'),
  'ntile': (
    range(2, 4),
    'the number of groups, a number, and perhaps a weight, as in '
    'ntile(10, nll_sum) or ntile(10, nll_sum, num_tokens)',
  ),
}
_TABLE = 'scores'
POSITION = '__position'  # The number of an example, beside its columns.
# DuckDB's types that are numbers; truth values are 0 and 1.
_NUMBERS = (
  *('TINYINT', 'SMALLINT', 'INTEGER', 'BIGINT', 'HUGEINT', 'BIGNUM', 'VARINT'),
  *('UTINYINT', 'USMALLINT', 'UINTEGER', 'UBIGINT', 'UHUGEINT'),
  *('FLOAT', 'DOUBLE', 'DECIMAL', 'BOOLEAN', '"NULL"'),
)
# What else groups of examples may have in common.
_TEXTS = ('VARCHAR', 'ENUM', 'UUID', 'DATE', 'TIME', 'TIMESTAMP')
_AGGREGATE = (
  'Binder Error: it gives one value for all examples, expected one for each: '
  'write OVER () after the aggregate'
)


class Call(NamedTuple):
  """A call of `rank` or `zscore`, whose arguments are expressions.

  `ntile` is a call of `rank`, with arithmetic around it.
  """

  function: str
  argument: 'Expression'
  weight: 'Expression | None'  # of each example in a rank; None for 1


@dataclasses.dataclass(frozen=True)
class Expression:
  """A rule expression, parsed.

  Attributes:
    text: As the user wrote it.
    sql: With a column in place of each call of ours, and `"a.b"` in place of
      `a.b` if that is the name of a column.
    columns: Those of the table that it reads.
    calls: By the name of that column.
    whole: Whether it looks at other examples than its own.
    stars: Whether it stands for columns by a pattern, such as
      COLUMNS('nll_.*').
  """

  text: str
  sql: str
  columns: tuple[str, ...]
  calls: Mapping[str, Call]
  whole: bool
  stars: bool


def parse(text: str, schema: pa.Schema, is_group: bool = False) -> Expression:
  """Parses an expression, and binds it to no example.

  Args:
    text: DuckDB's SQL; it can read neither files nor the network.
    schema: The columns that it may name.
    is_group: Whether its values may also be texts, dates and times.

  Raises:
    UserError: it does not parse, names an unknown column, does not give one
      number (or text) per example, or gives another one each time.
  """
  import duckdb  # Not on machines that only score and train.

  names: Sequence[str] = ()
  try:
    with database.connect() as connection:
      # By itself, so that it can be an expression and nothing more.
      duckdb.SQLExpression(text)
      tree = database.parse(connection, _query(text))
      names = _hints(tree)
      _check_words(text, tree, schema)
      expression = _expression(connection, text, tree, schema)
    try:
      _check_stable(expression, schema)
    except database.Refused:
      _check_shape(expression, schema, is_group)  # It has the usual words.
      raise
    _check_shape(expression, schema, is_group)
  except (duckdb.Error, database.Refused) as error:
    # Beside the position of an example, DuckDB refuses an aggregate.
    aggregate = f'column "{POSITION}" must appear' in str(error)
    reason = _AGGREGATE if aggregate else str(error)
    raise refused(text, reason, schema, names) from None
  except RecursionError:
    raise refused(text, 'it is nested too deeply', schema) from None
  return expression


def parse_groups(text: str, schema: pa.Schema) -> list[Expression]:
  """Parses the expressions that groups of examples have in common.

  Args:
    text: Expressions, with commas between them.
    schema: The columns that they may name.

  Raises:
    UserError: as `parse` does.
  """
  import duckdb

  sql = f'row({text}\n)'
  try:
    with database.connect() as connection:
      duckdb.SQLExpression(sql)
      tree = database.parse(connection, f'SELECT {sql}')
      [node] = tree['statements'][0]['node']['select_list']
      if node.get('function_name') != 'row':
        raise refused(text, 'a bracket is closed before it is opened', schema)
      arguments = [one['expression'] for one in node['arguments']]
      texts = [text]
      if len(arguments) != 1:
        texts = [database.write_expression(connection, a) for a in arguments]
  except (duckdb.Error, database.Refused) as error:
    raise refused(text, str(error), schema) from None
  return [parse(one, schema, is_group=True) for one in texts]


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
  has_dots = _join_names(tree, schema)
  calls = _replace_calls(connection, text, tree, schema)
  whole, stars = bool(classes & {'WINDOW', 'SUBQUERY'}), 'STAR' in outside
  if stars and (whole or calls):
    reason = (
      "'*' and COLUMNS() cannot be used with a window, a subquery, rank() or "
      'zscore(): write the columns out'
    )
    raise refused(text, reason, schema)
  sql = text
  if calls or has_dots:
    selected = tree['statements'][0]['node']['select_list']
    sql = database.write_expression(connection, selected[0])
  known = {name.lower() for name in _names(tree)}
  columns = [
    name for name in schema.names if 'STAR' in classes or name.lower() in known
  ]
  # A table without a column does not know how many rows it has.
  columns = tuple(columns or schema.names[:1])
  return Expression(text, sql, columns, calls, whole, stars)


def _join_names(tree: Any, schema: pa.Schema) -> bool:
  """Makes one name of `a.b` where that is the name of a column.

  Returns:
    Whether there was one.
  """
  known = {name.lower(): name for name in schema.names if '.' in name}
  nodes = [
    (node, known['.'.join(node['column_names']).lower()])
    for node in database.nodes(tree)
    if '.'.join(node.get('column_names', ())).lower() in known
  ]
  for node, name in nodes:
    node['column_names'] = [name]
  return bool(nodes)


def _names(tree: Any) -> list[str]:
  """The names of columns in a statement, there or not."""
  names_of_nodes = (
    node.get('column_names', ())[-1:] for node in database.nodes(tree)
  )
  return sorted({name for names in names_of_nodes for name in names})


def _hints(tree: Any) -> list[str]:
  """The same with what stands before them, as in `quality.score`."""
  return sorted(
    {
      '.'.join(node['column_names'])
      for node in database.nodes(tree)
      if node.get('column_names')
    }
  )


def _check_words(text: str, tree: Any, schema: pa.Schema) -> None:
  """Raises `UserError` for what stands for no column, or for several rows."""
  for node in database.nodes(tree):
    if node.get('class') == 'POSITIONAL_REFERENCE':
      reason = f'#{node["index"]} is the position of a column: write its name'
      raise refused(text, reason, schema)
  for node in database.nodes(tree, but='SUBQUERY'):
    if node.get('function_name', '').lower() in ('unnest', 'unlist'):
      reason = 'unnest() gives several rows: use one number of the list, such '
      raise refused(text, reason + 'as list_sum([...])', schema)
  for name in _names(tree):
    if name.startswith('__') or name.lower() in ('rowid', _TABLE):
      raise refused(text, f'{name!r} is no column', schema)


def _replace_calls(
  connection: Any, text: str, tree: Any, schema: pa.Schema
) -> dict[str, Call]:
  """Puts a column in place of each call of ours; returns `Expression.calls`.

  Args:
    connection: To DuckDB.
    text: The expression, for messages.
    tree: Of the query with it, which is changed.
    schema: Of the columns that it may name.

  Raises:
    UserError: as `parse` does, of an argument.
  """
  calls: dict[str, Call] = {}
  for node in database.nodes(tree):
    name = node.get('function_name', '').lower()
    if node.get('class') != 'FUNCTION' or name not in FUNCTIONS:
      continue
    arguments = [argument['expression'] for argument in node['arguments']]
    further = node['distinct'] or node['filter'] or node['order_bys']['orders']
    counts, takes = FUNCTIONS[name]
    if len(arguments) not in counts or further:
      raise refused(text, f'{name}() takes {takes}', schema)
    column = f'__{name}_{len(calls)}'
    value = column
    if name == 'ntile':
      value = _tile(_number_of_tiles(text, arguments.pop(0), schema), column)
    argument, *weight = (
      parse(database.write_expression(connection, argument), schema)
      for argument in arguments
    )
    function = 'rank' if name == 'ntile' else name
    calls[column] = Call(function, argument, weight[0] if weight else None)
    node.clear()
    node.update(database.expression(connection, value))
  return calls


def _number_of_tiles(text: str, node: Any, schema: pa.Schema) -> int:
  """The first argument of `ntile`."""
  number = str(node.get('literal', {}).get('text', ''))
  if not (number.isdecimal() and 1 <= int(number) <= 2**31 - 1):
    reason = 'the first argument of ntile() is the number of groups, such as 10'
    raise refused(text, reason, schema)
  return int(number)


def _tile(count: int, rank: str) -> str:
  """The SQL of the group, from 1 to `count`, of a rank from 0 to 1."""
  return f'CAST(greatest(ceil({count} * {rank}), 1) AS INTEGER)'


def _check_stable(expression: Expression, schema: pa.Schema) -> None:
  """Raises `UserError` for an expression with another value each time."""
  everything = dataclasses.replace(expression, columns=tuple(schema.names))
  with database.connect() as connection:
    connection.register('everything', _nothing(everything, schema))
    connection.execute(f'CREATE TEMP TABLE {_TABLE} AS FROM everything')
    what = stability.changing(connection, _query(expression.sql))
  if what:
    reason = (
      f'{what} gives another value each time: '
      "use keep='random' or keep='sample', which draw by a seed"
    )
    raise refused(expression.text, reason, schema)


def _check_shape(
  expression: Expression, schema: pa.Schema, is_group: bool
) -> None:
  """Raises `UserError` unless an expression gives one number per example.

  If `is_group`, the values may also be texts, dates and times.
  """
  allowed = (*_NUMBERS, *_TEXTS) if is_group else _NUMBERS
  with database.connect() as connection:
    result = relation(connection, expression, _nothing(expression, schema))
    *_, kind = map(str, result.types)
    count = len(result.columns) - (not expression.stars)
    values = result.fetchall()
  reason = ''
  if count != 1:
    reason = (
      f'it gives {count} values for each example, expected one: write the '
      'columns out, for instance greatest(nll_sum, unigram_nll_sum)'
    )
  elif values:
    reason = _AGGREGATE
  elif kind.partition('(')[0].split(' WITH')[0] not in allowed:
    reason = (
      f'it gives {kind}, expected a number: for instance CAST(x AS DOUBLE) of '
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
