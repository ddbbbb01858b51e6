"""tools/launch.py: the graph of jobs, its costs, and what runs when."""

import dataclasses
import os
import pathlib
import shlex
import subprocess
import sys

import object_store
import pytest
from fake_commands import FakeCommand
from kubectl_answers import jobset
from ml_collections import ConfigDict
from object_store import BUCKET
from small_corpus import small_config, write_corpus

from configs import base
from infoprune_jax import dry_run, stages
from infoprune_jax.config import config_flag, experiment as config_lib

ROOT = pathlib.Path(__file__).parents[2]
sys.path.append(str(ROOT / 'tools'))
import experiment_jobs
import job_runner

CONFIG = f"""
from small_corpus import only_arms, small_config


def get_config():
  config = small_config('gs://{BUCKET}/corpus/*.jsonl')
  config.train.seeds = (0, 1)
  only_arms(config, 'random', 'top_nll')
  return config
"""
WORKDIR = f'gs://{BUCKET}/mine'
emulator = pytest.fixture(scope='module')(object_store.serving)


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
      'Top.50': rule,
    },
    sort_keys=False,
    allow_dotted_keys=True,
  )
  edits.train.budgets = (0.5, 1.0)
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
  assert len(experiment_jobs._label(name)) <= 24


class Launch:
  """The script, in a folder with a config, beside an object store."""

  def __init__(self, folder: pathlib.Path, emulator):
    write_corpus(folder / 'corpus.jsonl')
    emulator.put('corpus/a.jsonl', (folder / 'corpus.jsonl').read_bytes())
    (folder / 'mine.py').write_text(CONFIG)
    self.kubectl = FakeCommand(folder, 'kubectl')
    self._folder = folder
    self._environment = {
      **self.kubectl.environment,
      **emulator.environment,
      'PYTHONPATH': f'{ROOT}:{ROOT}/tests',
    }

  def __call__(self, *arguments):
    command = [sys.executable, str(ROOT / 'tools/launch.py')]
    return subprocess.run(
      [
        *(*command, '--config=mine.py', f'--workdir={WORKDIR}', '--tpu=v5e-16'),
        *('--image=pkg/mine:1', '--config.mesh.fsdp=2', *arguments),
      ],
      cwd=self._folder,
      env=self._environment,
      capture_output=True,
      text=True,
      timeout=300,
    )


@pytest.fixture
def launch(tmp_path, emulator):
  return Launch(tmp_path, emulator)


RATES = ('--tflops_per_chip=80', '--dollars_per_chip_hour=1.5')
SIZE = ('--corpus_tokens=4000000000', '--corpus_documents=4000000')


def test_a_dry_run_prints_hours_dollars_and_commands(launch):
  done = launch('--dry_run', *RATES, *SIZE, '--spot')
  assert done.returncode == 0, done.stderr
  lines = done.stdout.splitlines()
  [score] = [line for line in lines if line.startswith('score ')]
  assert 'to do' in score
  flops, chip_hours = (
    float(score.split(unit)[0].split()[-1]) for unit in (' FLOP', ' chip-hours')
  )
  hours = float(score.split(' h on 16 chips')[0].split()[-1])
  dollars = float(score.split('$')[1])
  assert chip_hours == pytest.approx(flops / 80e12 / 3600, abs=0.06)
  assert hours == pytest.approx(chip_hours / 16, abs=0.01)
  assert dollars == pytest.approx(chip_hours * 1.5, abs=0.1)
  commands = [shlex.split(line) for line in lines if 'launch_gke.py' in line]
  assert len(commands) == sum('to do' in line for line in lines)
  [trained] = [c for c in commands if '--name=mine-train-top-nll-1' in c]
  inner = trained[trained.index('--') + 1 :]
  assert inner == [
    *('--config=mine.py', '--config.mesh.fsdp=2', f'--workdir={WORKDIR}'),
    *('--job=train', "--config.train.arms=('top_nll',)"),
    *('--config.train.seeds=(1,)', '--config.train.budgets=()'),
  ]
  assert {'--tpu=v5e-16', '--slices=1', '--spot'} <= {*trained}
  [tokenized] = [c for c in commands if '--name=mine-tokenize' in c]
  assert {'--cpu=16', '--memory=64Gi'} <= {*tokenized}
  assert '--tpu=v5e-16' not in tokenized
  assert not launch.kubectl.calls()
  # The commands are those that the launcher of a job takes.
  for command in commands[:2]:
    done = subprocess.run(
      [command[0], command[1], '--dry_run', *command[2:]], capture_output=True
    )
    assert done.returncode == 0, done.stderr


def answered(launch, name, condition):
  """A JobSet that is created, and then ends."""
  launch.kubectl.answer(f'get jobset mine-{name} ')
  launch.kubectl.answer(f'get jobset mine-{name} ', output=jobset(condition))


def test_jobs_start_when_those_before_them_are_done(launch):
  """And not after one that failed; others go on."""
  for name in ('tokenize', 'reference', 'score', 'select', 'selection-report'):
    answered(launch, name, 'Completed')
  for name in ('statistics', *('train-random-0', 'train-top-nll-0')):
    answered(launch, name, 'Completed')
  answered(launch, 'train-random-1', 'Failed')
  answered(launch, 'train-top-nll-1', 'Completed')
  done = launch('--parallel=2')
  assert done.returncode == 1, done.stderr
  assert 'train-random-1 failed; not started: evaluate, report' in done.stderr
  created = [
    line.split(' is created')[0].rpartition(' mine-')[2]
    for line in done.stdout.splitlines()
    if ' is created' in line
  ]
  assert created[0] == 'tokenize'
  assert {*created[1:3]} == {'statistics', 'reference'}
  assert created[3:5] == ['score', 'select']
  assert len(created) == 10 and 'train-top-nll-1' in created


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    (('--tpu=v5e-17',), '--tpu=v5e-17 is no slice'),
    (('--workdir=runs/mine',), 'which the jobs do not see'),
    (('--cpus_on=batch',), '--project=... is missing'),
    (('--slices=2',), 'mesh.dcn_data=1 times mesh.dcn_fsdp=1 is 1'),
    (('--config.mesh.data=3',), 'mesh'),
  ],
)
def test_a_wrong_argument_starts_nothing(launch, arguments, message):
  done = launch(*arguments)
  assert done.returncode == 2, done.stderr
  assert message in done.stderr and 'Traceback' not in done.stderr
  assert not launch.kubectl.calls()


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
