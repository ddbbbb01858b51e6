"""tools/launch_batch.py: what it submits, and how it follows a job."""

import json
import pathlib
import subprocess
import sys

import pytest
from fake_commands import FakeCommand

ROOT = pathlib.Path(__file__).parents[2]
JOB = ('--config=configs/mine.py', '--workdir=gs://bucket/mine', '--job=select')


def launch(gcloud, *arguments, job=JOB):
  command = [sys.executable, 'tools/launch_batch.py', '--name=mine-select']
  place = ('--image=pkg/mine:1', '--project=ours', '--zone=us-west4-a')
  return subprocess.run(
    [*command, *place, '--poll_seconds=0', *arguments, '--', *job],
    cwd=ROOT,
    env=gcloud.environment,
    capture_output=True,
    text=True,
    timeout=60,
  )


@pytest.fixture
def gcloud(tmp_path):
  """A project without the job."""
  made = FakeCommand(tmp_path, 'gcloud')
  made.answer('describe', error='NOT_FOUND: no such job', code=1)
  return made


def test_a_job_is_submitted_and_followed(gcloud):
  for state in ('QUEUED', 'RUNNING', 'SUCCEEDED'):
    gcloud.answer('describe', output=f'{state}\n')
  done = launch(gcloud, '--cpu=4', '--memory_gib=8', '--spot')
  assert done.returncode == 0, done.stderr
  assert 'mine-select is RUNNING' in done.stderr
  [submitted] = gcloud.calls('submit')
  assert submitted == [
    *('batch', 'jobs', 'submit', 'mine-select', '--location=us-west4'),
    *('--project=ours', '--config=-'),
  ]
  [text] = gcloud.inputs()
  [group] = json.loads(text)['taskGroups']
  task = group['taskSpec']
  assert task['computeResource'] == {'cpuMilli': 4000, 'memoryMib': 8192}
  [runnable] = task['runnables']
  assert runnable['container']['commands'][2:] == [*JOB]
  [policy] = task['lifecyclePolicies']
  assert policy['action'] == 'FAIL_TASK'
  assert policy['actionCondition'] == {'exitCodes': [1, 2]}
  dry = launch(gcloud, '--cpu=4', '--memory_gib=8', '--spot', '--dry_run')
  first, *lines, last = dry.stdout.splitlines()
  assert first == f"gcloud {' '.join(submitted)} <<'EOF'" and last == 'EOF'
  assert json.loads('\n'.join(lines)) == json.loads(text)
  assert len(gcloud.calls('submit')) == 1


def test_a_job_that_fails_says_why(gcloud):
  gcloud.answer('statusEvents', output='Task failed with exit code 2')
  gcloud.answer('status.state', output='FAILED')
  done = launch(gcloud)
  assert done.returncode == 1
  assert 'Task failed with exit code 2' in done.stderr


def test_one_that_runs_is_followed_and_one_that_ended_is_replaced(tmp_path):
  gcloud = FakeCommand(tmp_path, 'gcloud')
  gcloud.answer('describe', output='RUNNING')
  gcloud.answer('describe', output='SUCCEEDED')
  assert launch(gcloud).returncode == 0
  assert not gcloud.calls('submit')
  gcloud.answer('describe', output='DELETION_IN_PROGRESS')
  gcloud.answer('describe', error='NOT_FOUND', code=1)
  gcloud.answer('describe', output='SUCCEEDED')
  assert launch(gcloud).returncode == 0
  verbs = [call[2] for call in gcloud.calls()]
  assert verbs.index('delete') < verbs.index('submit')


@pytest.mark.parametrize(
  ('error', 'hint'),
  [
    ('Reauthentication required.', 'gcloud auth login'),
    ('RESOURCE_EXHAUSTED: Quota exceeded: CPUS', 'ask for a larger quota'),
  ],
)
def test_a_refusal_says_how_to_fix_it(gcloud, error, hint):
  gcloud.answer('submit', error=error, code=1)
  done = launch(gcloud)
  assert done.returncode == 1
  assert error in done.stderr and hint in done.stderr
  assert 'Traceback' not in done.stderr


def test_a_wrong_argument_starts_nothing(gcloud):
  done = launch(gcloud, job=JOB[:2])
  assert done.returncode == 2
  assert '--job=... is missing after --' in done.stderr
  assert not gcloud.calls()
