"""Selecting by shards: the bits, and the summaries, of one machine."""

import functools
import re

import numpy as np
import pytest

from configs import base
from infoprune_jax.config.selection import RuleConfig
from infoprune_jax.config.validation import UserError
from infoprune_jax.selection import (
  by_shard,
  groups_kept,
  select,
  shown,
  store_order,
  summary,
)
from infoprune_jax.selection.examples import ExampleTable

SIZES = (300, 0, 1, 299)  # of the shards; a store document in three is scored
SIZE = 1900
INFORMATION = 'nll_sum / num_tokens'


@pytest.fixture(scope='module')
def whole(make_examples) -> ExampleTable:
  """Examples with many equal scores and three sources, of all shards."""
  rng = np.random.default_rng(0)
  size = sum(SIZES)
  return make_examples(
    (rng.integers(0, 40, size) / 4).tolist(),
    tokens=(1 + rng.lognormal(3, 1, size).astype(int)).tolist(),
    sources=np.sort(rng.choice(['web', 'code', 'a'], size))[::-1].tolist(),
    index=(3 * np.arange(size) + rng.integers(0, 3, size)).tolist(),
  )


def open_shard(whole: ExampleTable, number: int) -> ExampleTable:
  first, last = np.cumsum([0, *SIZES])[number : number + 2].tolist()
  table = whole.table.slice(first, last - first)
  return ExampleTable(table, whole.index[first:last])


@pytest.fixture(scope='module')
def in_shards(whole) -> by_shard.ExamplesByShard:
  opened = functools.partial(open_shard, whole)
  return by_shard.ExamplesByShard(opened, len(SIZES))


def arm(*fields, **named) -> RuleConfig:
  return RuleConfig(**base.arm(*fields, **named).to_dict())


RULES = {
  'all': [arm('all')],
  'top': [arm('top', 'nll_sum', fraction=0.5)],
  'bottom by bytes': [arm('bottom', INFORMATION, fraction=0.3, unit='bytes')],
  'middle per source': [
    arm('middle', 'nll_sum', fraction=0.5, per='source', unit='examples')
  ],
  'fractions': [
    arm('top', 'nll_sum', fraction={'web': 1.0, '*': 0.2}, per='source')
  ],
  'groups': [arm('top', 'nll_sum', fraction=0.5, per='num_tokens % 5, source')],
  'band': [arm('band', 'nll_sum', low=0.2, high=0.7, floor=0.1)],
  'floor': [arm('top', 'nll_sum', fraction=0.5, floor=0.2)],
  'sample': [arm('sample', 'nll_sum', fraction=0.5, temperature=2.0)],
  'random': [arm('random', fraction=0.5)],
  'threshold': [arm('threshold', 'nll_sum', low=2.0, high=8.0)],
  'missing': [
    arm('top', 'nullif(nll_sum, 3.0)', fraction=0.9, missing='lowest')
  ],
  'two': [
    arm('threshold', 'num_tokens', low=5),
    arm('middle', 'nll_sum', fraction=0.4),
    arm('random', fraction=0.2),
  ],
}


def selected(rules, examples) -> tuple:
  """All that a keep set and its summary have."""
  kept, decision = select.decide(rules, examples, 1)
  return (
    store_order.bits(examples, kept, SIZE).tolist(),
    summary.summarize(examples, kept),
    groups_kept.by_groups(examples, kept, rules),
    shown.examples_of(examples, kept, decision, 3),
    shown.by_decile(examples, 2),
  )


@pytest.mark.parametrize('name', RULES)
def test_what_is_selected_is_that_of_one_machine(whole, in_shards, name):
  assert by_shard.why_not(RULES[name], in_shards) == ''
  by_shards = selected(RULES[name], in_shards)
  assert by_shards == selected(RULES[name], whole)
  assert any(by_shards[0])


def test_a_task_has_shards_next_to_each_other(whole, in_shards, monkeypatch):
  rules = RULES['middle per source']
  monkeypatch.setattr(by_shard, '_MAX_TASKS', 2)
  assert selected(rules, in_shards) == selected(rules, whole)


def test_missing_numbers_are_counted_in_all_shards(whole, in_shards):
  rule = arm('top', 'nullif(nll_sum, 3.0)', fraction=0.9)
  messages = []
  for examples in (in_shards, whole):
    with pytest.raises(UserError, match=f'of {sum(SIZES)} examples') as error:
      select.decide([rule], examples, 0)
    messages.append(str(error.value))
  assert messages[0] == messages[1]


@pytest.mark.parametrize(
  ('rule', 'reason'),
  [
    (arm('distinct'), "keep='distinct': it compares"),
    (arm('repeat', 'num_tokens % 3'), "keep='repeat': it has a count"),
    (arm('all_plus_reference'), 'adds documents of the token store'),
    (arm('top', 'rank(nll_sum)', fraction=0.5), r"'rank\(nll_sum\)': its val"),
    (arm('top', 'zscore(nll_sum)', fraction=0.5), 'depend on all examples'),
    (
      arm('top', 'nll_sum - avg(nll_sum) OVER ()', fraction=0.5),
      'depend on all examples',
    ),
    (
      arm('top', 'nll_sum', fraction=0.5, per='ntile(4, num_tokens)'),
      'depend on all examples',
    ),
    (
      arm('top', 'nll_sum', fraction=0.5, per='doc_index'),
      r'more than 256 groups \(600\)',
    ),
  ],
)
def test_rules_that_need_one_machine_say_why(in_shards, rule, reason):
  assert re.search(reason, by_shard.why_not([arm('all'), rule], in_shards))


def test_scores_of_two_models_need_one_machine(make_examples):
  folded = make_examples([1.0] * sum(SIZES), folds=[0] * 300 + [1] * 300)
  examples = by_shard.ExamplesByShard(
    functools.partial(open_shard, folded), len(SIZES)
  )
  assert 'ranked by fold' in by_shard.why_not(RULES['top'], examples)
  assert by_shard.why_not(RULES['random'], examples) == ''
