"""Bands, samples, thresholds, copies, and scores of several folds."""

import collections
import functools
import itertools
import math
import pathlib

import numpy as np
import pytest
from applied_rules import kept_by, rule
from example_groups import members
from hypothesis import given, settings, strategies as st

from configs import base
from infoprune_jax.config import experiment as config_lib
from infoprune_jax.config.selection import UNITS, RuleConfig
from infoprune_jax.config.validation import UserError
from infoprune_jax.selection import expressions, rules
from infoprune_jax.selection.examples import ExampleTable
from infoprune_jax.tokens import tables

MEAN = 'nll_sum / greatest(num_tokens, 1)'
INFINITE = math.inf


@settings(max_examples=30, deadline=None)
@given(
  # Eighths of multiples of 16 are whole, and so are halves of what is left.
  lengths=st.lists(st.integers(0, 9).map(lambda n: 16 * n), min_size=1),
  eighths=st.integers(1, 8),
  unit=st.sampled_from(['tokens', 'bytes']),
  per=st.sampled_from(['', 'source']),
  data=st.data(),
)
def test_the_middle_is_a_symmetric_band(
  make_examples, lengths, eighths, unit, per, data
):
  count = len(lengths)

  def some(values) -> list:
    return data.draw(st.lists(values, min_size=count, max_size=count))

  examples = make_examples(
    some(st.integers(0, 5).map(float)),
    tokens=lengths,
    sources=some(st.sampled_from(['web', 'books'])),
  )
  share = eighths / 8
  same = {'unit': unit, 'per': per, 'seed': 3}
  middle = rule('middle', 'nll_sum', fraction=share, **same)
  band = rule(
    'band', 'nll_sum', low=(1 - share) / 2, high=(1 + share) / 2, **same
  )
  assert kept_by(band, examples) == kept_by(middle, examples)


@pytest.fixture(scope='module')
def many(make_examples) -> ExampleTable:
  """2,000 examples of lognormal length, with copies, in two folds."""
  rng = np.random.default_rng(0)
  return make_examples(
    rng.normal(size=2000).tolist(),
    tokens=rng.lognormal(5, 1, 2000).astype(int).tolist(),
    sources=rng.choice(['web', 'books', 'code'], 2000).tolist(),
    index=rng.permutation(5000)[:2000].tolist(),
    content=rng.integers(0, 1500, 2000).tolist(),
  )


@pytest.mark.parametrize('low, high', [(0.0, 0.3), (0.05, 0.8), (0.6, 1.0)])
def test_a_band_is_trimmed_on_both_sides(many, low, high):
  score = many.table['nll_sum'].to_numpy()
  for unit, per in itertools.product(UNITS, ('', 'source')):
    band = rule('band', 'nll_sum', low=low, high=high, unit=unit, per=per)
    kept = rules.apply((band,), many, 0)
    weight = many.weight(unit)
    for group in members(many, per):
      inside = group[kept[group]]
      below = group[score[group] < score[inside].min()]
      total, most = weight[group].sum(), weight[group].max()
      assert 0 <= low * total - weight[below].sum() <= most
      assert abs((high - low) * total - weight[inside].sum()) <= most
      between = score[group] >= score[inside].min()
      between &= score[group] <= score[inside].max()
      assert set(group[between]) == set(inside)


def test_two_bands_share_nothing_and_leave_nothing(many):
  first = kept_by(rule('band', 'nll_sum', low=0.0, high=0.5), many)
  second = kept_by(rule('band', 'nll_sum', low=0.5, high=1.0), many)
  assert not first & second
  tokens = many.weight('tokens')
  left = np.setdiff1d(np.arange(len(many)), [*first, *second])
  assert tokens[left].sum() <= tokens.max()


def test_a_band_of_what_is_left_may_be_too_short(many, monkeypatch):
  told = []
  monkeypatch.setattr(
    rules.logger, 'warning', lambda text, *args: told.append(text % args)
  )
  # A half is left, of which a quarter of the whole is skipped.
  both = (
    rule('top', 'nll_sum', fraction=0.5),
    rule('band', 'nll_sum', low=0.25, high=0.75),
  )
  kept = rules.apply(both, many, 0)
  tokens = many.weight('tokens')
  assert tokens[kept].sum() / tokens.sum() == pytest.approx(0.25, abs=0.01)
  [line] = told
  assert "the budget of 'band'" in line


@pytest.mark.parametrize(
  'low, high', [(-0.5, 0.5), (-INFINITE, 0.0), (0.25, INFINITE)]
)
def test_a_threshold_is_in_the_units_of_the_score(many, low, high):
  score = many.table['nll_sum'].to_numpy()
  found = rules.apply(
    (rule('threshold', 'nll_sum', low=low, high=high),), many, 0
  )
  assert found.tolist() == ((score >= low) & (score <= high)).tolist()


def test_bounds_of_a_threshold_are_kept(make_examples):
  examples = make_examples([1.0, 2.0, 3.0, 4.0])
  assert kept_by(rule('threshold', 'nll_sum', low=2, high=3), examples) == {
    1,
    2,
  }


def test_a_threshold_after_a_rule_only_takes_away(many):
  first = rule('top', 'num_tokens', fraction=0.5)
  second = rule('threshold', 'nll_sum', low=0.0)
  assert kept_by((first, second), many) == (
    kept_by(first, many) & kept_by(second, many)
  )


def test_the_first_copy_in_store_order_stays(make_examples):
  examples = make_examples(
    [0.0] * 5,
    sources=['web', 'web', 'books', 'books', 'web'],
    index=[9, 4, 7, 2, 1],
    content=[5, 5, 5, 6, -8],
  )
  assert kept_by(rule('distinct'), examples) == {1, 3, 4}
  assert kept_by(rule('distinct', per='source'), examples) == {1, 2, 3, 4}


def test_what_counts_as_a_copy_can_be_said(make_examples):
  """Equal values are copies; to a float's last bit, and both zeros are one."""
  examples = make_examples(
    [0.5, 0.0, -0.0, 0.5, np.nextafter(0.5, 1)],
    sources=['web', 'web', 'books', 'books', 'web'],
  )
  assert kept_by(rule('distinct', 'nll_sum'), examples) == {0, 1, 4}
  by_source = rule('distinct', 'nll_sum', per='source')
  assert kept_by(by_source, examples) == {0, 1, 2, 3, 4}
  assert kept_by(rule('distinct', 'num_tokens'), examples) == {0}


def test_the_best_copies_stay(make_examples):
  examples = make_examples(
    [1.0, 3.0, 2.0, 3.0, 0.0],
    index=[9, 4, 7, 2, 1],
    content=[5, 5, 5, 5, 6],
  )
  best = functools.partial(rule, 'distinct', best='nll_sum')
  # Of equally good ones the first of the store.
  assert kept_by(best(), examples) == {3, 4}
  assert kept_by(best(copies=2), examples) == {1, 3, 4}
  assert kept_by(best(copies=3), examples) == {1, 2, 3, 4}
  assert kept_by(best(copies=9), examples) == {0, 1, 2, 3, 4}
  assert kept_by(rule('distinct', copies=2), examples) == {1, 3, 4}
  assert kept_by(best(best='-nll_sum'), examples) == {0, 4}


def test_a_copy_of_what_was_dropped_stays(make_examples):
  """Of the candidates: the first of all may be gone by then."""
  examples = make_examples([1.0, 9.0, 2.0, 8.0], content=[1, 1, 2, 2])
  top = rule('top', 'nll_sum', fraction=0.5)
  assert kept_by((top, rule('distinct')), examples) == {1, 3}
  assert kept_by((rule('distinct'), top), examples) == {0, 2}


def test_copies_are_gone(many):
  content = many.table['content_hash'].to_numpy()
  kept = rules.apply((rule('distinct'),), many, 0)
  assert len(set(content[kept])) == kept.sum() == len(set(content))
  first = {c: min(many.index[content == c]) for c in set(content)}
  assert set(many.index[kept]) == set(first.values())


@pytest.mark.parametrize('keep', ['all', 'all_plus_reference'])
def test_all_that_was_scored(many, keep):
  assert rules.apply((rule(keep),), many, 0).all()


def test_everything_stands_alone():
  edits = base.get_config()
  edits.corpus.sources.web = base.text('*.txt')
  edits.select.arms.both = (
    base.arm('distinct'),
    base.arm('all_plus_reference'),
  )
  with pytest.raises(UserError, match=r'arms\.both: .* must be the only rule'):
    config_lib.from_mapping(edits)
  del edits.select.arms.both
  edits.select.arms.alone = base.arm('all_plus_reference')
  config_lib.from_mapping(edits)


def test_the_rules_of_the_docs_work():
  text = (pathlib.Path(__file__).parents[2] / 'docs/rules.md').read_text()
  [code] = [c for c in text.split('```python')[1:] if 'arms.trimmed' in c]
  edits = base.get_config()
  edits.corpus.sources.web = base.text('*.txt')
  exec(code.split('```')[0], {'config': edits, 'base': base})
  arms = config_lib.from_mapping(edits).select.arms
  assert len(arms) > 10
  for name, chosen in arms.items():
    rules.check(chosen, name, tables.rule_schema(['nll_sum']))


# Samples.


def sample(temperature: float = 1.0, **fields) -> RuleConfig:
  return rule('sample', 'nll_sum', temperature=temperature, **fields)


def test_a_cold_sample_is_the_top(many):
  top = kept_by(rule('top', 'nll_sum', fraction=0.3), many)
  for temperature in (1e-300, 1e-9):
    assert kept_by(sample(temperature, fraction=0.3), many) == top
  warm = kept_by(sample(0.05, fraction=0.3), many)
  assert warm != top
  assert len(warm & top) / len(top) > 0.9


def test_a_hot_sample_is_random(many):
  score = many.table['nll_sum'].to_numpy()
  for temperature, follows in ((1.0, True), (1e6, False)):
    kept = rules.apply((sample(temperature, fraction=0.5),), many, 0)
    assert (score[kept].mean() > 0.15) == follows
    assert (abs(score[kept].mean()) < 0.1) != follows


def test_samples_differ_by_draw_and_by_seed(many):
  arms = [
    kept_by(sample(fraction=0.5), many, 0),
    kept_by(sample(fraction=0.5), many, 1),
    kept_by(sample(fraction=0.5, seed=5), many, 0),
  ]
  assert kept_by(sample(fraction=0.5), many, 0) == arms[0]
  for first, second in itertools.combinations(arms, 2):
    assert 0.4 < len(first & second) / len(first) < 0.9


def test_inclusion_follows_the_weights(make_examples, monkeypatch):
  """Two of three, without replacement, by weights 1, 2 and 5."""
  weights = [1.0, 2.0, 5.0]
  temperature, draws, total = 0.25, 1000, sum(weights)
  counts = collections.Counter()
  scores = [temperature * math.log(weight) for weight in weights]
  monkeypatch.setattr(expressions, 'score', lambda *_: np.array(scores))
  examples = make_examples(scores)
  chosen = sample(temperature, fraction=0.67, unit='examples')
  for draw in range(draws):
    counts[frozenset(kept_by(chosen, examples, draw))] += 1
  for pair in itertools.combinations(range(3), 2):
    expected = sum(
      weights[a] / total * weights[b] / (total - weights[a])
      for a, b in itertools.permutations(pair)
    )
    error = 4 * math.sqrt(expected * (1 - expected) / draws)
    assert counts[frozenset(pair)] / draws == pytest.approx(expected, abs=error)
  assert sum(counts.values()) == draws


def test_noise_is_finite(make_examples, monkeypatch):
  """Whatever the hash gives: its lowest and highest value too."""
  extremes = np.array([0.0, 0.5, 1.0 - 2.0**-53])
  monkeypatch.setattr(rules, 'uniform', lambda index, seed: extremes)
  with np.errstate(all='raise'):
    kept = kept_by(
      sample(fraction=0.67, unit='examples'), make_examples([0.0] * 3)
    )
  assert kept == {1, 2}


# Two reference models.


@pytest.fixture(scope='module')
def folded(make_examples) -> ExampleTable:
  """The second model finds everything ten times as surprising."""
  rng = np.random.default_rng(1)
  folds = rng.integers(0, 2, 1000)
  score = rng.gamma(4.0, 1.0, 1000) * np.where(folds, 10.0, 1.0)
  tokens = rng.lognormal(4, 1, 1000).astype(int) + 1
  return make_examples(
    (score * tokens).tolist(),
    tokens=tokens.tolist(),
    folds=folds.tolist(),
    sources=rng.choice(['web', 'books'], 1000).tolist(),
  )


@pytest.mark.parametrize('keep', ['top', 'bottom', 'middle', 'band', 'sample'])
def test_folds_are_kept_alike(folded, keep):
  fields = {
    'band': {'low': 0.1, 'high': 0.4},
    'sample': {'fraction': 0.3, 'temperature': 0.1},
  }.get(keep, {'fraction': 0.3})
  kept = rules.apply((rule(keep, MEAN, unit='examples', **fields),), folded, 0)
  fold = folded.table['fold'].to_numpy()
  for number in (0, 1):
    assert kept[fold == number].mean() == pytest.approx(0.3, abs=0.02)


def test_ranks_within_a_fold_by_hand(make_examples):
  examples = make_examples(
    [1.0, 2.0, 2.0, 3.0, 70.0, 60.0], folds=[0, 0, 0, 0, 1, 1]
  )
  found = rules.ranking(examples, 'nll_sum')
  assert found.tolist() == [0.125, 0.5, 0.5, 0.875, 0.75, 0.25]
  assert rules.ranked_within_folds(examples, 'nll_sum')


@pytest.mark.parametrize('expression', ['num_tokens', 'unigram_nll_sum * 2'])
def test_scores_without_a_model_are_in_one_scale(folded, expression):
  assert not rules.ranked_within_folds(folded, expression)
  assert rules.ranking(folded, expression).tolist() == (
    expressions.score(folded, expression).tolist()
  )


def test_one_fold_is_in_one_scale(many):
  assert rules.ranking(many, 'nll_sum').tolist() == (
    many.table['nll_sum'].to_pylist()
  )


def test_a_threshold_over_two_scales_is_refused(folded):
  with pytest.raises(UserError, match=r"threshold' .* keep='band'"):
    kept_by(rule('threshold', MEAN, low=3.0), folded)
  assert kept_by(rule('threshold', 'num_tokens', low=50), folded)


@pytest.mark.parametrize(
  'expression, expected',
  [
    ('nll_sum / num_tokens', True),
    ('-NLL_SUM', True),
    ('unigram_nll_sum / num_tokens', False),
    ('compressed_bytes / num_bytes', False),
    ('', False),
  ],
)
def test_who_reads_the_reference(expression, expected):
  assert expressions.reads_reference(expression) is expected
