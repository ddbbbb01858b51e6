"""Rule expressions by chance: sound ones, and what nobody should write."""

import random
from collections.abc import Iterator

# What an expression of a kind is made of: {n} is a number, {b} a truth value,
# {s} a text, {d} a time, {i} an interval, {l} a list of numbers, {x} anything.
_KINDS = {
  'n': (
    *('nll_sum', 'num_tokens', 'NUM_BYTES', 'compressed_bytes', 'doc_index'),
    *('scores.nll_sum', '"nll_sum"', 'content_hash', 'fold'),
    *(
      '0',
      '1',
      '-2',
      '1.5',
      '2e3',
      '1e308',
      '0.1::DECIMAL(4, 2)',
      '7::UTINYINT',
    ),
    '170141183460469231731687303715884105727',
    *("'NaN'::DOUBLE", "'-inf'::FLOAT", 'NULL', '-0.0', '9223372036854775807'),
    *('{n} + {n}', '{n} - {n}', '{n} * {n}', '{n} / {n}', '{n} // {n}'),
    *('{n} % {n}', '{n} ** {n}', '-({n})', '@({n})', '~({n})', '{n} << {n}'),
    *('ln({n})', 'sqrt({n})', 'exp({n})', 'abs({n})', 'round({n}, 2)'),
    *('greatest({n}, {n})', 'least({n}, {n}, {n})', 'coalesce({n}, {n})'),
    *('nullif({n}, {n})', 'if({b}, {n}, {n})', 'sign({n})', 'isnan({n})::INT'),
    'CASE WHEN {b} THEN {n} END',
    'CASE WHEN {b} THEN {n} ELSE {n} END',
    'CASE {s} WHEN {s} THEN {n} WHEN {s} THEN {n} ELSE {n} END',
    *('CAST({x} AS DOUBLE)', 'TRY_CAST({x} AS INT)', 'CAST({n} AS TINYINT)'),
    *('({n})::DECIMAL(18, 3)', 'TRY_CAST({s} AS HUGEINT)', '({b})::INT'),
    *('length({s})', 'strlen({s})', 'instr({s}, {s})', 'ascii({s})'),
    *('levenshtein({s}, {s})', 'hash({x}) % 100', 'year({d})', 'epoch({d})'),
    *("date_part('month', {d})", "date_diff('day', {d}, {d})", 'epoch({i})'),
    *('list_sum({l})', 'list_avg({l})', '({l})[1]', 'len({l})', '({l})[-1]'),
    *(
      "list_aggregate({l}, 'stddev_pop')",
      'list_reduce({l}, lambda x, y: x + y)',
    ),
    "{{'a': {n}, 'b': {s}}}.a",
    "{{'a': {n}}}['a']",
    "map {{'k': {n}}}['k']",
    'union_value(u := {n}).u',
    'row_number() OVER (ORDER BY {n})',
    'percent_rank() OVER (PARTITION BY {s} ORDER BY {n})',
    'avg({n}) OVER (PARTITION BY {s})',
    'lag({n}) OVER (ORDER BY row)',
    'sum({n}) OVER (ORDER BY row ROWS BETWEEN 2 PRECEDING AND CURRENT ROW)',
    '(SELECT max({n}) FROM scores)',
    '(SELECT avg(s.nll_sum) FROM scores s WHERE s.source = scores.source)',
    '(SELECT count(*) FROM range(10) t(k) WHERE k < num_tokens)',
    '(WITH w AS (SELECT {n} AS v FROM scores) SELECT min(v) FROM w)',
    '(SELECT {n} FROM scores LIMIT 1)',
    '(SELECT {n})',
    *('rank({n})', 'zscore({n})', 'Rank(-{n}) * 2', 'rank({n}, {n})'),
  ),
  'b': (
    *('true', 'NULL::BOOLEAN', '{n} > {n}', '{n} = {n}', 'NOT ({b})'),
    *('({b}) AND ({b})', '({b}) OR ({b})', '{x} IS NULL', '{n} IN ({n}, {n})'),
    *('{n} BETWEEN {n} AND {n}', "{s} LIKE 'w%'", '{s} = {s}', 'isfinite({n})'),
    "regexp_matches({s}, '[a-z]+')",
    'EXISTS (SELECT 1 FROM scores s WHERE s.row > {n})',
    '{n} IN (SELECT row FROM scores)',
    'list_contains({l}, {n})',
  ),
  's': (
    *(
      'source',
      'example_id',
      "'web'",
      "''",
      "'it''s'",
      "'\U0001f600 x'",
      "'12'",
    ),
    *('{s} || {s}', 'upper({s})', 'substr({s}, 1, 2)', '({n})::VARCHAR'),
    *("strftime({d}, '%Y')", 'typeof({x})', "split_shard({s}, '-', 2)"),
  ),
  'd': (
    *("DATE '2020-02-29'", "TIMESTAMP '1999-12-31 23:59:59'"),
    *("'2020-01-01'::DATE", '{d} + {i}', "date_trunc('month', {d})"),
    'make_date(2020, 1, {n}::INT)',
    "TIMESTAMPTZ '2020-01-01 00:00:00+02'",
    'to_timestamp({n})',
  ),
  'i': ('INTERVAL 3 DAY', 'to_hours({n}::INT)', '{d} - {d}', 'age({d}, {d})'),
  'l': (
    *('[{n}, {n}]', '[]::DOUBLE[]', 'range(3)', 'NULL::INT[]'),
    *(
      'list_transform({l}, lambda x: x + {n})',
      '[k * 2 FOR k IN {l} IF k > 1]',
    ),
    *('list_sort({l})', 'list_concat({l}, {l})', '({l})[1:2]'),
  ),
}
# What is no number per example, or not the same one each time.
_ODD = (
  *(
    '*',
    'scores.*',
    'COLUMNS(*)',
    "COLUMNS('nll_.*') / num_tokens",
    '* EXCLUDE (row)',
  ),
  *("greatest(*COLUMNS('.*sum'))", "COLUMNS(c -> c LIKE '%sum') + 1", 'scores'),
  *('sum({n})', 'count(*)', 'avg({n}) + {n}', 'max({n}) FILTER (WHERE {b})'),
  *(
    'unnest({l})',
    '{n}, {n}',
    '({n}, {n})',
    'row({n}, {s})',
    '{{}}',
    '#1',
    '$1',
    '?',
  ),
  *('random()', 'now()', 'current_date', "nextval('x')", 'uuid()', 'age({d})'),
  *('epoch(now()) + {n}', 'year(today()) - {n}', 'hash(uuidv7())', 'rowid'),
  *('rank({n}, {n})', 'rank()', 'nll_sum.rank()', 'zscore(DISTINCT {n})'),
  *('{n} FROM scores', '{n};', '{n} AS y', ')', '(', "'", '/*', '--', '', ' '),
  *('missing_column', 'nll_sums', 'no_such({n})', 'scores.nope', '__position'),
  *("read_text('x')", "(SELECT 1 FROM 'x.csv')", 'getenv({s})', "error('no')"),
  *(
    '(SELECT {n} FROM scores)',
    '(SELECT 1, 2)',
    '(SELECT sum(1) FROM range(0))',
  ),
  *('(SELECT max({n}) FROM scores USING SAMPLE 3)', '[{n} FOR', 'DEFAULT'),
  *('(SELECT count(*) FROM duckdb_settings())', '({n})::JSON', "BLOB 'x'"),
  *('+'.join(['1'] * 700), '(' * 300 + '1' + ')' * 300, 'nll_sum' * 500),
)


def expressions(count: int, seed: int) -> Iterator[str]:
  """Always the same of one seed."""
  rng = random.Random(seed)
  # Each form once, then by chance.
  forms = [*_ODD, *(form for kind in _KINDS.values() for form in kind)]
  for number in range(count):
    yield _filled(forms[number] if number < len(forms) else '{x}', rng, 3)


def _filled(form: str, rng: random.Random, depth: int) -> str:
  """A form with expressions in its holes."""
  if '{' not in form:
    return form
  pieces = {kind: _Filler(kind, rng, depth) for kind in (*_KINDS, 'x')}
  return form.format(**pieces)


class _Filler:
  """Formats as another expression each time."""

  def __init__(self, kind: str, rng: random.Random, depth: int):
    self.kind, self.rng, self.depth = kind, rng, depth

  def __format__(self, _: str) -> str:
    kind, rng = self.kind, self.rng
    if kind == 'x' or rng.random() < 0.05:
      kind = rng.choice((*_KINDS, 'n', 'n'))
    forms = _KINDS[kind]
    if not self.depth:
      forms = [form for form in forms if '{' not in form] or forms[:1]
    return _filled(rng.choice(forms), rng, self.depth - 1)
