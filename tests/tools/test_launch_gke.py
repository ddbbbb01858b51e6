"""tools/launch_gke.py: the manifest, and what it does about failures."""

import json
import pathlib
import subprocess
import sys

import pytest
from fake_commands import FakeCommand
from kubectl_answers import JOB, jobset, pods

from infoprune_jax import main
from infoprune_jax.runtime import peers

ROOT = pathlib.Path(__file__).parents[2]
TPU = ('--tpu=v5e-64',)


def launch(*arguments, job=JOB, environment=None):
  command = [sys.executable, 'tools/launch_gke.py', '--name=mine-score']
  return subprocess.run(
    [
      *command,
      '--image=pkg/mine:1',
      '--poll_seconds=0',
      *arguments,
      '--',
      *job,
    ],
    cwd=ROOT,
    env=environment,
    capture_output=True,
    text=True,
    timeout=60,
  )


def rendered(*arguments) -> dict:
  """The manifest of a dry run."""
  done = launch(*arguments, '--dry_run')
  assert done.returncode == 0, done.stderr
  first, *lines, last = done.stdout.splitlines()
  assert (
    first == "kubectl --namespace=default create --filename - <<'EOF'"
    and last == 'EOF'
  )
  return json.loads('\n'.join(lines))


def job_of(manifest) -> dict:
  [replicated] = manifest['spec']['replicatedJobs']
  return replicated['template']['spec']


@pytest.mark.parametrize(
  'arguments',
  [
    TPU,
    ('--tpu=v6e-8',),
    (*TPU, '--slices=2', '--spot', '--max_restarts=3'),
    ('--cpu=16', '--memory=64Gi', '--spot'),
  ],
)
def test_the_manifest_is_a_job_set(arguments):
  """A field that JobSet does not know would be lost on the way."""
  models = pytest.importorskip('kubeflow_trainer_api.models')
  manifest = rendered(*arguments)
  read = models.JobsetV1alpha2JobSet.from_dict(manifest)
  assert read.to_dict() == manifest
  pod = job_of(manifest)['template']['spec']
  read = models.IoK8sApiCoreV1PodSpec.from_dict(pod)
  assert read.to_dict() == pod


@pytest.mark.parametrize(
  ('name', 'accelerator', 'topology', 'hosts', 'chips'),
  [
    ('v4-8', 'tpu-v4-podslice', '2x2x1', 1, '4'),
    ('v4-128', 'tpu-v4-podslice', '4x4x4', 16, '4'),
    ('v5e-1', 'tpu-v5-lite-podslice', '1x1', 1, '1'),
    ('v5e-8', 'tpu-v5-lite-podslice', '2x4', 1, '8'),
    ('v5e-64', 'tpu-v5-lite-podslice', '8x8', 16, '4'),
    ('v5p-256', 'tpu-v5p-slice', '4x4x8', 32, '4'),
    ('v6e-256', 'tpu-v6e-slice', '16x16', 64, '4'),
    ('tpu7x-128', 'tpu7x', '4x4x4', 16, '4'),
  ],
)
def test_a_slice_has_one_pod_on_each_host(
  name, accelerator, topology, hosts, chips
):
  job = job_of(rendered(f'--tpu={name}'))
  assert job['parallelism'] == job['completions'] == hosts
  pod = job['template']['spec']
  assert pod['nodeSelector'] == {
    'cloud.google.com/gke-tpu-accelerator': accelerator,
    'cloud.google.com/gke-tpu-topology': topology,
  }
  [container] = pod['containers']
  assert container['resources']['limits'] == {'google.com/tpu': chips}
  assert container['args'] == [*JOB, *(['--multiprocess'] if hosts > 1 else [])]


def test_a_lost_host_restarts_the_job_and_an_error_of_the_user_does_not():
  manifest = rendered(*TPU, '--max_restarts=7')
  policy = manifest['spec']['failurePolicy']
  assert policy['maxRestarts'] == 7
  [rule] = policy['rules']
  assert rule['action'] == 'FailJobSet'
  assert rule['onJobFailureReasons'] == ['PodFailurePolicy']
  job = job_of(manifest)
  assert job['backoffLimit'] == 0
  [rule] = job['podFailurePolicy']['rules']
  assert rule['action'] == 'FailJob'
  codes = rule['onExitCodes']
  assert codes['operator'] == 'NotIn'
  assert {peers.LOST_EXIT_CODE, 143, 137} <= {*codes['values']}
  assert not {1, main.USER_ERROR} & {*codes['values']}
  # Kubernetes refuses a policy for containers that restart by themselves.
  assert job['template']['spec']['restartPolicy'] == 'Never'


def test_several_slices_are_as_many_jobs():
  manifest = rendered(*TPU, '--slices=3')
  [replicated] = manifest['spec']['replicatedJobs']
  assert replicated['replicas'] == 3
  assert job_of(manifest)['parallelism'] == 16
  annotations = manifest['metadata']['annotations']
  assert annotations == {
    'alpha.jobset.sigs.k8s.io/exclusive-topology': (
      'cloud.google.com/gke-nodepool'
    )
  }


def test_a_stage_without_a_model_asks_for_no_tpu():
  manifest = rendered('--cpu=16', '--memory=64Gi')
  pod = job_of(manifest)['template']['spec']
  [container] = pod['containers']
  assert container['resources'] == {'requests': {'cpu': '16', 'memory': '64Gi'}}
  assert container['env'] == [{'name': 'JAX_PLATFORMS', 'value': 'cpu'}]
  assert 'nodeSelector' not in pod
  assert 'annotations' not in manifest['metadata']


@pytest.mark.parametrize(
  ('arguments', 'job', 'message'),
  [
    (('--tpu=v5e-63',), JOB, 'choose one of v5e-1, v5e-4'),
    (('--tpu=a100',), JOB, '--tpu=a100 is no slice'),
    ((), JOB, 'give --tpu, or both --cpu and --memory'),
    (('--cpu=4',), JOB, 'give --tpu, or both --cpu and --memory'),
    ((*TPU, '--cpu=4', '--memory=8Gi'), JOB, 'give --tpu, or both'),
    ((*TPU, '--slices=0'), JOB, '--slices=0 must be 1 or more'),
    ((*TPU, '--name=Mine'), JOB, '--name=Mine must have at most 40'),
    (TPU, JOB[1:], '--config=... is missing after --'),
    ((*TPU, '--max_restarts=-1'), JOB, '--max_restarts=-1 must be 0 or more'),
  ],
)
def test_a_wrong_argument_starts_nothing(tmp_path, arguments, job, message):
  kubectl = FakeCommand(tmp_path, 'kubectl')
  done = launch(*arguments, job=job, environment=kubectl.environment)
  assert done.returncode == 2
  assert message in done.stderr
  assert 'Traceback' not in done.stderr
  assert not kubectl.calls()


@pytest.fixture
def kubectl(tmp_path):
  """A cluster that has nothing by the name of the job."""
  made = FakeCommand(tmp_path, 'kubectl')
  made.answer('get jobset')
  return made


def test_a_job_is_created_and_followed_to_its_end(kubectl):
  waits = '0/3 nodes are available'
  kubectl.answer('get jobset', output=jobset())
  kubectl.answer('get jobset', output=jobset())
  kubectl.answer('get jobset', output=jobset('Completed'))
  kubectl.answer('get pods', output=pods('Pending', waits=waits))
  kubectl.answer('get pods', output=pods('Running', 'Running'))
  # A connection that is lost is opened again, for what is new.
  kubectl.answer('logs', '--since-time=20', output='step 2\n')
  kubectl.answer('logs', output='step 1\n')
  done = launch(*TPU, environment=kubectl.environment)
  assert done.returncode == 0, done.stderr
  assert done.stdout == 'step 1\nstep 2\n'
  assert f'waiting: {waits}' in done.stderr
  assert '2 of 16 pods run' in done.stderr
  assert 'mine-score is done' in done.stderr
  assert [json.loads(text) for text in kubectl.inputs()] == [rendered(*TPU)]


def test_a_dead_worker_is_named_and_the_restart_is_told(kubectl):
  kubectl.answer('get jobset', output=jobset())
  kubectl.answer('get jobset', output=jobset(restarts=1))
  kubectl.answer('get jobset', output=jobset('Completed', restarts=1))
  kubectl.answer('get pods', output=pods('Running', 'Failed', code=137))
  kubectl.answer('get pods', output=pods('Running', 'Running'))
  done = launch(*TPU, environment=kubectl.environment)
  assert done.returncode == 0, done.stderr
  assert 'mine-score-worker-0-1-abcde ended with code 137' in done.stderr
  assert 'restart 1 of at most 20' in done.stderr


def test_a_job_that_fails_says_why(kubectl):
  kubectl.answer('get jobset', output=jobset('Failed'))
  kubectl.answer(
    'get pods', output=pods('Failed', code=137, reason='OOMKilled')
  )
  kubectl.answer('logs', output='the error\n')
  done = launch(*TPU, environment=kubectl.environment)
  assert done.returncode == 1
  assert 'ended with code 137 (OOMKilled)' in done.stderr
  assert 'mine-score failed: why' in done.stderr
  assert done.stdout == 'the error\n'


def test_one_that_runs_is_followed_and_one_that_ended_is_replaced(tmp_path):
  kubectl = FakeCommand(tmp_path, 'kubectl')
  kubectl.answer('get jobset', output=jobset())
  kubectl.answer('get jobset', output=jobset('Completed'))
  done = launch(*TPU, environment=kubectl.environment)
  assert done.returncode == 0 and 'runs already' in done.stderr
  assert not kubectl.calls('create') and not kubectl.calls('delete')
  # The next time it is there, Completed.
  done = launch(*TPU, environment=kubectl.environment)
  assert done.returncode == 0, done.stderr
  words = [call[1] for call in kubectl.calls()]
  assert words.index('delete') + 1 == words.index('create')


def test_one_that_runs_something_else_is_left_alone(tmp_path):
  kubectl = FakeCommand(tmp_path, 'kubectl')
  kubectl.answer('get jobset', output=jobset(args=('--job=train',)))
  done = launch(*TPU, environment=kubectl.environment)
  assert done.returncode == 1
  assert 'runs with other arguments' in done.stderr
  assert 'kubectl delete jobset mine-score' in done.stderr
  assert not kubectl.calls('create') and not kubectl.calls('delete')


@pytest.mark.parametrize(
  ('error', 'hint'),
  [
    ('error: You must be logged in to the server', 'gcloud auth login'),
    ('error: no matches for kind "JobSet" in version', 'install JobSet'),
    ('forbidden: exceeded quota: tpus', 'raise the quota'),
  ],
)
def test_a_refusal_says_how_to_fix_it(kubectl, error, hint):
  kubectl.answer('create', error=error, code=1)
  done = launch(*TPU, environment=kubectl.environment)
  assert done.returncode == 1
  assert error in done.stderr and hint in done.stderr
  assert 'Traceback' not in done.stderr


def test_a_network_that_fails_for_a_moment_ends_nothing(kubectl):
  for _ in range(3):
    kubectl.answer('get jobset', error='i/o timeout', code=1)
  kubectl.answer('get jobset', output=jobset('Completed'))
  done = launch(*TPU, environment=kubectl.environment)
  assert done.returncode == 0, done.stderr


def test_a_token_that_expires_leaves_the_job_running(kubectl):
  kubectl.answer('get jobset', output=jobset())
  kubectl.answer('get jobset', error='Unauthorized', code=1)
  done = launch(*TPU, environment=kubectl.environment)
  assert done.returncode == 1
  assert 'gcloud auth login' in done.stderr
  assert 'mine-score itself goes on' in done.stderr
  assert len(kubectl.calls('get jobset')) == 3
