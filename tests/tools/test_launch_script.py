"""tools/launch.py as a command, beside an object store and a cluster."""

import gzip
import os
import pathlib
import re
import shlex
import subprocess
import sys

import launching_docs
import object_store
import pytest
from fake_commands import FakeCommand
from kubectl_answers import jobset
from object_store import BUCKET
from small_corpus import write_corpus

ROOT = pathlib.Path(__file__).parents[2]
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
        *('--image=pkg/mine:1', '--config.mesh.tensor=2', *arguments),
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
    *('--config=mine.py', '--config.mesh.tensor=2', f'--workdir={WORKDIR}'),
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
    (('--name=a-name-that-is-much-longer',), 'at most 23 lower-case letters'),
    (('--slices=2',), 'mesh.dcn_data=1 times mesh.dcn_fsdp=1 is 1'),
    (('--config.mesh.data=3',), 'mesh'),
  ],
)
def test_a_wrong_argument_starts_nothing(launch, arguments, message):
  done = launch(*arguments)
  assert done.returncode == 2, done.stderr
  assert message in done.stderr and 'Traceback' not in done.stderr
  assert not launch.kubectl.calls()


def test_the_figures_of_the_page_are_what_a_dry_run_computes(
  tmp_path, emulator
):
  emulator.put('c4/en/c4-train.00000.json.gz', gzip.compress(b'{"text": "a"}'))
  (tmp_path / 'configs').mkdir()
  (tmp_path / 'configs/c4.py').write_text(launching_docs.config())
  [_, *arguments], _ = launching_docs.commands('launch.py')
  done = subprocess.run(
    [sys.executable, str(ROOT / 'tools/launch.py'), *arguments],
    cwd=tmp_path,
    env={**os.environ, **emulator.environment, 'PYTHONPATH': str(ROOT)},
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stderr
  computed = {}
  for line in done.stdout.splitlines():
    figures = re.findall(r'([\d.e+]+) (?:FLOP|chip-hours|h)|\$([\d.]+)', line)
    if figures and line[0] != '/':
      name = (
        'train, each of 10' if line.startswith('train-') else line.split()[0]
      )
      values = [one or two for one, two in figures]
      # The runs have the same cost.
      assert computed.setdefault(name, values) == values
  for name, (flops, *others) in computed.items():
    row = ' | '.join([name, flops.replace('e+', 'e'), *others])
    assert f'| {row} |' in launching_docs.TEXT, row
  assert len(computed) == 5
