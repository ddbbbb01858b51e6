"""Rule expressions: a number per example, and nothing else."""

import glob

import numpy as np
import pytest

from configs import base
from infoprune_jax.config.selection import RuleConfig
from infoprune_jax.config.validation import UserError
from infoprune_jax.selection import expressions, rules
from infoprune_jax.tokens import tables

COLUMNS = 'Columns are shard, doc_index, example_id, source, num_tokens'


@pytest.fixture(scope='module')
def examples(make_examples):
  rng = np.random.default_rng(0)
  return make_examples(
    rng.normal(size=500).tolist(),
    tokens=rng.integers(0, 9, 500).tolist(),
    sources=rng.choice(['web', 'books'], 500).tolist(),
  )


@pytest.fixture(scope='module')
def nll(examples) -> np.ndarray:
  return examples.table['nll_sum'].to_numpy()


@pytest.mark.parametrize(
  'expression, expected',
  [
    ('nll_sum', lambda nll, tokens: nll),
    ('NLL_SUM * -1', lambda nll, tokens: -nll),
    ('num_tokens', lambda nll, tokens: tokens),
    (
      'nll_sum / greatest(num_tokens, 1)',
      lambda nll, tokens: nll / np.maximum(tokens, 1),
    ),
    (
      'CASE WHEN num_tokens > 4 THEN nll_sum ELSE 0 END',
      lambda nll, tokens: np.where(tokens > 4, nll, 0),
    ),
    ("(source = 'web') AND nll_sum > 0", None),
    (
      '(SELECT max(nll_sum) FROM scores) - nll_sum',
      lambda nll, tokens: nll.max() - nll,
    ),
    ('nll_sum\n  + 1 -- a comment\n', lambda nll, tokens: nll + 1),
  ],
)
def test_expressions(examples, nll, expression, expected):
  found = expressions.score(examples, expression)
  assert found.dtype == np.float64 and len(found) == 500
  if expected is not None:
    tokens = examples.table['num_tokens'].to_numpy()
    assert found.tolist() == pytest.approx(expected(nll, tokens).tolist())


@pytest.mark.parametrize(
  'expression, expected',
  [
    ('row_number() OVER (ORDER BY nll_sum)', lambda nll, web: rank(nll)),
    ('percent_rank() OVER (ORDER BY nll_sum)', lambda nll, web: scaled(nll)),
    (
      'nll_sum - avg(nll_sum) OVER (PARTITION BY source)',
      lambda nll, web: nll - np.where(web, nll[web].mean(), nll[~web].mean()),
    ),
  ],
)
def test_window_functions(examples, nll, expression, expected):
  web = np.array(examples.table['source'].to_pylist()) == 'web'
  found = expressions.score(examples, expression)
  assert found.tolist() == pytest.approx(expected(nll, web).tolist())


def rank(values: np.ndarray) -> np.ndarray:
  """From 1, by size."""
  return np.argsort(np.argsort(values)) + 1


def scaled(values: np.ndarray) -> np.ndarray:
  return (rank(values) - 1) / (len(values) - 1)


@pytest.mark.parametrize(
  'expression, reason',
  [
    ('nll_sum +', 'Parser Error'),
    ('nll_sum / num_token', '"num_token" not found'),
    ('nope(nll_sum)', 'nope'),
    ('scores.other', 'other'),
    ("'text'", 'text'),
    ("CAST('x' AS INT)", 'Conversion Error'),
    ('nll_sum; DROP TABLE scores', 'Parser Error'),
    ("(SELECT count(*) FROM read_csv('/etc/passwd'))", 'Permission Error'),
    ("(SELECT content FROM read_text('/etc/passwd'))", 'Permission Error'),
    ("(SELECT count(*) FROM glob('/*'))", 'Permission Error'),
    ("(SELECT count(*) FROM '/etc/passwd')", 'does not exist'),
    ("(COPY scores TO 'x.csv')", 'Parser Error'),
    ("getenv('HOME')", 'getenv'),
    ('avg(nll_sum)', 'Binder Error'),
    ('count(*)', 'Binder Error'),
  ],
)
def test_what_cannot_be_evaluated(examples, expression, reason):
  with pytest.raises(UserError) as caught:
    expressions.score(examples, expression)
  assert expression in str(caught.value)
  assert reason in str(caught.value)
  assert COLUMNS in str(caught.value)
  assert '\n' not in str(caught.value)


@pytest.mark.parametrize(
  'expression, number',
  [
    ('NULL', 500),
    ('0 / 0', 500),
    ('sqrt(-1 - num_tokens)', 500),
    ("CAST('nan' AS DOUBLE)", 500),
    ('CASE WHEN num_tokens = 3 THEN NULL ELSE 1 END', None),
    ('1 / (num_tokens - num_tokens)', 500),
  ],
)
def test_what_gives_no_number(examples, expression, number):
  if number is None:
    number = int((examples.weight('tokens') == 3).sum())
  with pytest.raises(
    UserError, match=f'gives no finite number for {number} of 500 examples'
  ):
    expressions.score(examples, expression)


def test_more_rows_than_examples_are_refused(examples):
  with pytest.raises(UserError):
    expressions.score(examples, 'unnest([1, 2])')


@pytest.mark.parametrize('expression', ['avg(nll_sum)', 'count(*)'])
def test_an_aggregate_is_no_value_an_example(examples, expression):
  with pytest.raises(UserError, match='cannot be evaluated'):
    expressions.score(examples, expression)


# They close the cast, and start a statement of their own.
ESCAPES = [
  '1) AS DOUBLE) AS score FROM scores; {}; SELECT CAST((nll_sum',
  '1) AS DOUBLE) AS score FROM scores; {}; --',
]


@pytest.mark.parametrize('escape', ESCAPES)
@pytest.mark.parametrize(
  'statement',
  [
    "COPY scores TO '{folder}/x.csv'",
    "ATTACH '{folder}/x.db'",
    "COPY (SELECT 1) TO '{folder}/x.parquet'",
    "EXPORT DATABASE '{folder}'",
    'SET enable_external_access = true',
    'INSTALL httpfs',
    "LOAD '/tmp/x.duckdb_extension'",
    "CREATE TABLE x AS SELECT * FROM read_text('/etc/passwd')",
  ],
)
def test_no_statement_reaches_files(examples, tmp_path, escape, statement):
  expression = escape.format(statement.format(folder=tmp_path))
  with pytest.raises(UserError, match='cannot be evaluated'):
    expressions.score(examples, expression)
  assert not glob.glob(f'{tmp_path}/*')


@pytest.mark.parametrize(
  'expression',
  [
    'nll_sum) AS DOUBLE) AS score FROM scores ORDER BY nll_sum --',
    '1) AS DOUBLE) AS score FROM range(500) --',
    '1) AS DOUBLE) AS score FROM scores; CREATE TABLE x (y INT); --',
    '1) AS DOUBLE) AS other FROM scores --',
  ],
)
def test_an_expression_is_one_expression(examples, expression):
  with pytest.raises(UserError):
    expressions.score(examples, expression)


def test_the_table_outlives_an_expression(examples, nll):
  with pytest.raises(UserError):
    expressions.score(
      examples,
      '1) AS DOUBLE) AS score FROM scores; DROP VIEW scores; '
      'SELECT CAST((nll_sum',
    )
  assert expressions.score(examples, 'nll_sum').tolist() == nll.tolist()


def test_order_is_kept_over_many_row_groups(make_examples):
  """DuckDB scans groups of 122,880 rows in parallel."""
  count = 300_000
  examples = make_examples(np.arange(count, dtype=float))
  found = expressions.score(examples, 'nll_sum * 2')
  assert (found == 2.0 * np.arange(count)).all()


def arm(*expressions: str) -> list[RuleConfig]:
  return [
    RuleConfig(**base.arm('top', expression, fraction=0.5))
    for expression in expressions
  ]


@pytest.mark.parametrize(
  'expression',
  ['nll_sum +', 'nope', 'avg(nll_sum)', "read_csv('x')", '1; SELECT 2'],
)
def test_rules_are_checked_before_there_is_data(expression):
  with pytest.raises(UserError, match=r'In select\.arms\.mine: ') as caught:
    rules.check(
      arm('nll_sum', expression),
      'select.arms.mine',
      tables.rule_schema(['nll_sum']),
    )
  assert expression in str(caught.value)


def test_a_good_arm_passes_the_check():
  rules.check(
    arm('nll_sum / num_tokens', 'num_bytes'),
    'select.arms.mine',
    tables.rule_schema(['nll_sum']),
  )
  rules.check(
    [RuleConfig(**base.arm('random'))],
    'select.arms.mine',
    tables.rule_schema(['nll_sum']),
  )


def test_ranks_and_standard_scores(examples, nll):
  tokens = examples.table['num_tokens'].to_numpy()
  found = expressions.score(
    examples, 'RANK(nll_sum) + 2 * zscore(ln(num_tokens + 1))'
  )
  logs = np.log(tokens + 1)
  expected = (rank(nll) - 0.5) / 500 + 2 * (logs - logs.mean()) / logs.std()
  np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_a_rank_goes_by_its_weight(examples, nll):
  tokens = examples.table['num_tokens'].to_numpy()
  found = expressions.score(examples, 'rank(nll_sum, num_tokens)')
  expected = [
    (tokens[nll < value].sum() + tokens[nll == value].sum() / 2) / tokens.sum()
    for value in nll
  ]
  np.testing.assert_allclose(found, expected, rtol=1e-12)
  # By one weight it is the rank among examples.
  assert expressions.score(examples, 'rank(nll_sum, 3)') == pytest.approx(
    expressions.score(examples, 'rank(nll_sum)')
  )


@pytest.mark.parametrize('weight', ['num_tokens - 1', '0', '-num_bytes'])
def test_a_weight_that_weighs_nothing_is_refused(examples, weight):
  with pytest.raises(UserError, match=r'The weight .* must not be negative'):
    expressions.score(examples, f'rank(nll_sum, {weight})')


def test_a_rank_of_a_rank_is_a_rank(examples):
  text = 'rank(-rank(num_bytes) * 3)'
  found = expressions.score(examples, text)
  assert (
    found.tolist() == expressions.score(examples, 'rank(-num_bytes)').tolist()
  )


def test_standard_scores_of_one_value_are_zero(examples):
  assert not expressions.score(examples, 'zscore(compressed_bytes)').any()


def test_ranks_are_within_the_folds_of_reference_models(make_examples):
  """The second model finds everything ten times as surprising."""
  folded = make_examples([1.0, 30.0, 2.0, 10.0], folds=[0, 1, 0, 1])
  assert expressions.score(folded, 'rank(nll_sum)').tolist() == [
    0.25,
    0.75,
    0.75,
    0.25,
  ]
  weighted = expressions.score(folded, 'rank(nll_sum, doc_index + 1)')
  assert weighted.tolist() == pytest.approx([1 / 8, 5 / 6, 5 / 8, 2 / 6])
  # Of what no model says there is one scale.
  assert expressions.score(folded, 'rank(doc_index)').tolist() == [
    0.125,
    0.375,
    0.625,
    0.875,
  ]


@pytest.mark.parametrize(
  'expression, nearest',
  [
    ('nll_sums / num_tokens', "for 'nll_sums' perhaps 'nll_sum'"),
    ('rank(num_token)', "for 'num_token' perhaps 'num_tokens'"),
    ('Unigram_nll + 1', "for 'Unigram_nll' perhaps 'unigram_nll_sum'"),
  ],
)
def test_the_nearest_column_is_named(examples, expression, nearest):
  with pytest.raises(UserError) as caught:
    expressions.score(examples, expression)
  assert nearest in str(caught.value) and COLUMNS in str(caught.value)


@pytest.mark.parametrize(
  'expression', ['random()', 'nll_sum + RANDOM()', 'hash(uuid())', 'now()']
)
def test_what_changes_from_run_to_run_is_refused(examples, expression):
  with pytest.raises(UserError, match='gives another value each time'):
    expressions.parse(expression, examples.schema)


def test_what_has_no_number_may_be_lowest(examples, nll):
  tokens = examples.table['num_tokens'].to_numpy()
  text = 'CASE WHEN num_tokens = 3 THEN NULL ELSE nll_sum END'
  found = expressions.score(examples, text, 'lowest')
  assert found.tolist() == np.where(tokens == 3, -np.inf, nll).tolist()
  scores = expressions.score(examples, f'zscore({text})', 'lowest')
  known = nll[tokens != 3]
  np.testing.assert_allclose(
    scores[tokens != 3], (known - known.mean()) / known.std()
  )
  assert (scores[tokens == 3] == -np.inf).all()
  kept = rules.apply(
    [RuleConfig(**base.arm('bottom', text, fraction=0.01, missing='lowest'))],
    examples,
    0,
  )
  assert set(tokens[kept]) == {3}


@pytest.mark.parametrize(
  'expression',
  [
    '(SELECT avg(nll_sum) FROM scores)',
    'sum(nll_sum) OVER (PARTITION BY source)',
    '(SELECT arg_max(nll_sum, num_tokens) FROM scores)',
    '(SELECT approx_quantile(nll_sum, 0.3) FROM scores)',
  ],
)
def test_what_adds_up_examples_is_the_same_each_time(make_examples, expression):
  """To the last bit: threads would add up in another order each time."""
  count = 400_000
  rng = np.random.default_rng(0)
  examples = make_examples(
    rng.normal(size=count).tolist(),
    tokens=rng.integers(0, 9, count).tolist(),
    sources=rng.choice(['web', 'books'], count).tolist(),
  )
  found = {expressions.score(examples, expression).tobytes() for _ in range(3)}
  assert len(found) == 1
