"""The whole job on an object store that fails: the results of one that does not.

Each run meets faults, and a SIGKILL, that its seed decides. All runs:

  make test-fire

A run that fails names its seed; `--fire-seeds=7 --fire-first=7` runs it alone.
"""

import pathlib
import subprocess
import sys

import object_store
import pytest
from fault_proxy import Plan
from under_fire import CONFIG, HOSTS, JOB, Fire, put_corpus

from infoprune_jax import main

ROOT = pathlib.Path(__file__).parent.parent
RATE = 0.002  # of 16,000 requests: about 30 faults in a run
emulator = pytest.fixture(scope='module')(object_store.serving)


def pytest_generate_tests(metafunc):
  if 'seed' in metafunc.fixturenames:
    option = metafunc.config.getoption
    seeds = range(option('--fire-first'), option('--fire-seeds') + 1)
    metafunc.parametrize('seed', seeds)


@pytest.fixture(scope='module')
def fire(emulator, tmp_path_factory) -> Fire:
  folder = tmp_path_factory.mktemp('fire')
  (folder / 'config.py').write_text(CONFIG)
  put_corpus(emulator, folder)
  return Fire(emulator, folder / 'config.py', folder)


@pytest.fixture(scope='module')
def undisturbed(fire, tmp_path_factory):
  """The workdir of a run without faults, by how it goes."""
  made = {}

  def undisturbed(how: str) -> pathlib.Path:
    if how not in made:
      made[how] = tmp_path_factory.mktemp('undisturbed') / 'work'
      result = fire.run(how, str(made[how]), None)
      assert not result.faults and not result.unforeseen
    return made[how]

  return undisturbed


def test_results_are_those_of_an_undisturbed_run(
  fire, emulator, undisturbed, seed
):
  how = (HOSTS, JOB)[seed % 2]
  result = fire.run(how, f'gs://{object_store.BUCKET}/{seed}', Plan(seed, RATE))
  print(f'\n{how}, {result}')
  assert sum(result.faults.values()) >= 10
  # The job ends by itself under these faults: nobody starts it again.
  assert not result.unforeseen
  compared = subprocess.run(
    [
      *(sys.executable, 'tools/compare_workdirs.py'),
      *(undisturbed(how), emulator.folder(str(seed))),
    ],
    cwd=ROOT,
    capture_output=True,
    text=True,
  )
  assert compared.returncode == 0, compared.stdout + compared.stderr


@pytest.mark.parametrize('job', [None, 'tokenize'])
def test_a_bucket_that_may_not_be_written_is_refused_first(fire, emulator, job):
  workdir = f'gs://{object_store.BUCKET}/refused'
  arguments = [f'--job={job}'] if job else []
  code, output = fire.refused(workdir, arguments)
  assert code == main.USER_ERROR
  [line] = [line for line in output.splitlines() if 'infoprune_jax' in line]
  assert f'{workdir}' in line and 'cannot be written: Forbidden' in line
  assert 'Traceback' not in output and 'took' not in output
  assert not emulator.folder('refused').exists()
