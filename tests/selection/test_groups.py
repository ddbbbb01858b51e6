"""Budgets within groups of examples that have the same values."""

import numpy as np
import pyarrow as pa
import pytest
from example_groups import members

from configs import base
from infoprune_jax.config.selection import RuleConfig
from infoprune_jax.config.validation import UserError, build
from infoprune_jax.report.selection import rules_as_text
from infoprune_jax.selection import groups, rules
from infoprune_jax.selection.examples import ExampleTable

SOURCES = ['web', 'code', 'web', 'books', 'code', 'web']
LANGUAGES = ['en', None, 'de', 'en', 'en', 'en']


@pytest.fixture
def examples(make_examples) -> ExampleTable:
  made = make_examples([5.0, 1.0, 2.0, 2.0, 9.0, 0.0], sources=SOURCES)
  table = made.table.append_column('language', pa.array(LANGUAGES))
  cluster = pa.array([3.0, 3.0, None, 1.0, 1.0, 2.5])
  table = table.append_column('quality.cluster', cluster)
  return ExampleTable(table, made.index)


@pytest.mark.parametrize(
  ('per', 'expected'),
  [
    ('', [''] * 6),
    ('source', SOURCES),
    ('Source', SOURCES),
    ('upper(source)', [source.upper() for source in SOURCES]),
    (
      'source, language',
      ['web, en', 'code, null', 'web, de', 'books, en', 'code, en', 'web, en'],
    ),
    ('quality.cluster', ['3', '3', 'null', '1', '1', '2.5']),
    ('nll_sum > 1.5', ['true', 'false', 'true', 'true', 'true', 'false']),
    ('ntile(2, nll_sum)', ['2', '1', '1', '1', '2', '1']),
    ('ntile(2, nll_sum, num_tokens)', ['2', '1', '1', '1', '2', '1']),
    ('ntile(1, nll_sum)', ['1'] * 6),
    (
      'ntile(2, nll_sum), source',
      ['2, web', '1, code', '1, web', '1, books', '2, code', '1, web'],
    ),
    (
      'ntile(3) OVER (ORDER BY nll_sum DESC, doc_index)',
      ['1', '3', '2', '2', '1', '3'],
    ),
  ],
)
def test_examples_with_the_same_values_are_one_group(examples, per, expected):
  names, codes = groups.of(examples, per)
  assert [names[code] for code in codes] == expected
  assert len(set(names)) == len(names)


@pytest.mark.parametrize(
  ('per', 'message'),
  [
    ('sources', "for 'sources' perhaps 'source'"),
    ('quality.clustr', "perhaps 'quality.cluster'"),
    ('source,', 'cannot be evaluated'),
    ('source) + (1', 'closed before it is opened'),
    ('[nll_sum]', r'it gives DOUBLE\[\]'),
    ('ntile(nll_sum)', 'takes the number of groups, a number'),
    ('ntile(0, nll_sum)', 'number of groups, such as 10'),
    ('ntile(1.5, nll_sum)', 'number of groups, such as 10'),
    ('random()', 'gives another value each time'),
  ],
)
def test_what_makes_no_groups_is_refused(examples, per, message):
  with pytest.raises(UserError, match=message):
    groups.of(examples, per)
  made = RuleConfig(**base.arm('random', fraction=0.5, per=per))
  with pytest.raises(UserError, match=f'In select.arms.x: .*{message}'):
    rules.check([made], 'select.arms.x', examples.schema)


def test_too_many_groups_are_refused(examples, monkeypatch):
  monkeypatch.setattr(groups, 'MAX_GROUPS', 3)
  for per in ('nll_sum', 'source, language'):
    with pytest.raises(UserError, match='more than 3 groups: use a column'):
      groups.of(examples, per)


def test_a_table_of_fractions_is_spent_group_by_group(make_examples):
  rng = np.random.default_rng(0)
  sources = rng.choice(['web', 'code', 'books'], 300).tolist()
  made = make_examples(rng.random(300).tolist(), sources=sources)
  table = {'web': 0.5, 'code': 1.0, '*': 0.2}
  arm = base.arm(
    'top', 'nll_sum', fraction=table, per='source', unit='examples'
  )
  rule = build(RuleConfig, arm, 'x')
  kept = rules.apply([rule], made, 0)
  for group, name in zip(
    members(made, 'source'), groups.of(made, 'source').names, strict=True
  ):
    fraction = table.get(name, table['*'])
    assert kept[group].sum() == int(fraction * len(group))
    scores = made.table['nll_sum'].to_numpy()[group]
    if not kept[group].all():
      assert scores[kept[group]].min() > scores[~kept[group]].max()
  text = rules_as_text.describe_rule(rule)
  assert '50 % (web), 100 % (code) and 20 % (other groups) of examples' in text


@pytest.mark.parametrize(
  ('table', 'message'),
  [
    ({'web': 0.5, 'cod': 1.0, '*': 1.0}, "no group 'cod'. Did you mean 'code'"),
    ({'web': 0.5}, "the group 'code' has no fraction: name it, or give '\\*'"),
  ],
)
def test_a_table_names_groups_that_are_there(examples, table, message):
  rule = build(
    RuleConfig, base.arm('random', fraction=table, per='source'), 'x'
  )
  with pytest.raises(UserError, match=message):
    rules.apply([rule], examples, 0)


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    ({'per': 'source', 'fraction': {'a': 1.5}}, r"fraction\['a'\] must be in"),
    ({'per': 'source', 'fraction': {'*': 0.0}}, 'at least one group'),
    ({'fraction': {'a': 0.5}}, 'select.per names no groups'),
    (
      {'per': 'source', 'fraction': {'a': 0.5, '*': 0.9}, 'floor': 0.6},
      r'select.fraction=0\.5: lower the floor',
    ),
  ],
)
def test_tables_that_can_never_be_spent_are_refused(fields, message):
  keep = 'top' if 'floor' in fields else 'random'
  score = 'nll_sum' if keep == 'top' else ''
  with pytest.raises(UserError, match=message):
    build(RuleConfig, base.arm(keep, score, **fields), 'x')
