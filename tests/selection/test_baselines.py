"""The arms of `configs/baselines.py`: each selects, and what it says."""

import pathlib
import re
import shutil

import numpy as np
import pytest
from ml_collections import ConfigDict

from configs import base, baselines
from infoprune_jax.config import experiment as config_lib, validation
from infoprune_jax.config.arms import SelectConfig
from infoprune_jax.selection import expressions, rules
from infoprune_jax.selection.examples import scored_examples
from infoprune_jax.statistics import near_duplicates
from infoprune_jax.tokens import tables
from infoprune_jax.tokens.token_store import TokenStore

FRACTION = 0.4
ARMS = baselines.arms(FRACTION)
ARMS.update(baselines.information(FRACTION))
del ARMS.low_perplexity  # The same as `bottom_nll`.
NAMES = tuple(ARMS)


# This corpus has neither.
COPIES = ('deduplicated', 'near_deduplicated')


@pytest.fixture(scope='module')
def examples(experiment, scored, tmp_path_factory):
  workdir = str(tmp_path_factory.mktemp('grouped') / 'work')
  shutil.copytree(scored, workdir)
  near_duplicates.run(config_lib.from_mapping(experiment), workdir)
  return scored_examples(workdir, TokenStore.open(workdir))


def built(arms: ConfigDict) -> SelectConfig:
  return validation.build(SelectConfig, {'arms': arms}, 'select')


def kept_by(arms: ConfigDict, name: str, examples) -> np.ndarray:
  rule = built(arms).arms[name]
  rules.check(rule, name, tables.rule_schema(['nll_sum']))
  return rules.apply(rule, examples, draw=0)


@pytest.mark.parametrize('name', NAMES)
def test_each_baseline_selects(examples, name):
  kept = kept_by(ARMS, name, examples)
  tokens = examples.weight('tokens')
  share = tokens[kept].sum() / tokens.sum()
  if name in COPIES:
    assert share == 1.0
  else:
    assert FRACTION - tokens.max() / tokens.sum() <= share <= FRACTION


def test_copies_are_kept_once(make_examples):
  examples = make_examples([1.0, 2.0, 3.0, 4.0], content=[5, 5, 6, 5])
  kept = kept_by(baselines.arms(FRACTION), 'deduplicated', examples)
  assert kept.tolist() == [True, False, True, False]


def test_no_two_keep_the_same(examples):
  names = [name for name in NAMES if name != COPIES[1]]
  kept = [kept_by(ARMS, n, examples) for n in names]
  assert len({mask.tobytes() for mask in kept}) == len(names)


def test_a_direction_is_one_word(examples):
  tokens = examples.weight('tokens')
  arms = baselines.arms(FRACTION)
  longest = kept_by(arms, 'length', examples)
  arms.length.keep = 'bottom'
  shortest = kept_by(arms, 'length', examples)
  assert tokens[longest].min() > tokens[shortest].max()


def test_both_terms_of_the_prior_keep_the_middle_of_both(examples):
  """As many of each ranking are out of bounds, as near as documents allow."""
  kept = kept_by(baselines.arms(FRACTION), 'prior', examples)
  far = np.zeros(len(examples))
  for score in (base.INVERSE_FREQUENCY, base.FREQUENCY_DEVIATION):
    values = expressions.score(examples, score)
    below = (values[:, None] > values).sum(1) / (len(values) - 1)
    far = np.maximum(far, abs(below - 0.5))
  assert far[kept].max() <= far[~kept].min()


def test_an_experiment_begins_with_two_arms_and_takes_sets():
  """As docs/rules.md shows; arms have the order in which they are added."""
  page = pathlib.Path(base.__file__).parents[1] / 'docs/rules.md'
  section = page.read_text().partition('## Baselines')[2]
  code = section.partition('```python')[2].partition('```')[0]
  config = base.get_config()
  assert list(config.select.arms) == ['full', 'random']
  exec(code, {'config': config})
  config.corpus.sources.mine = base.jsonl('mine.jsonl')
  loaded = config_lib.from_mapping(config)
  assert loaded.arms == (
    *('full', 'random', 'top_nll', 'top_sum', 'bottom_nll', 'length'),
  )
  rules_ = [loaded.select.arms[name][0] for name in loaded.arms[1:]]
  assert {rule.fraction for rule in rules_} == {0.8}


def test_the_docs_name_every_arm_of_every_set():
  page = pathlib.Path(base.__file__).parents[1] / 'docs/rules.md'
  section = page.read_text().partition('## Baselines')[2]
  rows = dict(re.findall(r'^\| `(\w+)\(.*?\)` \| (.*) \|$', section, re.M))
  for name in ('information', 'copies', 'filters', 'priors'):
    made = getattr(baselines, name)
    arms = made() if name == 'copies' else made(FRACTION)
    assert re.findall(r'`(\w+)`', rows.pop(name)) == list(arms)
  assert list(rows) == ['arms']
