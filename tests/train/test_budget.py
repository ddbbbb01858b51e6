import dataclasses
import math

import pytest
from hypothesis import given, settings, strategies as st

from infoprune_jax.config.validation import UserError
from infoprune_jax.train import optimizer

FLOPS_PER_TOKEN = 1e6


@pytest.fixture(scope='module')
def training(small):
  """Of batches of 512 tokens."""
  return small.train.training


def of(training, **budget):
  zero = dict(num_steps=0, num_tokens=0, num_flops=0.0)
  return dataclasses.replace(training, warmup_steps=0, **{**zero, **budget})


@given(st.integers(1, 2**40))
@settings(max_examples=50)
def test_as_many_whole_steps_as_a_budget_pays_for(training, size):
  a_step = training.tokens_per_step
  by_tokens = of(training, num_tokens=size)
  steps = by_tokens.whole_steps(FLOPS_PER_TOKEN)
  assert steps * a_step <= size < (steps + 1) * a_step
  by_flops = of(training, num_flops=size * FLOPS_PER_TOKEN)
  assert by_flops.whole_steps(FLOPS_PER_TOKEN) == steps
  if steps:
    expected = of(training, num_steps=steps)
    for given_ in (expected, by_tokens, by_flops):
      assert given_.in_steps(FLOPS_PER_TOKEN, 'train') == expected


def test_less_than_a_step_is_refused(training):
  for budget in ({'num_tokens': 511}, {'num_flops': 511e6}):
    with pytest.raises(UserError, match='is less than one step') as error:
      of(training, **budget).in_steps(FLOPS_PER_TOKEN, 'train.training')
    assert f'train.training.{next(iter(budget))}=' in str(error.value)
    assert '512 tokens and 5.12e+08 FLOPs' in str(error.value)


def test_a_budget_shorter_than_its_warm_up_is_refused(training):
  short = dataclasses.replace(of(training, num_tokens=5000), warmup_steps=10)
  with pytest.raises(
    UserError, match=r'num_tokens=5000 comes to 9 steps: .*\['
  ):
    short.in_steps(FLOPS_PER_TOKEN, 'train.training')


def schedule_of(training, **fields):
  training = dataclasses.replace(
    of(training, num_steps=100),
    **{
      'warmup_steps': 10,
      'learning_rate': 1.0,
      'final_learning_rate_ratio': 0.1,
      **fields,
    },
  )
  return optimizer.learning_rate_schedule(training)


@pytest.mark.parametrize(
  'name, expected',
  [
    ('cosine', {55: 0.55, 100: 0.1}),
    ('linear', {11: 0.99, 55: 0.55, 99: 0.11, 100: 0.1}),
    ('wsd', {11: 1.0, 80: 1.0, 90: 0.55, 100: 0.1}),
    ('constant', {11: 1.0, 55: 1.0, 100: 1.0}),
  ],
)
def test_schedules_by_hand(training, name, expected):
  schedule = schedule_of(training, schedule=name, decay_fraction=0.2)
  for step, value in {0: 0.0, 5: 0.5, 10: 1.0, **expected}.items():
    assert schedule(step) == pytest.approx(value, rel=1e-5), step


@pytest.mark.parametrize('name', ['cosine', 'linear', 'wsd', 'constant'])
@pytest.mark.parametrize('warmup_steps', [0, 1, 99, 100])
@pytest.mark.parametrize('decay_fraction', [0.0, 1.0])
def test_every_step_has_a_rate(training, name, warmup_steps, decay_fraction):
  if name == 'wsd' and warmup_steps:
    decay_fraction = 0.0  # Both do not fit.
  schedule = schedule_of(
    training,
    schedule=name,
    warmup_steps=warmup_steps,
    decay_fraction=decay_fraction,
  )
  rates = [float(schedule(step)) for step in (0, 1, 50, 99)]
  assert all(0.0 <= rate <= 1.0 and math.isfinite(rate) for rate in rates)
  assert warmup_steps or rates[0] == 1.0
  assert not warmup_steps or rates[0] == 0.0


def test_a_longer_wsd_repeats_the_steps_before_decay(training):
  """So a run can go on from a checkpoint before it."""
  short = schedule_of(training, schedule='wsd', decay_fraction=0.2)
  longer = schedule_of(
    training, schedule='wsd', decay_fraction=0.2, num_steps=200
  )
  assert [float(short(s)) for s in range(81)] == [
    float(longer(s)) for s in range(81)
  ]
  assert short(90) != longer(90)
