"""Rules that use an example several times an epoch."""

import dataclasses

import numpy as np
import pytest
from applied_rules import rule
from hypothesis import given, settings, strategies as st

from infoprune_jax.config import experiment as config_lib
from infoprune_jax.config.selection import UNITS
from infoprune_jax.config.validation import UserError
from infoprune_jax.runtime.hashing import uniform
from infoprune_jax.selection import groups, ranks, repeats, rules

CURVE = ((0.0, 0.0), (0.4, 1.0), (0.95, 7.0))


def applied(examples, *chosen, draw: int = 0) -> np.ndarray:
  return rules.apply(chosen, examples, draw)


def by_the_definition(examples, chosen) -> np.ndarray:
  """What the curve says at each example's rank, in exact sums of weights."""
  score = examples.table['nll_sum'].to_numpy()
  weight = np.asarray(examples.weight(chosen.unit)).astype(int)
  group = groups.of(examples, chosen.per).codes
  expected = []
  for own, here in zip(score, group, strict=True):
    inside = weight * (group == here)
    below = inside[score < own].sum() + inside[score == own].sum() / 2
    rank = below / max(inside.sum(), 1)
    expected.append(np.interp(rank, *zip(*chosen.curve, strict=True)))
  return np.array(expected)


@settings(max_examples=30, deadline=None)
@given(
  scores=st.lists(
    st.sampled_from([-1.0, -0.0, 0.0, 2.0]) | st.floats(-9, 9),
    min_size=1,
    max_size=12,
  ),
  unit=st.sampled_from(UNITS),
  per=st.sampled_from(['', 'source']),
  curve=st.sampled_from([CURVE, ((0.0, 2.0),), ((0.0, 3.5), (1.0, 0.0))]),
  data=st.data(),
)
def test_a_curve_is_read_at_the_rank(
  make_examples, scores, unit, per, curve, data
):
  """Rounded up as often as the fraction says, by a hash of the example."""
  count = len(scores)
  examples = make_examples(
    scores,
    tokens=data.draw(
      st.lists(st.integers(0, 9), min_size=count, max_size=count)
    ),
    sources=data.draw(
      st.lists(st.sampled_from('abc'), min_size=count, max_size=count)
    ),
  )
  chosen = rule('repeat', 'nll_sum', unit=unit, per=per, curve=curve, seed=3)
  expected = by_the_definition(examples, chosen)
  up = uniform(examples.index, 3 + 2**33) < expected % 1.0
  found = applied(examples, chosen)
  assert found.dtype == np.uint8
  assert found.tolist() == (np.floor(expected) + up).tolist()


def test_tokens_of_an_epoch_are_the_area_below_the_curve(
  make_examples, monkeypatch
):
  """Also where buckets hold several values, and whatever a rule drew before."""
  rng = np.random.default_rng(0)
  examples = make_examples(
    rng.normal(1e6, 1e-3, 20_000).tolist(),
    tokens=rng.integers(1, 60, 20_000).tolist(),
  )
  tokens = examples.weight('tokens').astype(int)
  area = 0.4 * 0.5 + 0.55 * 4.0 + 0.05 * 7.0
  chosen = rule('repeat', 'nll_sum', curve=CURVE)
  exact = applied(examples, chosen)
  monkeypatch.setattr(ranks, '_BUCKETS', 500)
  rough = applied(examples, chosen)
  assert 0 < (exact != rough).mean() < 0.02
  for found in (exact, rough):
    assert (found * tokens).sum() / tokens.sum() == pytest.approx(
      area, rel=0.01
    )
  # By the hash of the rounding itself, all that is drawn would be rounded down.
  drawn = rule('random', fraction=0.5, seed=0)
  found = applied(examples, drawn, dataclasses.replace(chosen, seed=1))
  assert (found * tokens).sum() / tokens.sum() == pytest.approx(
    area / 2, rel=0.02
  )


def test_a_rule_before_it_says_what_is_repeated(make_examples):
  """Ranks stay those of all that was scored."""
  examples = make_examples([float(n) for n in range(40)])
  chosen = rule('repeat', 'nll_sum', curve=CURVE)
  low = rule('threshold', 'nll_sum', high=29.5)
  kept = np.arange(40) < 30
  assert applied(examples, low, chosen).tolist() == (
    (applied(examples, chosen) * kept).tolist()
  )
  # Nothing is drawn anew for each seed of training.
  assert applied(examples, chosen).tolist() == (
    applied(examples, chosen, draw=5).tolist()
  )


def test_an_expression_gives_the_count(make_examples, caplog):
  examples = make_examples([0.0, 1.0, 2.75, 300.0], index=[0, 5, 7, 9])
  found = applied(examples, rule('repeat', 'nll_sum'))
  up = uniform(np.array([7]), 2**33)[0] < 0.75
  assert found.tolist() == [0, 1, 2 + up, 255]
  assert 'select: 1 examples would be used more often than' in caplog.text
  found = applied(examples, rule('repeat', 'nll_sum', max_repeats=1))
  assert found.tolist() == [0, 1, 1, 1]
  by_source = rule(
    'repeat', "CASE WHEN source <> 'web' THEN 1 END", missing='lowest'
  )
  assert not applied(examples, by_source).any()


def test_counts_that_mean_nothing_are_refused(make_examples):
  examples = make_examples([0.0, 1.0, -2.0])
  with pytest.raises(UserError, match='negative number of repeats for 1 of 3'):
    applied(examples, rule('repeat', 'nll_sum'))
  examples = make_examples([0.0, 1.0], folds=[0, 1])
  with pytest.raises(UserError, match='give it a curve, which uses ranks'):
    applied(examples, rule('repeat', 'nll_sum'))
  assert applied(examples, rule('repeat', 'nll_sum', curve=CURVE)).any()


@pytest.mark.parametrize(
  'fields, message',
  [
    (dict(curve=((0.1, 0.0), (1.0, 1.0))), 'begin at 0.0 and end at most at 1'),
    (dict(curve=((0.0, 0.0), (1.1, 1.0))), 'begin at 0.0 and end at most at 1'),
    (dict(curve=((0.0, 0.0), (0.4, 1.0), (0.4, 2.0))), 'monotone in rank'),
    (dict(curve=((0.0, 0.0), (0.4, 2.0), (1.0, 1.0))), 'monotone in rank'),
    (dict(curve=((0.0, -1.0),)), 'between 0 and'),
    (dict(curve=((0.0, 3.0),), max_repeats=2), 'select.max_repeats=2'),
    (dict(curve=((0.0, 3.0, 1.0),)), r'write points \(rank, repeats\)'),
    (dict(max_repeats=256), r'must be in \[1, 255\]'),
    (dict(keep='top', curve=CURVE), "are for keep='repeat'"),
    (dict(keep='top', max_repeats=2), "are for keep='repeat'"),
    (dict(fraction=0.5), 'has no budget'),
    (dict(score=''), 'ranks by it'),
  ],
)
def test_a_config_that_means_nothing_is_refused(fields, message):
  with pytest.raises(UserError, match=message):
    rule(**{'keep': 'repeat', 'score': 'nll_sum', **fields})


def test_no_rule_follows_it():
  arms = {'mine': (rule('repeat', '2'), rule('random', fraction=0.5))}
  with pytest.raises(UserError, match='mine: .* must be the last rule'):
    config_lib.SelectConfig(arms=arms)


def test_whole_numbers_stay(make_examples):
  """Whatever the hash: 3 plus nearly 1 must not become 4."""
  expected = np.repeat([0.0, 1.0, 3.0], 1000)
  found = repeats.rounded(
    expected, np.arange(3000), np.ones(3000, bool), 255, seed=0
  )
  assert found.tolist() == expected.tolist()
