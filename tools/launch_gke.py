r"""Runs one job of infoprune_jax on GKE as a JobSet, and follows it to its end.

    python tools/launch_gke.py --name=mine-score --tpu=v5e-64 --image=IMAGE \
        -- --config=configs/mine.py --workdir=gs://bucket/mine --job=score

The arguments after `--` are those of `infoprune_jax.main`. --cpu=16 and
--memory=64Gi instead of --tpu run a stage that needs no accelerator.
--dry_run prints the commands, manifest included.

A job on a TPU has one pod for each host. If one ends because another is lost,
because it was told to stop, or because its node is gone, all start again and
continue. After an error that would come again nothing restarts.

The same command started again follows a JobSet that runs, and replaces one
that has ended. Needs `kubectl`, a cluster with JobSet 0.6 or later, and node
pools of the slices.

Exit codes: 0, the job is done; 1, it failed, or it cannot be followed; 2, an
argument is wrong, and nothing was started.
"""

import argparse
import json
import re
import shlex
import sys

import jobset_follow
import tpu_slices

# After these exit codes the same command may succeed: a lost process, and
# SIGABRT, SIGKILL, SEGV and SIGTERM.
RESTART_CODES = [75, 134, 137, 139, 143]
# A spot node is gone 30 seconds after the notice, and needs some of them.
_GRACE_SECONDS = {True: 25, False: 300}
_KEPT_SECONDS = 7 * 24 * 3600  # how long a JobSet that has ended is kept
_NAME = '[a-z]([-a-z0-9]{0,38}[a-z0-9])?'  # names of pods are longer


def manifest(args: argparse.Namespace) -> dict:
  """The JobSet of a job.

  Args:
    args: As `parse` returns them.

  Returns:
    It as JSON, by the names of jobset.x-k8s.io/v1alpha2.
  """
  metadata = {'name': args.name, 'namespace': args.namespace}
  if args.tpu:  # All hosts of a slice are in one node pool, of no other slice.
    metadata['annotations'] = {
      'alpha.jobset.sigs.k8s.io/exclusive-topology': (
        'cloud.google.com/gke-nodepool'
      )
    }
  return {
    'apiVersion': 'jobset.x-k8s.io/v1alpha2',
    'kind': 'JobSet',
    'metadata': metadata,
    'spec': {
      'failurePolicy': {
        'maxRestarts': args.max_restarts,
        'restartStrategy': 'BlockingRecreate',
        'rules': [
          {
            'name': 'sameErrorAgain',
            'action': 'FailJobSet',
            'onJobFailureReasons': ['PodFailurePolicy'],
          }
        ],
      },
      'ttlSecondsAfterFinished': _KEPT_SECONDS,
      'replicatedJobs': [
        {
          'name': 'worker',
          'replicas': args.slices,
          'template': {'spec': _job(args)},
        }
      ],
    },
  }


def _job(args: argparse.Namespace) -> dict:
  """The pods of one slice, one on each host."""
  hosts = args.tpu.hosts if args.tpu else 1
  policy = {
    'action': 'FailJob',
    'onExitCodes': {
      'containerName': 'main',
      'operator': 'NotIn',
      'values': RESTART_CODES,
    },
  }
  return {
    'parallelism': hosts,
    'completions': hosts,
    'completionMode': 'Indexed',
    'backoffLimit': 0,  # Hosts restart together: see failurePolicy.
    'podFailurePolicy': {'rules': [policy]},
    'template': {'spec': _pod(args)},
  }


def _pod(args: argparse.Namespace) -> dict:
  """The pod of one host."""
  tpu, selector, tolerations = args.tpu, {}, []
  if tpu:
    chips = str(tpu.chips // tpu.hosts)
    resources = {'google.com/tpu': chips}
    selector['cloud.google.com/gke-tpu-accelerator'] = tpu.gke_accelerator
    selector['cloud.google.com/gke-tpu-topology'] = tpu.topology
  else:
    resources = {'cpu': args.cpu, 'memory': args.memory}
  if args.spot:
    selector['cloud.google.com/gke-spot'] = 'true'
    tolerations.append(
      {
        'key': 'cloud.google.com/gke-spot',
        'operator': 'Equal',
        'value': 'true',
        'effect': 'NoSchedule',
      }
    )
  container = {
    'name': 'main',
    'image': args.image,
    'command': ['python', '-m', 'infoprune_jax.main'],
    'args': args.job_args,
    # JAX would otherwise take the CPU if it cannot start the TPU.
    'env': [{'name': 'JAX_PLATFORMS', 'value': 'tpu,cpu' if tpu else 'cpu'}],
    'resources': {'requests': resources},
  }
  pod = {
    'restartPolicy': 'Never',
    'serviceAccountName': args.service_account,
    'terminationGracePeriodSeconds': _GRACE_SECONDS[args.spot],
    'containers': [container],
  }
  if tpu:
    container['resources']['limits'] = resources
    # Of the TPU runtime, and of messages between slices.
    container['ports'] = [
      {'containerPort': port, 'protocol': 'TCP'} for port in (8471, 8080)
    ]
  if args.slices > 1:  # The network between slices, at full speed.
    pod |= {'hostNetwork': True, 'dnsPolicy': 'ClusterFirstWithHostNet'}
  if selector:
    pod['nodeSelector'] = selector
  if tolerations:
    pod['tolerations'] = tolerations
  return pod


def parse(argv: list[str]) -> argparse.Namespace:
  """The arguments; `job_args` are those after `--`.

  A mistake ends the process with code 2 and one message.
  """
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawTextHelpFormatter
  )
  add = parser.add_argument
  add('--name', required=True, help='of the JobSet')
  add('--image', required=True, help='of the Dockerfile of this repository')
  add('--tpu', help='a slice, such as v5e-64')
  add('--slices', type=int, default=1, help='how many, as mesh.dcn_*')
  add('--cpu', help='CPUs of the pod, instead of --tpu')
  add('--memory', help='of the pod, with --cpu, such as 64Gi')
  add('--spot', action='store_true', help='nodes that may be taken away')
  add('--max_restarts', type=int, default=20)
  add('--namespace', default='default')
  add(
    '--service_account',
    default='default',
    help='of Kubernetes, that may read and write the workdir',
  )
  add('--dry_run', action='store_true', help='print the commands alone')
  add('--poll_seconds', type=float, default=10.0)
  own, job_args = argv, []
  if '--' in argv:
    end = argv.index('--')
    own, job_args = argv[:end], argv[end + 1 :]
  args = parser.parse_args(own)
  try:
    if problem := _problem(args, job_args):
      parser.error(problem)
    args.tpu = tpu_slices.parse(args.tpu) if args.tpu else None
  except ValueError as error:
    parser.error(str(error))
  if args.tpu and args.tpu.hosts * args.slices > 1:
    job_args = [*job_args, '--multiprocess']
  args.job_args = job_args
  return args


def _problem(args: argparse.Namespace, job_args: list[str]) -> str:
  """What is wrong with the arguments; '' if nothing is."""
  if not re.fullmatch(_NAME, args.name):
    return (
      f'--name={args.name} must have at most 40 lower-case letters, digits and '
      '-, and begin with a letter.'
    )
  if bool(args.tpu) == bool(args.cpu and args.memory):
    return 'give --tpu, or both --cpu and --memory.'
  if args.slices < 1 or (args.slices > 1 and not args.tpu):
    return f'--slices={args.slices} must be 1 or more, and 1 without --tpu.'
  if args.max_restarts < 0:
    return f'--max_restarts={args.max_restarts} must be 0 or more.'
  flags = {arg.split('=')[0] for arg in job_args}
  for name in ('--config', '--workdir'):
    if name not in flags:
      return (
        f'{name}=... is missing after --: the pod runs python -m '
        'infoprune_jax.main with the arguments that follow --.'
      )
  return ''


def main(argv: list[str]) -> int:
  """Runs the job, or prints the commands; returns the exit code."""
  args = parse(argv)
  wanted = manifest(args)
  cluster = jobset_follow.Cluster(args.namespace)
  if args.dry_run:
    command = shlex.join(cluster.command(*jobset_follow.CREATE))
    print(f"{command} <<'EOF'\n{json.dumps(wanted, indent=2)}\nEOF")
    return 0
  try:
    return jobset_follow.run(cluster, wanted, args.poll_seconds)
  except jobset_follow.Refused as refused:
    print(f'launch_gke: {refused}', file=sys.stderr)
    return 1
  except KeyboardInterrupt:
    print(
      f'launch_gke: {args.name} goes on and costs. To end it: kubectl '
      f'--namespace={args.namespace} delete jobset {args.name}',
      file=sys.stderr,
    )
    return 130


if __name__ == '__main__':
  sys.exit(main(sys.argv[1:]))
