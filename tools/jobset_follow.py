"""Creates a JobSet with kubectl, prints the log of its first pod, and waits."""

import datetime
import json
import subprocess
import sys
import time

CREATE = ('create', '--filename', '-')
_MAX_FAILURES = 6  # polls in a row that may fail, as when a network is down
_OF_JOBSET = 'jobset.sigs.k8s.io/jobset-name'
_OF_JOB = 'jobset.sigs.k8s.io/job-index'
_OF_POD = 'batch.kubernetes.io/job-completion-index'
# What kubectl prints, and what to do about it.
_HINTS = {
  ('Unauthorized', 'logged in', 'auth-plugin', 'invalid_grant'): (
    'log in with `gcloud auth login`, and get the credentials of the cluster '
    'with `gcloud container clusters get-credentials`'
  ),
  ('no matches for kind', "doesn't have a resource type"): (
    'install JobSet in the cluster'
  ),
  ('exceeded quota',): 'raise the quota of the namespace, or end other jobs',
  ('refused', 'no such host', 'Unable to connect'): (
    'get the credentials of the cluster with `gcloud container clusters '
    'get-credentials`, and check the network'
  ),
}


class Refused(Exception):
  """kubectl cannot do what it is asked; the message says how to fix it."""

  def __init__(self, message: str, *, is_final: bool = False):
    """Notes whether asking again is useless."""
    super().__init__(message)
    self.is_final = is_final


class Cluster:
  """The cluster that kubectl is configured for."""

  def __init__(self, namespace: str):
    """Commands are for this namespace."""
    self._namespace = namespace

  def command(self, *arguments: str) -> list[str]:
    """A command of kubectl."""
    return ['kubectl', f'--namespace={self._namespace}', *arguments]

  def run(self, *arguments: str, text: str = '') -> str:
    """Runs kubectl with a text as its input, and returns its output.

    Raises:
      Refused: kubectl is missing, or it fails.
    """
    command = self.command(*arguments)
    try:
      done = subprocess.run(command, input=text, capture_output=True, text=True)
    except FileNotFoundError:
      raise Refused(
        'kubectl is not on the PATH: install it, with the plugin '
        'gke-gcloud-auth-plugin.',
        is_final=True,
      ) from None
    if done.returncode:
      raise _refused(' '.join(command[2:4]), done.stderr.strip())
    return done.stdout

  def get(self, *arguments: str) -> dict:
    """What `kubectl get` says, as JSON; {} if there is nothing.

    Raises:
      Refused: as `run`.
    """
    answer = self.run('get', *arguments, '--ignore-not-found', '--output=json')
    return json.loads(answer) if answer.strip() else {}


def _refused(what: str, reason: str) -> Refused:
  for words, hint in _HINTS.items():
    if any(word in reason for word in words):
      return Refused(
        f'kubectl {what}: {reason}\nTo fix it: {hint}.',
        is_final='log in' in hint,
      )
  return Refused(f'kubectl {what}: {reason}')


def run(cluster: Cluster, wanted: dict, poll_seconds: float) -> int:
  """Runs a JobSet to its end, or follows the one there is.

  Args:
    cluster: Where it runs.
    wanted: The manifest.
    poll_seconds: How often to look.

  Returns:
    0 if it is done, 1 if it failed.

  Raises:
    Refused: the JobSet cannot be created or followed, or one with other
      arguments runs under its name.
  """
  name = wanted['metadata']['name']
  existing = cluster.get('jobset', name)
  if existing and ended(existing):
    cluster.run('delete', 'jobset', name)
    existing = {}
  if existing:
    _check_same(existing, wanted)
    _say(f'{name} runs already: following it')
  else:
    cluster.run(*CREATE, text=json.dumps(wanted))
    _say(f'{name} is created')
  return _Follower(cluster, wanted).follow(poll_seconds)


def ended(jobset: dict) -> str:
  """'Completed' or 'Failed'; '' if neither."""
  conditions = jobset.get('status', {}).get('conditions', [])
  for condition in conditions:
    if condition['status'] == 'True' and condition['type'] in (
      'Completed',
      'Failed',
    ):
      return condition['type']
  return ''


def _check_same(existing: dict, wanted: dict) -> None:
  """Raises `Refused` if a JobSet runs something else than what is wanted."""
  theirs, ours = _command(existing), _command(wanted)
  if theirs != ours:
    name = wanted['metadata']['name']
    raise Refused(
      f'{name} runs with other arguments: expected {ours}, got {theirs}. '
      f'Choose another --name, or end it with `kubectl delete jobset {name}`.'
    )


def _command(jobset: dict) -> tuple[str, list[str]]:
  """The image and the arguments of a JobSet."""
  [job] = jobset['spec']['replicatedJobs']
  [container] = job['template']['spec']['template']['spec']['containers']
  return container['image'], container['args']


class _Follower:
  """Prints what happens to a JobSet."""

  def __init__(self, cluster: Cluster, wanted: dict):
    self._cluster, self._name = cluster, wanted['metadata']['name']
    [job] = wanted['spec']['replicatedJobs']
    self._num_pods = job['replicas'] * job['template']['spec']['parallelism']
    self._said = ''
    self._restarts = 0
    self._log: subprocess.Popen | None = None
    self._log_of = ''  # the name of the pod
    self._read_at = ''  # when the log was last open

  def follow(self, poll_seconds: float) -> int:
    """Returns 0 if the JobSet completes, 1 if it fails."""
    failures = 0
    try:
      while True:
        try:
          state = self._look()
          failures = 0
        except Refused as refused:
          failures += 1
          if refused.is_final or failures >= _MAX_FAILURES:
            raise Refused(
              f'{refused}\n{self._name} itself goes on: the same command '
              'follows it again.'
            ) from None
          state = ''
        if state:
          return 0 if state == 'Completed' else 1
        time.sleep(poll_seconds)
    finally:
      self._end_log()

  def _look(self) -> str:
    """Looks once; returns how the JobSet has ended, '' if it has not."""
    jobset = self._cluster.get('jobset', self._name)
    if not jobset:
      raise Refused(f'{self._name} was deleted while it ran.', is_final=True)
    pods = self._cluster.get(
      'pods', f'--selector={_OF_JOBSET}={self._name}'
    ).get('items', [])
    restarts = jobset.get('status', {}).get('restarts', 0)
    if restarts > self._restarts:
      most = jobset['spec']['failurePolicy']['maxRestarts']
      _say(f'{self._name}: restart {restarts} of at most {most}')
      self._restarts = restarts
    self._say_pods(pods)
    self._read_log(pods)
    state = ended(jobset)
    if state == 'Failed':
      reasons = [
        condition.get('message', '')
        for condition in jobset['status']['conditions']
        if condition['type'] == 'Failed'
      ]
      _say(f'{self._name} failed: {" ".join(reasons)}')
    elif state:
      _say(f'{self._name} is done')
    return state

  def _say_pods(self, pods: list[dict]) -> None:
    """How many pods run, why others wait, and how some ended; on a change."""
    phases = [pod['status'].get('phase') for pod in pods]
    parts = [f'{phases.count("Running")} of {self._num_pods} pods run']
    waits = {
      condition['message']
      for pod in pods
      for condition in pod['status'].get('conditions', [])
      if condition['type'] == 'PodScheduled'
      and condition['status'] == 'False'
      and 'message' in condition
    }
    parts += [f'waiting: {reason}' for reason in sorted(waits)]
    parts += [line for pod in pods if (line := _failure(pod))]
    text = '; '.join(parts)
    if text != self._said:
      _say(f'{self._name}: {text}')
      self._said = text

  def _read_log(self, pods: list[dict]) -> None:
    """Prints the log of the first pod, from where it was read."""
    if self._log and self._log.poll() is None:
      return
    first = [
      pod
      for pod in pods
      if pod['metadata'].get('labels', {}).get(_OF_JOB) == '0'
      and pod['metadata']['labels'].get(_OF_POD) == '0'
      and pod['status'].get('phase') in ('Running', 'Succeeded', 'Failed')
    ]
    if not first:
      return
    name, phase = first[0]['metadata']['name'], first[0]['status']['phase']
    since = []
    if name == self._log_of:
      if phase != 'Running':  # All of it has been printed.
        return
      since = [f'--since-time={self._read_at}']
    self._log_of = name
    self._log = subprocess.Popen(
      self._cluster.command('logs', name, '--follow', *since)
    )
    self._read_at = f'{datetime.datetime.now(datetime.UTC):%Y-%m-%dT%H:%M:%SZ}'

  def _end_log(self) -> None:
    if self._log:
      try:
        self._log.wait(10)
      except subprocess.TimeoutExpired:
        self._log.kill()


def _failure(pod: dict) -> str:
  """How the container of a pod ended; '' if it did not fail."""
  for container in pod['status'].get('containerStatuses', []):
    end = container.get('state', {}).get('terminated')
    if end and end['exitCode']:
      reason = end.get('reason', 'Error')
      because = '' if reason == 'Error' else f' ({reason})'
      name = pod['metadata']['name']
      return f'{name} ended with code {end["exitCode"]}{because}'
  return ''


def _say(text: str) -> None:
  print(f'launch_gke: {text}', file=sys.stderr, flush=True)
