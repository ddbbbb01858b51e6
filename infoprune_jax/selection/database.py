"""DuckDB without files or network, and its statements as JSON."""

import functools
import json
import re
from collections.abc import Iterator
from typing import Any


class Refused(Exception):
  """Why DuckDB cannot parse or bind a statement."""


def connect(whole: bool = False) -> Any:
  """A connection with tables of its own, to a database without a file.

  Args:
    whole: Whether its queries add up rows. One thread does so: the order in
      which several do decides the last bits of a sum, and which of equal rows
      is the largest.
  """
  return _database(whole).cursor()


@functools.lru_cache
def _database(whole: bool) -> Any:
  """Opened once: that takes longer than most evaluations."""
  import duckdb  # Not on machines that only score and train.

  config: dict[str, Any] = {'enable_external_access': False}
  if whole:
    config['threads'] = 1
  database = duckdb.connect(config=config)
  # Not the machine's, by which times would differ.
  database.execute("SET GLOBAL TimeZone = 'UTC'")
  return database


def parse(connection: Any, sql: str) -> Any:
  """A statement as the JSON that DuckDB parses it to.

  Raises:
    Refused: it does not parse.
    RecursionError: it is nested too deeply.
  """
  return _as_json(connection, 'json_serialize_sql(?)', sql)


def plan(connection: Any, sql: str) -> Any:
  """The plan of a SELECT statement, bound but not optimized.

  Raises:
    Refused: it reads what is not there, or calls what does not exist.
    RecursionError: it is nested too deeply.
  """
  return _as_json(connection, 'json_serialize_plan(?, optimize := false)', sql)


def write(connection: Any, tree: Any) -> str:
  """The SQL of a statement that `parse` gave."""
  [[sql]] = connection.execute(
    'SELECT json_deserialize_sql(?)', [json.dumps(tree)]
  ).fetchall()
  return sql


def write_expression(connection: Any, node: Any) -> str:
  """The SQL of an expression within a statement that `parse` gave."""
  tree = parse(connection, 'SELECT 0')
  tree['statements'][0]['node']['select_list'] = [node]
  return write(connection, tree).removeprefix('SELECT ')


def expression(connection: Any, sql: str) -> dict[str, Any]:
  """An expression of known form, such as a column, as `parse` gives it."""
  tree = parse(connection, f'SELECT {sql}')
  return tree['statements'][0]['node']['select_list'][0]


def _as_json(connection: Any, call: str, sql: str) -> Any:
  [[text]] = connection.execute(f'SELECT {call}', [sql]).fetchall()
  # DuckDB writes a constant that is not a number as NAN.
  parsed = json.loads(re.sub(r':-?nan\b', ':NaN', text, flags=re.IGNORECASE))
  if parsed['error']:
    raise Refused(f'{parsed["error_type"]}: {parsed["error_message"]}')
  return parsed


def nodes(tree: Any, but: str = '') -> Iterator[dict[str, Any]]:
  """Every JSON object in a tree, the outer ones first.

  Args:
    tree: Of objects and lists.
    but: The class of objects that are left out, with all that is in them.

  >>> list(nodes({'a': [{'b': 1}, {'class': 'C'}]}, but='C'))[1:]
  [{'b': 1}]
  """
  if isinstance(tree, dict):
    if but and tree.get('class') == but:
      return
    yield tree
  for item in tree.values() if isinstance(tree, dict) else tree:
    if isinstance(item, dict | list):
      yield from nodes(item, but)
