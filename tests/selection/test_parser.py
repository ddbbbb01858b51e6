"""What an expression has to give, said before there are examples."""

import pytest

from infoprune_jax.config.validation import UserError
from infoprune_jax.selection import parser
from infoprune_jax.tokens import tables

SCHEMA = tables.rule_schema(['nll_sum', 'nll_sum_early'])


def refusal(expression: str) -> str:
  with pytest.raises(UserError) as caught:
    parser.parse(expression, SCHEMA)
  message = str(caught.value)
  assert 'cannot be evaluated' in message and message.count('\n') < 3
  return message


@pytest.mark.parametrize(
  'expression, count',
  [
    ("COLUMNS('nll_.*') / num_tokens", 3),
    ("COLUMNS('^nll_.*') / num_tokens", 2),
    ('*', 20),
    ('COLUMNS(*)', 20),
    ('scores.*', 20),
    ('* EXCLUDE (source)', 19),
    ("COLUMNS(lambda c: c LIKE 'nll%')", 2),
    ("* LIKE 'nll%'", 2),
    ("COLUMNS(['nll_sum', 'nll_sum_early']) + 1", 2),
  ],
)
def test_several_values_an_example_are_refused(expression, count):
  message = refusal(expression)
  assert f'it gives {count} values for each example' in message


@pytest.mark.parametrize(
  'expression, reason',
  [
    ("unnest({'a': nll_sum, 'b': 1})", 'unnest() gives several rows'),
    ('unnest([1, 2])', 'unnest() gives several rows'),
    ("max(COLUMNS('^nll_sum$'))", 'one value for all examples'),
    ('avg(nll_sum)', 'one value for all examples'),
    ('count(*) + nll_sum', 'one value for all examples'),
    ("COLUMNS('nll.*') + (SELECT 1)", 'write the columns out'),
    ("COLUMNS('nll.*') + rank(num_tokens)", 'write the columns out'),
    ("rank(COLUMNS('nll.*'))", 'it gives 3 values'),
    ('#1', 'the position of a column'),
    ('rowid', "'rowid' is no column"),
    ('__position', "'__position' is no column"),
    ('scores', "'scores' is no column"),
    (
      'rank(nll_sum, 2, 3)',
      'rank() takes one number, as in rank(nll_sum), and',
    ),
    ('zscore(nll_sum, 2)', 'zscore() takes one number'),
    ('rank(nll_sum, source)', 'it gives VARCHAR, expected a number'),
    ('rank()', 'rank() takes one number'),
    ('nll_sum.rank()', 'rank() takes one number'),
    ('zscore(DISTINCT nll_sum)', 'zscore() takes one number'),
    ('rank(nll_sum) FILTER (WHERE doc_index > 1)', 'rank() takes one number'),
    ('source', 'it gives VARCHAR, expected a number'),
    ('INTERVAL 1 DAY', 'it gives INTERVAL'),
    ("DATE '2020-01-01'", 'it gives DATE'),
    ('[nll_sum]', 'it gives DOUBLE[]'),
    ("{'a': nll_sum}", 'it gives STRUCT'),
    ("'1'::BIT", 'it gives BIT'),
    ('nll_sum::JSON', 'it gives JSON'),
    ('uuid()', 'gives another value each time'),
    ('+'.join(['1'] * 900), 'nested too deeply'),
    ('', 'Parser Error'),
    ('?', 'Invalid Input Error'),
    ('nll_sum AS x', 'AS'),
  ],
)
def test_what_is_no_number_an_example_is_refused(expression, reason):
  assert reason in refusal(expression)


@pytest.mark.parametrize(
  'expression, columns',
  [
    ('NLL_SUM / num_tokens', ('num_tokens', 'nll_sum')),
    ("greatest(*COLUMNS('^nll_.*'))", tuple(SCHEMA.names)),
    ("COLUMNS('^nll_sum$')", tuple(SCHEMA.names)),
    ('scores.nll_sum', ('nll_sum',)),
    ("source = 'a'", ('source',)),
    ('nll_sum::DECIMAL(18, 3)', ('nll_sum',)),
    ('170141183460469231731687303715884105727', ('shard',)),
    # Something is read, or a table does not know how many rows it has.
    ('1', ('shard',)),
    ('(SELECT 1)', ('shard',)),
  ],
)
def test_what_it_reads(expression, columns):
  assert parser.parse(expression, SCHEMA).columns == columns


def test_calls_of_ours_become_columns():
  found = parser.parse(
    "Rank /* ( */ ( -zscore(num_bytes) ) + main.rank(doc_index + ')'::INT)",
    SCHEMA,
  )
  assert [call.function for call in found.calls.values()] == ['rank', 'rank']
  argument, other = (call.argument for call in found.calls.values())
  assert [c.function for c in argument.calls.values()] == ['zscore']
  assert other.columns == ('doc_index',)
  assert found.columns == ('shard',) and set(found.calls) == {
    '__rank_0',
    '__rank_1',
  }
