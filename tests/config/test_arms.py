"""Phases of arms, as a config file gives them."""

import pytest
from plain_configs import edits_of

from configs import base
from infoprune_jax.config import experiment, validation
from infoprune_jax.config.arms import BranchConfig
from infoprune_jax.config.experiment import Config
from infoprune_jax.config.validation import UserError

TOP = base.arm('top', base.INFORMATION, fraction=0.5)
ALL = base.arm('all')


def config(*, trained=(), **arms) -> Config:
  edits = edits_of('base')
  edits.select.arms.update(arms)
  edits.train.arms = trained
  return experiment.from_mapping(edits)


def test_phases_are_arms_and_branches():
  made = config(
    late=base.branch('full', at=0.5, then=(base.arm('distinct'), TOP)),
    end=base.branch('late', at=0.8, then=ALL),
    three=base.phases((0.0, ALL), (0.3, TOP), (0.7, ALL)),
  )
  select = made.select
  assert select.branches['late'] == BranchConfig(arm='full', at=0.5)
  assert [rule.keep for rule in select.arms['late']] == ['distinct', 'top']
  assert select.phases('end') == ((0.0, 'full'), (0.5, 'late'), (0.8, 'end'))
  names = ('three_phase_1', 'three_phase_2', 'three')
  assert select.phases('three') == tuple(
    zip((0.0, 0.3, 0.7), names, strict=True)
  )
  assert [select.arms[name][0].keep for name in names] == ['all', 'top', 'all']
  # What is trained, and what starts from what.
  assert made.arms == ('full', 'random', 'late', 'end', 'three')
  assert select.shared('end') == BranchConfig(arm='late', at=0.8)
  assert select.shared('three') is select.shared('full') is None
  # Those of pages and manifests are configs, too.
  assert experiment.from_mapping(validation.to_plain(made)) == made


def test_arms_that_score_themselves_have_keep_sets_where_they_train():
  arms = dict(
    end=base.branch('late', at=0.8, then=TOP, score_with='itself'),
    late=base.branch('full', at=0.5, then=TOP, score_with='itself'),
  )
  made = config(**arms)
  assert made.select.branches['late'] == BranchConfig(
    arm='full', at=0.5, score_with='itself'
  )
  assert made.own_scored == ('late', 'end')  # `end` starts from `late`.
  assert made.selected == ('full', 'random', 'end', 'late')
  some = config(trained=('full', 'late'), **arms)
  assert some.own_scored == ('late',)
  assert some.selected == ('full', 'random', 'late')
  assert experiment.from_mapping(validation.to_plain(made)) == made


def test_scores_of_its_own_need_the_run_of_another_arm():
  first, then = base.branch('full', at=0.5, then=TOP, score_with='itself')
  last = base.phases((0.0, ALL), (0.8, ALL))[1]
  with pytest.raises(UserError, match='needs the checkpoint of another arm'):
    config(a=(*base.phases((0.0, ALL), (0.3, ALL)), then))
  with pytest.raises(UserError, match='the first phase has score_with'):
    config(a=({**base.phases((0.0, TOP))[0], 'score_with': 'itself'}, last))
  # Its second phase is an arm that would not be trained.
  with pytest.raises(UserError, match='a_phase_2 has .*is only a phase of'):
    config(a=(first, then, last))


def budgeted(*budgets: float, baseline: str = 'full', **training) -> Config:
  edits = edits_of('base')
  edits.select.arms.late = base.branch('full', 0.5, TOP)
  edits.report.baseline = baseline
  edits.train.budgets = budgets
  edits.train.training.update(**{'schedule': 'wsd', **training})
  return experiment.from_mapping(edits)


def test_budgets_are_further_runs_of_the_baseline():
  made = budgeted(0.7, 1, 1.4)
  assert made.budget_arms == {'full_x0_7': 0.7, 'full_x1_4': 1.4}
  assert made.arms == ('full', 'random', 'late')
  assert ('full_x1_4', 1) in made.runs


@pytest.mark.parametrize(
  'options, message',
  [
    (dict(schedule='cosine'), "set train.training.schedule='wsd'"),
    (dict(decay_fraction=0.0), 'decay_fraction 0: set'),
    (dict(baseline='late'), "report.baseline, 'late'.* have one phase"),
  ],
)
def test_bad_budgets_are_refused(options, message):
  with pytest.raises(UserError, match=message):
    budgeted(0.7, 1.0, **options)
  for bad in ((0.7, 1.4), (1.4, 1.0), (1.0,), (0.01, 1.0), (1.0, 20.0)):
    with pytest.raises(UserError, match=r'train.budgets must'):
      budgeted(*bad)


@pytest.mark.parametrize(
  'arms, message',
  [
    (dict(a=base.branch('ful', 0.5, TOP)), "'ful'. Did you mean 'full'"),
    (
      dict(a=base.branch('full', 0.5, TOP, score_with='itslef')),
      r"arms.a.*: score_with .* got 'itslef'. Did you mean 'itself'",
    ),
    (dict(a=base.branch('full', 1.0, TOP)), r'0.0, 1.0 of .* in \(0, 1\)'),
    (dict(a=base.branch('full', 0, TOP)), r'0.0, 0.0 of .* in \(0, 1\)'),
    (dict(a=base.phases((0.1, TOP), (0.5, ALL))), 'at 0.1, 0.5 of the steps'),
    (dict(a=base.phases((0.0, TOP))), 'give two or more'),
    (
      dict(a=base.branch('b', 0.5, TOP), b=base.branch('a', 0.5, TOP)),
      'a, which starts from b, which starts from a: this is a cycle',
    ),
    (
      dict(a=base.branch('full', 0.5, TOP), b=base.branch('a', 0.4, TOP)),
      r'arms.b: the phase of a starts at 0.5 of the steps, .* at 0.4',
    ),
    (
      dict(a=base.arm('all_plus_reference'), b=base.branch('a', 0.5, TOP)),
      'arms.b: a has .*trains for more steps',
    ),
    (
      dict(a=base.phases((0.0, TOP), (0.5, ALL)), a_phase_1=TOP),
      "called 'a_phase_1', and so is another arm",
    ),
    (
      dict(trained=('random', 'a'), a=base.branch('full', 0.5, TOP)),
      r"run of 'full', which train.arms leaves out \(random, a\)",
    ),
    (
      dict(trained=('a_phase_1',), a=base.phases((0.0, TOP), (0.5, ALL))),
      "train.arms must be one of 'full', 'random', 'a', got 'a_phase_1'",
    ),
  ],
)
def test_bad_phases_are_refused(arms, message):
  with pytest.raises(UserError, match=message):
    config(**arms)
