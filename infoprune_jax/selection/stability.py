"""Checks whether a query gives the same value each time, by its DuckDB plan.

The names of functions are not enough. Some functions, such as `year` and `-`,
have overloads that depend only on their arguments, and overloads that also
depend on the session. The plan of a query says which overload each call is, and
`duckdb_functions()` says whether that overload depends on the session.
"""

import collections
import functools
from collections.abc import Iterator, Mapping
from typing import Any

from infoprune_jax.selection import database

# Some version of DuckDB says of these that they depend on their arguments
# alone. They read the clock or draw a sample.
_CHANGING = (
  'current_localtime',
  'current_localtimestamp',
  'reservoir_quantile',
)
_UNTIL_TODAY = 'age'  # with one argument
# It has no value at all. Each scalar subquery calls it, against a second row.
_ERROR = 'error'
# Words that are calls where no column has their name.
_KEYWORDS = (
  'current_catalog',
  'current_date',
  'current_schema',
  'current_time',
  'current_timestamp',
  'localtime',
  'localtimestamp',
)
# The tables of a subquery: ours, and those that are made of arguments.
_TABLES = (
  'seq_scan',
  'range',
  'generate_series',
  'unnest',
  'repeat',
  'repeat_row',
  'json_each',
  'json_tree',
)
# What a constant does not hold.
_VARYING = (
  'COLUMN_REF',
  'PARAMETER',
  'POSITIONAL_REFERENCE',
  'STAR',
  'SUBQUERY',
  'WINDOW',
)


def changing(connection: Any, sql: str) -> str:
  """The part of a query that gives another value each time; '' if none.

  Args:
    connection: To DuckDB, with the tables that the query reads.
    sql: A SELECT statement.

  Raises:
    database.Refused: DuckDB cannot parse or bind it.
    RecursionError: it is nested too deeply.
  """
  tree = database.parse(connection, sql)
  # DuckDB computes calls of constants while it binds what they are arguments
  # of, so the plan does not show them. Selected by themselves, it does.
  tree['statements'][0]['node']['select_list'] += list(_constant_calls(tree))
  plan = database.plan(connection, database.write(connection, tree))
  for node in database.nodes(plan):
    name = _called(node)
    if node.get('type') == 'LOGICAL_SAMPLE':
      return 'a sample'
    if node.get('type') == 'LOGICAL_GET':
      if name not in _TABLES:
        return f'the table {name}'
    elif name and _is_changing(name, node['arguments']):
      return f'{name}({", ".join(kind["id"] for kind in node["arguments"])})'
  return ''


def _called(node: Mapping[str, Any]) -> str:
  """The function that a node of a plan calls; '' where it calls none."""
  path = node.get('qname', {}).get('path', [''])
  return path[-1].lower()


def _is_changing(name: str, types: list[Mapping[str, Any]]) -> bool:
  """Whether the overload for arguments of some types gives other values."""
  overloads = _overloads().get(name, [])
  fitting = [
    changes for parameters, changes in overloads if _fit(types, parameters)
  ]
  # Where the plan has other arguments than were given, any overload counts.
  return any(fitting or [changes for _, changes in overloads])


def _fit(types: list[Mapping[str, Any]], parameters: list[str]) -> bool:
  """Whether arguments have the types of parameters, as far as a plan says."""
  return len(types) == len(parameters) and all(
    'ANY' in (kind['id'], parameter)
    or kind['id'] == ('LIST' if parameter.endswith('[]') else parameter)
    for kind, parameter in zip(types, parameters, strict=True)
  )


@functools.lru_cache(maxsize=1)
def _overloads() -> Mapping[str, list[tuple[list[str], bool]]]:
  """By name: the parameters' types of each overload, and whether it changes."""
  with database.connect() as connection:
    rows = connection.execute(
      "SELECT function_name, parameter_types, stability <> 'CONSISTENT' "
      "FROM duckdb_functions() WHERE function_type = 'scalar'"
    ).fetchall()
  overloads = collections.defaultdict(list)
  for name, parameters, changes in rows:
    changes |= name == _UNTIL_TODAY and len(parameters) == 1
    overloads[name].append((parameters, changes and name != _ERROR))
  return {**overloads, **{name: [([], True)] for name in _CHANGING}}


@functools.lru_cache(maxsize=1)
def _macros() -> Mapping[str, list[Any]]:
  """What each of DuckDB's macros stands for, parsed."""
  with database.connect() as connection:
    rows = connection.execute(
      'SELECT function_name, macro_definition FROM duckdb_functions() '
      "WHERE function_type = 'macro'"
    ).fetchall()
    macros = collections.defaultdict(list)
    for name, definition in rows:
      macros[name].append(database.parse(connection, f'SELECT {definition}'))
  return macros


def _constant_calls(tree: Any) -> Iterator[dict[str, Any]]:
  """Calls of constants that may change, also in the macros of a query."""
  overloads, macros = _overloads(), _macros()
  trees, used = [tree], set()
  while trees:
    for node in database.nodes(trees.pop()):
      name = node.get('function_name', '').lower()
      if name in macros and name not in used:
        used.add(name)
        trees += macros[name]
      if node.get('class') == 'COLUMN_REF':
        if node['column_names'][-1].lower() in _KEYWORDS:
          yield node
      elif any(changes for _, changes in overloads.get(name, ())):
        inner = list(database.nodes(node))
        if not any(n.get('class') in _VARYING for n in inner) and all(
          n['function_name'].lower() in overloads
          for n in inner
          if n.get('class') == 'FUNCTION'
        ):
          yield node
