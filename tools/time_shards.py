r"""CPU seconds of each task of the stages that need no model, for plan_tokens.py.

Command: python tools/time_shards.py --config=configs/x.py --workdir=runs/timed \
  --stages=tokenize,statistics --timings=timings.json

Runs stages one after another, and their tasks in this process, so other work on
the machine changes little. A stage hands out its tasks in rounds: a round begins
when the one before has ended. The seconds outside of tasks are those of the
process that hands them out.

Stages with a finished artifact do nothing, so the workdir must be new.
"""

import json
import pathlib
import platform
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from absl import app, flags
from ml_collections import config_flags

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from infoprune_jax import stages  # noqa: E402
from infoprune_jax.config import (  # noqa: E402
  experiment as config_lib,
  validation,
)
from infoprune_jax.runtime import progress, workers  # noqa: E402
from infoprune_jax.tokens.token_store import TokenStore  # noqa: E402

_CONFIG = config_flags.DEFINE_config_file('config', None, 'As for main.')
_WORKDIR = flags.DEFINE_string('workdir', None, 'A new folder.', required=True)
_STAGES = flags.DEFINE_list('stages', ['tokenize', 'statistics'], 'In order.')
# Those that hand out tasks, and read no score.
_TIMED = (
  *('tokenize', 'statistics', 'near_duplicates', 'duplicated_text'),
  'decontaminate',
)
_TIMINGS = flags.DEFINE_string('timings', None, 'A file.', required=True)


class Rounds:
  """Replaces `workers.run_all`, and times each task."""

  def __init__(self):
    self.rounds: list[dict[str, Any]] = []

  def run_all(
    self,
    function: Callable[[Any], Any],
    tasks: Sequence[Any],
    num_workers: int,
    force_subprocess: bool = False,
  ) -> Iterator[Any]:
    """Yields the result of each task, see `workers.run_all`."""
    del num_workers, force_subprocess
    seconds: list[float] = []
    name = f'{function.__module__.split(".")[-1]}.{function.__name__}'
    self.rounds.append({'function': name, 'seconds': seconds})
    for task in tasks:
      started = time.process_time()
      result = function(task)
      seconds.append(round(time.process_time() - started, 4))
      yield result


def timed(config: config_lib.Config, workdir: str, name: str) -> dict[str, Any]:
  """Runs a stage; returns its rounds, and the seconds outside of tasks."""
  rounds = Rounds()
  workers.run_all = rounds.run_all
  started = time.process_time()
  stages.STAGES[name].run(config, workdir)
  in_tasks = sum(sum(one['seconds']) for one in rounds.rounds)
  rest = time.process_time() - started - in_tasks
  used = [one for one in rounds.rounds if one['seconds']]
  return {'rounds': used, 'rest': round(rest, 4)}


def main(_) -> None:
  progress.log_to_stderr()
  try:
    _time_stages()
  except validation.UserError as error:
    sys.exit(f'time_shards: {error}')


def _time_stages() -> None:
  for name in _STAGES.value:
    validation.check_choice('--stages', name, _TIMED)
  config = config_lib.from_mapping(_CONFIG.value)
  workdir = _WORKDIR.value
  if pathlib.Path(workdir).exists():
    raise validation.UserError(
      f'--workdir={workdir} is there already, and finished stages would take no '
      'time: give a new folder, or delete it.'
    )
  pathlib.Path(workdir).mkdir(parents=True)
  by_stage = {name: timed(config, workdir, name) for name in _STAGES.value}
  store = TokenStore.open(workdir)
  totals = {'bytes': 0, 'tokens': 0, 'documents': 0}
  for number in range(store.num_shards):
    shard = store.shard(number)
    totals['bytes'] += int(shard.column('num_bytes').sum())
    totals['tokens'] += int(shard.column('num_tokens').sum())
    totals['documents'] += len(shard.column('num_tokens'))
  measured = {
    'machine': platform.processor() or platform.machine(),
    'shards': store.num_shards,
    **totals,
    'stages': by_stage,
  }
  pathlib.Path(_TIMINGS.value).write_text(json.dumps(measured) + '\n')
  for name, of_stage in by_stage.items():
    tasks = ', '.join(
      f'{one["function"]} {len(one["seconds"])} of {sum(one["seconds"]):.1f} s'
      for one in of_stage['rounds']
    )
    print(f'{name}: {tasks}; rest {of_stage["rest"]:.1f} s')


if __name__ == '__main__':
  app.run(main)
