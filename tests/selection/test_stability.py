"""What gives another value each time, by the overload that is bound."""

import collections

import duckdb
import pytest

from infoprune_jax.selection import database, stability

COLUMNS = {
  'x': 'DOUBLE',
  'n': 'INTEGER',
  's': 'VARCHAR',
  'd': 'DATE',
  't': 'TIMESTAMP',
  'z': 'TIMESTAMP WITH TIME ZONE',
}


def changing(expression: str, columns: dict[str, str]) -> str:
  """What in an expression changes, over a table of these columns."""
  described = ', '.join(f'"{name}" {kind}' for name, kind in columns.items())
  with database.connect() as connection:
    connection.execute(f'CREATE TEMP TABLE scores ({described})')
    return stability.changing(connection, f'SELECT {expression} FROM scores')


@pytest.mark.parametrize(
  'expression',
  [
    *('x / n + x / n', 'x - 1', '-x', 'year(d)', "strftime(d, '%Y')::INT"),
    *('d - d', 'epoch(t)', 'epoch(age(t, t))', "date_part('year', t)"),
    *('extract(month FROM d)', "date_diff('day', d, d)", 'days_in_month(d)'),
    *('year(t + INTERVAL 1 DAY)', 'epoch(time_bucket(INTERVAL 1 DAY, t))'),
    *('len(range(n))', 'list_sum(list_transform([1, n], lambda k: k + x))'),
    *('hash(s)', '1 + 2', "year(DATE '2020-01-01') + x", 'isnan(x)::INT'),
    "abs('NaN'::DOUBLE) + abs('-inf'::DOUBLE)",
    'avg(x) OVER (PARTITION BY year(d))',
    '(SELECT max(x) + 1 FROM scores s WHERE year(s.d) = year(scores.d))',
    '(SELECT count(*) + 1 FROM range(1, 10))',
    '(SELECT k FROM unnest([1, 2]) u(k) LIMIT 1)',
    '(WITH w AS (SELECT x + 1 AS v FROM scores) SELECT max(v) FROM w)',
    'CASE WHEN x > 0 THEN 1 ELSE error(s) END',
  ],
)
def test_the_same_each_time(expression):
  assert changing(expression, COLUMNS) == ''


@pytest.mark.parametrize(
  'expression, what',
  [
    ('random()', 'random'),
    ('x + random()', 'random'),
    ('now()', 'now'),
    ('year(now())', ''),
    ('hash(uuid())', 'uuid'),
    ('current_date', 'current_date'),
    ("current_date - DATE '2020-01-01'", 'current_date'),
    ('current_date - d', 'current_date'),
    ('epoch(localtimestamp)', 'current_localtimestamp'),
    ('CURRENT_TIMESTAMP > z', 'get_current_timestamp'),
    ("now()::DATE - DATE '2020-01-01'", 'now'),
    ('greatest(year(today()), 3)', 'today'),
    ('[random(), 2][1]', 'random'),
    ("{'a': epoch(now())}.a", ''),
    ('list_sum(list_transform([1, 2], lambda k: k + random()))', 'random'),
    ('list_filter([1, 2], lambda k: k > epoch(now()))[1]', ''),
    ('list_sum([k + random() FOR k IN [1, 2]])', 'random'),
    ('epoch(age(t))', 'age'),
    ("epoch(age(TIMESTAMP '2020-01-01'))", 'age'),
    ('epoch(age(d))', 'age'),
    # Macros, whose names are none of these.
    ('epoch(ago(INTERVAL 1 DAY))', ''),
    ('epoch(pg_conf_load_time())', 'get_current_timestamp'),
    ('days_in_month(current_date)', 'current_date'),
    ("length(current_setting('threads')::VARCHAR)", 'current_setting'),
    ('avg(x + random()) OVER (PARTITION BY s)', 'random'),
    ('row_number() OVER (ORDER BY year(current_date))', ''),
    ('(SELECT max(random()) FROM scores)', 'random'),
    ('(SELECT max(year(today())) FROM scores)', ''),
    ('EXISTS (SELECT 1 FROM scores WHERE x > random())', 'random'),
    ('(WITH w AS (SELECT random() AS v) SELECT v FROM w)', 'random'),
    ('(SELECT max(x) FROM scores USING SAMPLE 3)', 'a sample'),
    ('(SELECT max(x) FROM scores TABLESAMPLE 10%)', 'a sample'),
    ('(SELECT reservoir_quantile(x, 0.5) FROM scores)', 'reservoir_quantile'),
    ('(SELECT count(*) FROM duckdb_settings())', 'duckdb_settings'),
    ('(SELECT count(*) FROM information_schema.tables)', 'duckdb_tables'),
  ],
)
def test_another_value_each_time(expression, what):
  found = changing(expression, COLUMNS)
  assert found and what in found


def test_what_cannot_be_bound_is_said():
  with pytest.raises(database.Refused, match='"nope" not found'):
    changing('nope + 1', COLUMNS)


def overloads() -> list[tuple[str, list[str], bool]]:
  """The name, types and changing of every overload that the judging is about.

  Of all names that have one that changes, or one of a time with a zone: DuckDB
  2.0.1 says of these that they change.
  """
  with database.connect() as connection:
    rows = connection.execute(
      'SELECT function_name, parameter_types, stability '
      "FROM duckdb_functions() WHERE function_type = 'scalar'"
    ).fetchall()
  wanted = collections.defaultdict(bool)
  for name, types, depends_on in rows:
    with_zone = any('TIME ZONE' in kind for kind in types)
    wanted[name] |= with_zone or depends_on != 'CONSISTENT'
  return [
    (name, types, depends_on != 'CONSISTENT')
    for name, types, depends_on in rows
    if wanted[name] and name != 'error'  # That has no value.
  ]


def test_every_overload_is_judged_as_duckdb_judges_it():
  """Of columns of its types, so that it is the overload that is bound."""
  made = overloads()
  kinds = sorted({kind for _, types, _ in made for kind in types})
  columns = {kind: f'c{n}' for n, kind in enumerate(kinds) if kind != 'ANY'}
  columns['ANY'] = columns['DOUBLE']
  table = ', '.join(
    f'{name} {kind}' for kind, name in columns.items() if kind != 'ANY'
  )
  judged = collections.Counter()
  with database.connect() as connection:
    connection.execute(f'CREATE TEMP TABLE scores ({table})')
    for name, types, expected in made:
      call = f'"{name}"({", ".join(columns[kind] for kind in types)})'
      try:
        found = stability.changing(connection, f'SELECT {call} FROM scores')
      except (database.Refused, duckdb.Error):
        judged['not bound'] += 1  # It takes constants alone.
        continue
      reads_clock = name.startswith('current_local') or (
        name == 'age' and len(types) == 1
      )
      assert bool(found) == (expected or reads_clock), (call, types, found)
      judged[expected] += 1
  assert judged['not bound'] < 60 and judged[True] > 20 and judged[False] > 200


def test_no_function_without_arguments_is_missed():
  """Two databases agree on what is said to be the same."""
  with duckdb.connect() as connection:
    names = connection.execute(
      'SELECT DISTINCT function_name FROM duckdb_functions() '
      "WHERE function_type IN ('scalar', 'macro') AND len(parameters) = 0"
    ).fetchall()
  values = []
  for _ in range(2):
    found = {}
    with duckdb.connect() as connection:
      for [name] in names:
        call = f'"{name}"()'
        try:
          if not changing(call, COLUMNS):
            found[name] = connection.execute(f'SELECT {call}').fetchall()
        except (database.Refused, duckdb.Error):
          continue
    values.append(found)
  assert values[0] == values[1]
  assert 'pi' in values[0] and 'now' not in values[0]
