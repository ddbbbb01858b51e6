"""The budget at which the baseline has the loss of an arm."""

import numpy as np
import pytest

from infoprune_jax.report.results import gains
from infoprune_jax.report.results.statistics import HeldoutLosses

RUNS = {'full': 1.0, 'full_x0_7': 0.7, 'full_x1_4': 1.4}


def losses(noise: float = 0.0, slope: float = 0.2, **equal_to) -> HeldoutLosses:
  """Nats per token fall by `slope` times the logarithm of the budget.

  Args:
    noise: Of each text and run.
    slope: The slope.
    **equal_to: For each arm, the budget at which the baseline has its loss.
  """
  rng = np.random.default_rng(0)
  arms = {**RUNS, **equal_to}
  shape = (len(arms), 1, 400)
  nats = 3.0 - slope * np.log([*arms.values()])[:, None, None]
  nats = nats + rng.normal(0.0, 0.5, 400) + rng.normal(0.0, noise, shape)
  documents = {
    'source': np.repeat(np.arange(8), 50),
    'content_hash': np.arange(400),
    'shard': np.zeros(400, int),
    'doc_index': np.arange(400),
    'num_tokens': np.full(400, 100),
    'num_bytes': np.full(400, 400),
    'nll_sum': nats * 100,
  }
  sources = [f'source {k}' for k in range(8)]
  return HeldoutLosses.from_documents([*arms], [0], sources, documents)


def budgets(made: HeldoutLosses) -> dict:
  arms = [name for name in made.arms if name not in RUNS]
  measure = 'macro_bits_per_byte'
  return gains.equivalent_budgets(made, RUNS, arms, measure, 200, 0)


@pytest.mark.parametrize('budget', [0.8, 1.0, 1.3])
def test_the_budget_of_an_equal_loss(budget):
  found = budgets(losses(top=budget))['top']
  assert found == pytest.approx(dict.fromkeys(found, budget))


def test_nothing_is_extrapolated():
  found = budgets(losses(much=3.0, little=0.2))
  assert found['much']['estimate'] == pytest.approx(1.4)
  assert found['little']['high'] == pytest.approx(0.7)


@pytest.mark.parametrize(
  ('loss', 'budget'), [(3.5, 0.7), (2.75, 0.7**0.5), (2.5, 1.0), (2.4, 1.4)]
)
def test_a_curve_that_rises_again(loss, budget):
  curve, logarithms = np.array([3.0, 2.5, 2.6]), np.log([0.7, 1.0, 1.4])
  found = gains._budget_of(loss, curve, logarithms)
  assert found == pytest.approx(budget)


def test_the_interval_covers_the_truth():
  found = budgets(losses(noise=0.05, top=1.2))['top']
  assert 0.7 < found['low'] < 1.2 < found['high'] < 1.4
  assert found['low'] < found['estimate'] < found['high']


def test_a_baseline_that_does_not_improve_tells_nothing():
  assert budgets(losses(slope=-0.1, top=1.2)) == {'top': None}


def test_flops_by_hand():
  """An arm of 100 and 50 for its score; a baseline of 100 alone."""
  budget = {'estimate': 1.2, 'low': 0.9, 'high': 1.4}
  arm = {'training': 100.0, 'total': 150.0}
  found = gains.factors(budget, arm, {'training': 100.0, 'total': 100.0})
  assert found['training'] == pytest.approx(budget)
  total = {'estimate': 0.8, 'low': 0.6, 'high': 1.4 / 1.5}
  assert found['total'] == pytest.approx(total)
  # A baseline that ranks by the score, too, pays for it once.
  found = gains.factors(budget, arm, {'training': 100.0, 'total': 150.0})
  assert found['total']['estimate'] == pytest.approx(170 / 150)


def test_the_same_texts():
  made = losses(top=1.2)
  some = made.where(made.content_hash % 3 == 0)
  same = gains.same_texts(made, some)
  np.testing.assert_array_equal(same.content_hash, some.content_hash)
