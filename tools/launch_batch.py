r"""Runs one job of infoprune_jax that needs no accelerator on Cloud Batch.

    python tools/launch_batch.py --name=mine-tokenize --image=IMAGE \
        --project=PROJECT --zone=us-west4-a --cpu=64 --memory_gib=256 \
        -- --config=configs/mine.py --workdir=gs://bucket/mine --job=tokenize

The arguments after `--` are those of `infoprune_jax.main`. --spot takes machines
that may be taken away: the job then starts again and continues. After an error
that would come again it does not. --dry_run prints the commands.

The same command started again follows a job that runs, and replaces one that
has ended. Logs are in Cloud Logging. Needs the Google Cloud CLI.

Exit codes: 0, the job is done; 1, it failed, or it cannot be followed; 2, an
argument is wrong, and nothing was started.
"""

import argparse
import json
import shlex
import subprocess
import sys
import time

_MAX_FAILURES = 6  # questions in a row that may fail
_FAIL_CODES = [1, 2]  # after these the same command fails again
_LOGIN = ('auth login', 'auth-plugin', 'eauth', 'invalid_grant')
_QUOTA = ('RESOURCE_EXHAUSTED', 'uota')


class Refused(Exception):
  """gcloud cannot do what it is asked."""


def specification(args: argparse.Namespace) -> dict:
  """The job as JSON, by the names of the Batch API, v1."""
  policy = {'provisioningModel': 'SPOT' if args.spot else 'STANDARD'}
  allocation: dict = {'instances': [{'policy': policy}]}
  if args.service_account:
    allocation['serviceAccount'] = {'email': args.service_account}
  container = {
    'imageUri': args.image,
    'entrypoint': 'python',
    'commands': ['-m', 'infoprune_jax.main', *args.job_args],
  }
  task = {
    'runnables': [{'container': container}],
    'environment': {'variables': {'JAX_PLATFORMS': 'cpu'}},
    'computeResource': {
      'cpuMilli': 1000 * args.cpu,
      'memoryMib': 1024 * args.memory_gib,
    },
    'maxRetryCount': 10,  # The most that Batch takes.
    'lifecyclePolicies': [
      {
        'action': 'FAIL_TASK',
        'actionCondition': {'exitCodes': _FAIL_CODES},
      }
    ],
  }
  return {
    'taskGroups': [{'taskCount': 1, 'taskSpec': task}],
    'allocationPolicy': allocation,
    'logsPolicy': {'destination': 'CLOUD_LOGGING'},
  }


def parse(argv: list[str]) -> argparse.Namespace:
  """The arguments; `job_args` are those after `--`."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawTextHelpFormatter
  )
  for name in ('name', 'image', 'project', 'zone'):
    parser.add_argument(f'--{name}', required=True)
  parser.add_argument('--cpu', type=int, default=16)
  parser.add_argument('--memory_gib', type=int, default=64)
  parser.add_argument('--service_account', help='its e-mail')
  parser.add_argument('--spot', action='store_true')
  parser.add_argument('--dry_run', action='store_true')
  parser.add_argument('--poll_seconds', type=float, default=20.0)
  own, job_args = argv, []
  if '--' in argv:
    end = argv.index('--')
    own, job_args = argv[:end], argv[end + 1 :]
  args = parser.parse_args(own)
  flags = {arg.split('=')[0] for arg in job_args}
  for name in ('--config', '--workdir', '--job'):
    if name not in flags:
      parser.error(f'{name}=... is missing after --.')
  args.job_args = job_args
  return args


def command(args: argparse.Namespace, verb: str, *flags: str) -> list[str]:
  """A command of `gcloud batch jobs` about the job."""
  location = args.zone.rpartition('-')[0]
  return [
    *('gcloud', 'batch', 'jobs', verb, args.name, f'--location={location}'),
    *(f'--project={args.project}', *flags),
  ]


def call(arguments: list[str], text: str = '') -> str:
  """The output of a command.

  Raises:
    Refused: it fails; the message says how to fix it.
  """
  try:
    done = subprocess.run(arguments, input=text, capture_output=True, text=True)
  except FileNotFoundError:
    raise Refused(
      'gcloud is not on the PATH: install the Google Cloud CLI.'
    ) from None
  if done.returncode == 0:
    return done.stdout.strip()
  hint = ''
  if any(word in done.stderr for word in _LOGIN):
    hint = 'log in with `gcloud auth login`; a job that runs goes on.'
  elif any(word in done.stderr for word in _QUOTA):
    hint = 'ask for a larger quota, or take another zone or fewer CPUs.'
  raise Refused(f'{done.stderr.strip()}\n{hint}'.strip())


def state(args: argparse.Namespace) -> str:
  """Such as RUNNING; '' if there is no job of this name."""
  try:
    return call(command(args, 'describe', '--format=value(status.state)'))
  except Refused as refused:
    if 'NOT_FOUND' in str(refused):
      return ''
    raise


def run(args: argparse.Namespace, submit: list[str]) -> int:
  """Runs the job to its end, or follows the one there is.

  Raises:
    Refused: gcloud refuses something, several times if it is a question.
  """
  before = state(args)
  if before in ('SUCCEEDED', 'FAILED'):
    call(command(args, 'delete', '--quiet'))
    while state(args):
      time.sleep(args.poll_seconds)
    before = ''
  if not before:
    call(submit, json.dumps(specification(args)))
  failures = 0
  while True:
    try:
      now, failures = state(args), 0
    except Refused as refused:
      failures += 1
      if failures == _MAX_FAILURES or 'auth login' in str(refused):
        raise
      now = before
    if now != before:
      _say(f'{args.name} is {now or "deleted"}')
    before = now
    if now == 'SUCCEEDED':
      return 0
    if now in ('FAILED', 'CANCELLED', ''):
      break
    time.sleep(args.poll_seconds)
  if now:
    why = '--format=value(status.statusEvents.description)'
    _say(call(command(args, 'describe', why)))
  return 1


def _say(text: str) -> None:
  print(f'launch_batch: {text}', file=sys.stderr, flush=True)


def main(argv: list[str]) -> int:
  """Runs the job, or prints the command; returns the exit code."""
  args = parse(argv)
  submit = command(args, 'submit', '--config=-')
  if args.dry_run:
    text = json.dumps(specification(args), indent=2)
    print(f"{shlex.join(submit)} <<'EOF'\n{text}\nEOF")
    return 0
  try:
    return run(args, submit)
  except Refused as refused:
    _say(str(refused))
    return 1
  except KeyboardInterrupt:
    end = shlex.join(command(args, 'delete'))
    _say(f'{args.name} goes on and costs. To end it: {end}')
    return 130


if __name__ == '__main__':
  sys.exit(main(sys.argv[1:]))
