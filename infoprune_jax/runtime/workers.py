"""Runs tasks in processes of this machine, or with Apache Beam."""

import contextlib
import dataclasses
import functools
import math
import os
import posixpath
import secrets
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from infoprune_jax.config.corpus import CorpusConfig
from infoprune_jax.runtime import beam_work, files, filesystems, processes
from infoprune_jax.runtime.workdir import beam_dir


@dataclasses.dataclass(frozen=True)
class _Workers:
  """The workers of a block of `shared_pool`."""

  number: float  # of processes; infinite for Beam, whose runner decides
  map: Callable[[Callable[[Any], Any], Sequence[Any]], Iterator[Any]]


_shared_pool: _Workers | None = None


@contextlib.contextmanager
def shared_pool(config: CorpusConfig, workdir: str, job: str) -> Iterator[None]:
  """Lets all calls of `run_all` in this block share their workers.

  A process takes half a second to start, and ten where it needs TensorFlow.

  Args:
    config: The number of processes, or the options of Beam.
    workdir: A folder that workers of Beam can read and write.
    job: The stage that the work is for.

  Raises:
    UserError: `beam_work.check` raises it, or another process does this job.
  """
  global _shared_pool
  with contextlib.ExitStack() as stack:
    if config.beam_options:
      folder = beam_dir(workdir, job)
      beam_work.check(config.beam_options, folder)
      stack.enter_context(files.lock(folder))
      run = functools.partial(
        beam_work.run_all,
        options=config.beam_options,
        folder=_tasks_folder(folder),
      )
      _shared_pool = _Workers(math.inf, run)
    else:
      number = config.num_workers or os.cpu_count() or 1
      pool = stack.enter_context(processes.Pool(number))
      _shared_pool = _Workers(number, pool.map)
    try:
      yield
    finally:
      _shared_pool = None


def _tasks_folder(folder: str) -> str:
  """A new folder, because workers of a killed job may still use the old."""
  for name in filesystems.names_in(folder):
    if name.startswith('tasks-'):
      filesystems.delete_folder(posixpath.join(folder, name))
  return posixpath.join(folder, f'tasks-{secrets.token_hex(8)}')


def run_all(
  function: Callable[[Any], Any],
  tasks: Sequence[Any],
  num_workers: int,
  force_subprocess: bool = False,
) -> Iterator[Any]:
  """Yields the result of each task, in order, as soon as it is there.

  Args:
    function: A module-level function of one argument.
    tasks: Its arguments; they and the results must pickle.
    num_workers: Processes; 0 for one per core. With one process or one task,
      this process does the work. A block of `shared_pool` sets the number
      instead.
    force_subprocess: Whether to use another process even then.

  Raises:
    UserError: the function raises it, or a worker was killed.
  """
  number = (
    _shared_pool.number if _shared_pool else num_workers or os.cpu_count() or 1
  )
  if min(number, len(tasks)) <= 1 and not (force_subprocess and tasks):
    yield from map(function, tasks)
  elif _shared_pool:
    yield from _shared_pool.map(function, tasks)
  else:
    number = min(int(number), len(tasks))
    with processes.Pool(number) as pool:
      yield from pool.map(function, tasks)
