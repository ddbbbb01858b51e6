"""What kubectl prints of a JobSet that tools/launch_gke.py created."""

JOB = ('--config=configs/mine.py', '--workdir=gs://bucket/mine', '--job=score')


def jobset(condition='', restarts=0, args=JOB) -> dict:
  """What kubectl prints of a JobSet."""
  conditions = [{'type': condition, 'status': 'True', 'message': 'why'}]
  container = {'image': 'pkg/mine:1', 'args': [*args, '--multiprocess']}
  pod = {'spec': {'containers': [container]}}
  return {
    'spec': {
      'failurePolicy': {'maxRestarts': 20},
      'replicatedJobs': [{'template': {'spec': {'template': pod}}}],
    },
    'status': {
      'conditions': conditions if condition else [],
      'restarts': restarts,
    },
  }


def pods(*phases, code=0, reason='Error', waits='') -> dict:
  """What kubectl prints of pods; the last one may have ended with a code."""
  items = []
  for index, phase in enumerate(phases):
    labels = {
      'jobset.sigs.k8s.io/job-index': '0',
      'batch.kubernetes.io/job-completion-index': str(index),
    }
    status: dict = {'phase': phase}
    if phase == 'Pending' and waits:
      status['conditions'] = [
        {'type': 'PodScheduled', 'status': 'False', 'message': waits}
      ]
    if phase == 'Failed':
      end = {'terminated': {'exitCode': code, 'reason': reason}}
      status['containerStatuses'] = [{'state': end}]
    name = f'mine-score-worker-0-{index}-abcde'
    items.append(
      {'metadata': {'name': name, 'labels': labels}, 'status': status}
    )
  return {'items': items}
