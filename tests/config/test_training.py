"""Options of a training run that must fit each other: mixture, budget, schedule."""

from typing import Any

import pytest
from plain_configs import plain

from configs import base
from infoprune_jax.config import experiment as config_lib
from infoprune_jax.config.validation import UserError


def scheduled(*phases: tuple[int, dict[str, float]], **fields: Any) -> Any:
  """`plain()` with a mixture of two sources that changes."""
  value = plain()
  value['train']['training'].update(
    mixture={'web': 1.0, 'new': 0.0},
    mixture_schedule=[base.phase(*phase) for phase in phases],
    **fields,
  )
  return value


def test_a_source_may_come_later():
  value = scheduled((5, {'web': 1.0, 'new': 2.0}), (9, {'web': 0, 'new': 1}))
  training = config_lib.from_mapping(value).train.training
  assert [phase.from_step for phase in training.mixture_schedule] == [5, 9]
  assert training.mixture_schedule[1].weights == {'web': 0.0, 'new': 1.0}
  hash(training)  # What compiles goes by it.


BOTH = {'web': 1.0, 'new': 1.0}


@pytest.mark.parametrize(
  'phases, fields, message',
  [
    ([(0, BOTH)], {}, 'above 0, got 0 after 0'),
    ([(5, BOTH), (5, BOTH)], {}, 'above 0, got 5 after 5'),
    (
      [(5, {'web': 1.0})],
      {},
      r"from step 5 must weigh .* \['new', 'web'\], got",
    ),
    (
      [(5, {'web': 1.0, 'new': 0.0})],
      {},
      "'new' is 0.0 in every phase",
    ),
    (
      [(5, BOTH), (6, dict.fromkeys(BOTH, 0.0))],
      {},
      'step 6 must give a sourc',
    ),
    ([(5, BOTH)], {'reader': 'seqio'}, 'cannot change its mixture while it'),
  ],
)
def test_a_schedule_that_cannot_be(phases, fields, message):
  with pytest.raises(UserError, match=message):
    config_lib.from_mapping(scheduled(*phases, **fields))


@pytest.mark.parametrize('budget', [{'num_tokens': 10**6}, {'num_flops': 1e15}])
def test_a_budget_in_another_unit(budget):
  value = plain()
  value['train']['training'].update(num_steps=0, **budget)
  # Its steps are not known yet.
  value['train']['training'].update(warmup_steps=10**6, schedule='wsd')
  training = config_lib.from_mapping(value).train.training
  assert training.num_steps == training.decay_steps == 0


def test_warm_up_and_decay_must_fit():
  value = plain()
  value['train']['training'].update(schedule='wsd', warmup_steps=400)
  config_lib.from_mapping(value)
  value['train']['training'].update(warmup_steps=401)
  with pytest.raises(
    UserError, match=r'=401 and the 100 steps of decay_fraction'
  ):
    config_lib.from_mapping(value)
