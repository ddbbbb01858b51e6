"""The jobs of tools/launch.py: their graph, costs, and what runs when."""

import dataclasses
import os
import pathlib
import sys

import pytest
from ml_collections import ConfigDict
from small_corpus import small_config

from configs import base
from infoprune_jax import dry_run, stages
from infoprune_jax.config import config_flag, experiment as config_lib

ROOT = pathlib.Path(__file__).parents[2]
sys.path.append(str(ROOT / 'tools'))
import experiment_jobs
import job_runner


@pytest.fixture
def config(corpus_path):
  """Arms that start from another one's run, and other budgets of the baseline."""
  edits = small_config(corpus_path)
  rule = base.arm('top', base.INFORMATION, fraction=0.5)
  edits.select.arms = ConfigDict(
    {
      'full': base.arm('all'),
      'random': base.arm('random', fraction=0.5),
      'late': base.branch('full', at=0.5, then=rule),
      'Top_50': rule,
    },
    sort_keys=False,
  )
  edits.train.budgets = (0.5, 1.0)
  edits.train.training.schedule = 'wsd'
  return config_lib.from_mapping(edits)


def test_each_arm_and_seed_is_a_job_of_its_own(config):
  jobs = experiment_jobs.graph(config)
  names = [job.name for job in jobs]
  trained = [name for name in names if name.startswith('train-')]
  assert len({*names}) == len(names)
  assert len(trained) == 2 * (len(config.arms) + 1)
  by_name = {job.name: job for job in jobs}
  late = by_name['train-late-1']
  assert late.after == ('train-full-1',)
  assert late.config.runs == [('full', 1), ('late', 1)]
  assert by_name['train-full-1'].after == ('select',)
  assert {*by_name['evaluate'].after} == {*trained}
  assert by_name['score'].after == ('reference',)
  assert not by_name['select'].needs_tpu and by_name['score'].needs_tpu
  for place, job in enumerate(jobs):
    assert {*job.after} <= {*names[:place]}


def test_a_stage_that_is_left_out_hands_its_place_on(config):
  """Scores of a model from elsewhere need the token store alone."""
  names = [*stages.needed(config)]
  assert experiment_jobs._before('score', names) == {'reference'}
  names.remove('reference')
  assert experiment_jobs._before('score', names) == {'tokenize'}


def test_the_flags_of_a_job_give_its_config(config):
  for job in experiment_jobs.graph(config):
    train = config.train
    for flag in job.flags:
      option, _, text = flag.partition('=')
      value = config_flag.TupleParser().parse(text)
      name = option.removeprefix('--config.train.')
      train = dataclasses.replace(train, **{name: value})
    assert job.config == dataclasses.replace(config, train=train)


def test_the_jobs_together_cost_what_the_experiment_does(config, tmp_path):
  plan = dry_run.make_plan(config, str(tmp_path))
  plan = experiment_jobs.with_corpus_size(plan, 1_000_000, 1_000)
  totals = dict.fromkeys(stages.needed(config), 0.0)
  for job in experiment_jobs.graph(config):
    totals[job.stage] += experiment_jobs.flops(job, plan)
  for name in ('reference', 'score', 'train', 'evaluate'):
    expected = stages.STAGES[name].cost(plan).flops
    assert expected > 0
    assert totals[name] == pytest.approx(expected, rel=1e-9), name
  assert totals['tokenize'] == 0


@pytest.mark.parametrize('name', ['a_b', 'a-b', 'A_B', 'a.b', 'x' * 80])
def test_names_are_those_of_kubernetes(name):
  others = ['a_b', 'a-b', 'A_B', 'a.b', 'x' * 79, 'x' * 80]
  labels = {experiment_jobs._label(other) for other in others}
  assert len(labels) == len(others)
  assert len(experiment_jobs._label(name)) <= 16


def test_a_finished_job_is_not_started_again():
  """A command of a job ends with code 1 if it runs; those here never should."""
  jobs = [
    experiment_jobs.Job('a', 'tokenize', None),
    experiment_jobs.Job('b', 'score', None, after=('a',)),
  ]
  commands = {'a': ['false'], 'b': ['true']}
  assert job_runner.run(jobs, commands, {'a'}, 1) == 0
  assert job_runner.run(jobs, commands, set(), 1) == 1


def test_as_many_tpus_are_used_as_the_user_allows(tmp_path):
  count = f'cd {tmp_path}; touch $0; ls | wc -l > ../most.$0; sleep 0.3; rm $0'
  jobs = [experiment_jobs.Job(f'j{n}', 'score', None) for n in range(4)]
  commands = {job.name: ['sh', '-c', count, job.name] for job in jobs}
  for parallel in (1, 2):
    assert job_runner.run(jobs, commands, set(), parallel) == 0
    most = [
      int((tmp_path.parent / f'most.{job.name}').read_text()) for job in jobs
    ]
    assert max(most) <= parallel
  assert os.listdir(tmp_path) == []
