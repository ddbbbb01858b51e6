"""tools/launch_queued_resource.sh, and tpu_worker.sh that it runs on hosts."""

import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest
from fake_commands import FakeCommand

ROOT = pathlib.Path(__file__).parents[2]
JOB = ('--config=configs/mine.py', '--workdir=gs://bucket/mine', '--job=score')
RESOURCE = ('--name=mine', '--tpu=v5e-64', '--project=ours', '--zone=here')
CREATE, DELETE = 'queued-resources create', 'queued-resources delete'
START, READ = 'tpu_worker.sh start', 'tpu_worker.sh read'


def launch(gcloud, *arguments, resource=RESOURCE, job=JOB):
  return subprocess.run(
    [
      'tools/launch_queued_resource.sh',
      *(*resource, '--poll_seconds=0', *arguments, '--', *job),
    ],
    cwd=ROOT,
    env=gcloud.environment,
    capture_output=True,
    text=True,
    timeout=120,
  )


@pytest.fixture
def gcloud(tmp_path):
  """A project without a TPU."""
  made = FakeCommand(tmp_path, 'gcloud')
  not_there = 'ERROR: NOT_FOUND: Resource was not found'
  made.answer('describe', error=not_there, code=1)
  return made


def ends(gcloud, *codes):
  """How the job ends, each time that it is started."""
  for code in codes:
    gcloud.answer(READ, output=f'log of an attempt\n\n{code}')


def order(gcloud, *words):
  """Which of these words the calls have, in order; each call has one or none."""
  calls = [' '.join(call) for call in gcloud.calls()]
  return [word for call in calls for word in words if word in call]


def test_a_tpu_is_requested_used_and_deleted(gcloud):
  for state in ('WAITING_FOR_RESOURCES', 'PROVISIONING', 'ACTIVE'):
    gcloud.answer('describe', output=state)
  gcloud.answer(f'{READ} 1', output='step 1\n\n')
  gcloud.answer(f'{READ} 8', output='step 2\n\n0')
  done = launch(gcloud, '--spot')
  assert done.returncode == 0, done.stderr
  assert done.stdout == 'step 1\nstep 2\n'
  steps = (CREATE, 'queued-resources scp', 'install', START, READ, DELETE)
  assert order(gcloud, *steps) == [*steps[:-1], READ, DELETE]
  [created] = gcloud.calls(CREATE)
  assert created[3:] == [
    *('create', 'mine', '--node-id=mine', '--accelerator-type=v5litepod-64'),
    *('--runtime-version=v2-alpha-tpuv5-lite', '--spot'),
    *('--project=ours', '--zone=here'),
  ]
  [started] = gcloud.calls(START)
  assert {'--node=all', '--worker=all'} <= {*started}
  assert any(' '.join(JOB) + ' --multiprocess' in word for word in started)
  assert 'mine is PROVISIONING' in done.stderr


@pytest.mark.parametrize(
  ('tpu', 'accelerator', 'runtime'),
  [
    ('v4-32', 'v4-32', 'tpu-ubuntu2204-base'),
    ('v5e-8', 'v5litepod-8', 'v2-alpha-tpuv5-lite'),
    ('v5p-128', 'v5p-128', 'v2-alpha-tpuv5'),
    ('v6e-256', 'v6e-256', 'v2-alpha-tpuv6e'),
  ],
)
def test_names_of_the_cloud(gcloud, tpu, accelerator, runtime):
  done = launch(gcloud, '--dry_run', '--slices=2', f'--tpu={tpu}')
  assert done.returncode == 0, done.stderr
  assert f'--accelerator-type={accelerator} ' in done.stdout
  assert f'--runtime-version={runtime} ' in done.stdout
  assert '--node-count=2 --node-prefix=mine' in done.stdout


def test_a_dry_run_prints_the_commands_that_a_run_calls(gcloud):
  dry = launch(gcloud, '--dry_run', '--fetch=results')
  assert dry.returncode == 0, dry.stderr
  assert not gcloud.calls()
  gcloud.answer('describe', output='ACTIVE')
  ends(gcloud, 0)
  done = launch(gcloud, '--fetch=results')
  assert done.returncode == 0, done.stderr
  printed = subprocess.run(
    ['bash', '-c', f'gcloud() {{ printf "%s\\n" "$#" "$@"; }}\n{dry.stdout}'],
    cwd=ROOT,
    capture_output=True,
    text=True,
  ).stdout
  called = [call for call in gcloud.calls() if 'describe' not in call]
  text = ''.join(
    f'{len(call)}\n' + ''.join(f'{w}\n' for w in call) for call in called
  )
  # The folder of the archive is another one each time.
  assert without_folders(printed) == without_folders(text)
  assert 'gs://bucket/mine' in text and 'results' in text


def without_folders(text):
  return re.sub(r'\S+/infoprune_jax.tar.gz', 'ARCHIVE', text)


@pytest.mark.parametrize('codes', [(75,), (137, 143), ('lost',)])
def test_a_dead_worker_starts_all_of_them_again(gcloud, codes):
  gcloud.answer('describe', output='ACTIVE')
  ends(gcloud, *codes, 0)
  done = launch(gcloud)
  assert done.returncode == 0, done.stderr
  assert len(gcloud.calls(START)) == len(codes) + 1
  assert (
    f'restart 1 of at most 20: the job ended with {codes[0]}' in done.stderr
  )
  assert order(gcloud, CREATE, DELETE) == [CREATE, DELETE]


def test_a_tpu_that_is_taken_away_is_requested_again(gcloud):
  gcloud.answer('describe', output='ACTIVE')
  gcloud.answer(READ, output='half of it\n\n')
  gcloud.answer(READ, error='Connection refused', code=255)
  for state in ('SUSPENDED', 'SUSPENDED'):
    gcloud.answer('describe', output=state)
  gcloud.answer('describe', error='NOT_FOUND', code=1)
  gcloud.answer('describe', output='ACTIVE')
  gcloud.answer(READ, output='the rest\n\n0')
  done = launch(gcloud)
  assert done.returncode == 0, done.stderr
  assert done.stdout == 'half of it\nthe rest\n'
  assert order(gcloud, CREATE, DELETE) == [CREATE, DELETE, CREATE, DELETE]
  assert len(gcloud.calls(START)) == 2


def test_a_host_that_never_answers_is_replaced(gcloud):
  gcloud.answer('describe', output='ACTIVE')
  for _ in range(3):
    gcloud.answer('install', error='Connection timed out', code=255)
  gcloud.answer('install')
  ends(gcloud, 0)
  gcloud.answer('describe', output='ACTIVE')
  gcloud.answer('describe', output='ACTIVE')
  gcloud.answer('describe', error='NOT_FOUND', code=1)
  gcloud.answer('describe', output='ACTIVE')
  done = launch(gcloud)
  assert done.returncode == 0, done.stderr
  assert order(gcloud, CREATE, DELETE) == [CREATE, DELETE, CREATE, DELETE]


def test_restarts_end_some_time(gcloud):
  gcloud.answer('describe', output='ACTIVE')
  ends(gcloud, 75)
  done = launch(gcloud, '--max_restarts=2')
  assert done.returncode == 1
  assert 'gives up after 2 restarts' in done.stderr
  assert len(gcloud.calls(START)) == 3
  assert len(gcloud.calls(DELETE)) == 1


def test_an_error_of_the_user_ends_the_job_and_the_tpu(gcloud):
  gcloud.answer('describe', output='ACTIVE')
  gcloud.answer('tail -n 20', output='infoprune_jax: expected, got\n')
  ends(gcloud, 2)
  done = launch(gcloud)
  assert done.returncode == 1
  assert 'failed with code 2' in done.stderr
  assert 'infoprune_jax: expected, got' in done.stdout
  assert len(gcloud.calls(START)) == len(gcloud.calls(DELETE)) == 1


def test_a_quota_that_is_too_small_is_explained(gcloud):
  error = 'ERROR: RESOURCE_EXHAUSTED: Quota limit TPUV5sLitepod exceeded'
  gcloud.answer(CREATE, error=error, code=1)
  done = launch(gcloud)
  assert done.returncode == 1
  assert error in done.stderr
  assert 'the quota of ours in here does not allow 1 x v5e-64' in done.stderr
  assert not gcloud.calls(START) and not gcloud.calls(DELETE)


def test_a_token_that_expires_leaves_the_job_running(gcloud, tmp_path):
  gcloud.answer('describe', output='ACTIVE')
  expired = 'ERROR: There was a problem refreshing: Reauthentication required.'
  gcloud.answer(READ, error=expired, code=1)
  done = launch(gcloud)
  assert done.returncode == 1
  assert "log in with 'gcloud auth login'" in done.stderr
  assert 'queued-resources delete mine --force' in done.stderr
  assert not gcloud.calls(DELETE)
  later = FakeCommand(tmp_path, 'gcloud')
  later.answer('describe', output='ACTIVE')
  ends(later, 0)
  done = launch(later)
  assert done.returncode == 0, done.stderr
  assert order(later, CREATE, START, DELETE) == [START, DELETE]


def test_a_tpu_that_is_kept_is_used_by_the_next_job(tmp_path):
  gcloud = FakeCommand(tmp_path, 'gcloud')
  gcloud.answer('describe', output='ACTIVE')
  ends(gcloud, 0)
  done = launch(gcloud, '--keep')
  assert done.returncode == 0, done.stderr
  assert not gcloud.calls(CREATE) and not gcloud.calls(DELETE)
  assert 'mine is kept and costs' in done.stderr


@pytest.mark.parametrize(
  ('arguments', 'job', 'message'),
  [
    (('--tpu=v7-8',), JOB, '--tpu=v7-8 must be a slice of v4, v5e, v5p or v6e'),
    (('--zone=',), JOB, '--zone=... is missing'),
    (('--slices=two',), JOB, '--slices=two must be a number'),
    (('--tpus=1',), JOB, '--tpus=1 is no option'),
    ((), JOB[:1], '--workdir=gs://... is missing'),
  ],
)
def test_a_wrong_argument_starts_nothing(gcloud, arguments, job, message):
  done = launch(gcloud, *arguments, job=job)
  assert done.returncode == 2
  assert message in done.stderr
  assert not gcloud.calls()


def test_scripts_are_clean():
  beside = pathlib.Path(sys.executable).with_name('shellcheck')
  shellcheck = shutil.which('shellcheck') or str(beside)
  if not os.path.exists(shellcheck):
    pytest.skip('shellcheck is not installed')
  scripts = sorted(map(str, (ROOT / 'tools').glob('*.sh')))
  assert len(scripts) >= 3
  done = subprocess.run([shellcheck, *scripts], capture_output=True, text=True)
  assert done.returncode == 0, done.stdout


class Host:
  """A host with the scripts, and a Python that is one of its own."""

  def __init__(self, folder: pathlib.Path, program: str):
    (folder / 'tools').mkdir()
    shutil.copy(ROOT / 'tools/tpu_worker.sh', folder / 'tools')
    python = folder / '.venv/bin/python'
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/usr/bin/env bash\n{program}\n')
    python.chmod(0o755)
    self._script = folder / 'tools/tpu_worker.sh'
    self.run_folder = folder / 'run'

  def __call__(self, *arguments) -> str:
    variables = {'RUN_FOLDER': str(self.run_folder), 'STOP_SECONDS': '20'}
    return subprocess.run(
      ['bash', str(self._script), *arguments],
      env={**os.environ, **variables},
      check=True,
      capture_output=True,
      text=True,
      timeout=60,
    ).stdout

  def end(self) -> tuple[str, str]:
    """The log and how the job ended, once it has."""
    for _ in range(200):
      log, _, end = self('read', '1').rpartition('\n')
      if end:
        return log, end
      time.sleep(0.05)
    raise AssertionError('the job does not end')


def test_a_host_runs_a_job_and_tells_its_exit_code(tmp_path):
  host = Host(tmp_path, 'printf "%s\\n" "$@"; exit 75')
  host('start', '--job=score', "--config.train.arms=('a',)")
  log, end = host.end()
  expected = [
    '-m',
    'infoprune_jax.main',
    '--job=score',
    "--config.train.arms=('a',)",
  ]
  assert log.splitlines() == expected
  assert end == '75'
  assert host('read', '4') == f'{log[3:]}\n75'


def test_a_job_that_runs_is_not_started_twice(tmp_path):
  """And one with other arguments takes its place, after it has saved."""
  host = Host(
    tmp_path, 'trap "echo saved; exit 143" TERM; echo $3; sleep 60 & wait'
  )
  host('start', 'a')
  first = (host.run_folder / 'pid').read_text()
  host('start', 'a')
  assert (host.run_folder / 'pid').read_text() == first
  assert host('read', '100').endswith('\n')
  host('start', 'b')
  assert (host.run_folder / 'pid').read_text() != first
  host('stop')
  assert host.end() == ('b\nsaved\n', '143')


def test_a_job_without_an_exit_code_is_lost(tmp_path):
  """As after a host has started again."""
  host = Host(tmp_path, 'sleep 60')
  host('start', 'a')
  pid = int((host.run_folder / 'pid').read_text())
  group = os.getpgid(pid)
  os.killpg(group, signal.SIGKILL)
  assert host.end()[1] == 'lost'
