"""Worker processes of this machine.

Workers end with their parent and ignore Ctrl-C. If a worker is killed, the
error names it, its task and the memory it had.
"""

import atexit
import concurrent.futures
import concurrent.futures.process
import functools
import multiprocessing
import multiprocessing.connection
import multiprocessing.context
import os
import resource
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from multiprocessing import resource_tracker
from typing import Any

from infoprune_jax.config.validation import UserError
from infoprune_jax.runtime import files, preemption
from infoprune_jax.runtime.progress import quantity

_CGROUP_LIMIT = '/sys/fs/cgroup/memory.max'
_TRACKER_WARNINGS = 'ignore:resource_tracker'
_starting = threading.Lock()  # Held while a process starts.
_doing: Any = None  # In a worker: the task of each worker, counted from 1.


class _Worker(multiprocessing.context.SpawnProcess):
  """A process that never gets Ctrl-C, which a terminal sends to all."""

  def start(self) -> None:
    """Starts the process with SIGINT blocked from its first line on."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
      with _starting:
        super().start()
    finally:
      signal.pthread_sigmask(signal.SIG_SETMASK, before)


# Spawns, because a fork of a process with JAX inherits locks without owners.
class _Context(multiprocessing.context.SpawnContext):
  """Starts workers and keeps them, because the executor drops dead ones."""

  def __init__(self):
    self.workers: list[_Worker] = []

  def Process(self, *args: Any, **kwargs: Any) -> _Worker:
    worker = _Worker(*args, **kwargs)
    worker.name = str(len(self.workers))
    self.workers.append(worker)
    return worker


class Pool:
  """Processes that start when there is work for them."""

  def __init__(self, num_workers: int):
    """Sets the number of processes; none starts yet."""
    _start_tracker()
    self._num_workers = num_workers
    self._context = _Context()
    self._doing = self._context.RawArray('q', num_workers)
    self._executor = concurrent.futures.ProcessPoolExecutor(
      num_workers,
      mp_context=self._context,
      initializer=_begin,
      initargs=(self._doing,),
    )
    preemption.at_exit(_kill_all)

  def __enter__(self) -> 'Pool':
    return self

  def __exit__(self, kind: Any, *_: Any) -> None:
    self._executor.shutdown(cancel_futures=kind is not None)

  def map(
    self, function: Callable[[Any], Any], tasks: Sequence[Any]
  ) -> Iterator[Any]:
    """The result of each task, in the tasks' order.

    Raises:
      UserError: a worker was killed.
    """
    chunk = max(1, len(tasks) // (self._num_workers * 16))
    work = functools.partial(_work, function)
    try:
      yield from self._executor.map(work, enumerate(tasks), chunksize=chunk)
    except concurrent.futures.process.BrokenProcessPool:
      with _starting:  # Waits forever if this process is ending.
        raise UserError(self._post_mortem(tasks)) from None

  def _post_mortem(self, tasks: Sequence[Any]) -> str:
    """A message on a dead worker: its number, cause, task, and what to do."""
    workers = self._context.workers
    for worker in workers:
      _wait_for_code(worker)  # The executor ends the others, by SIGTERM.
    dead = [w for w in workers if w.exitcode not in (None, 0, -signal.SIGTERM)]
    worker = (dead or workers)[0]
    number = self._doing[int(worker.name)] - 1
    doing = 'before its first task'
    if number >= 0:
      doing = f'at {_name(tasks[number])} ({number + 1} of {len(tasks)})'
    code = worker.exitcode or 0
    cause = f'ended with code {code}'
    if code < 0:
      cause = f'was killed by {signal.Signals(-code).name}'
    return (
      f'Worker {int(worker.name) + 1} of {self._num_workers}, pid {worker.pid}, '
      f'{cause}, {doing}. {_advice(code, self._num_workers)}'
    )


def _wait_for_code(worker: _Worker) -> None:
  """Waits at most 10 seconds for the exit code of a process.

  If the executor's thread waits for it too, `join` may return before that
  thread has stored the code.
  """
  last = time.monotonic() + 10
  worker.join(10)
  while worker.exitcode is None and time.monotonic() < last:
    time.sleep(0.01)


def _start_tracker() -> None:
  """Starts the process that removes the semaphores of killed processes.

  Only an option of the interpreter turns off its warnings.
  """
  sys.warnoptions.append(_TRACKER_WARNINGS)
  try:
    resource_tracker.ensure_running()
  finally:
    sys.warnoptions.remove(_TRACKER_WARNINGS)


def _advice(code: int, num_workers: int) -> str:
  again = 'Run it again: finished shards are kept.'
  if code != -signal.SIGKILL:
    return f'{again} If it ends at the same task again, check the data there.'
  most = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
  return (
    'Most often the kernel does this when memory is short: the largest worker '
    f'had {quantity(most, "B")}, and this machine has '
    f'{quantity(_memory(), "B")}. Run it again with fewer corpus.num_workers '
    f'(here {num_workers}): finished shards are kept.'
  )


def _memory() -> int:
  """Bytes of memory that this process may use: those of the machine or less."""
  total = os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')
  if not os.path.exists(_CGROUP_LIMIT):
    return total
  limit = files.read_bytes(_CGROUP_LIMIT).decode().strip()
  return min(total, int(limit)) if limit.isdigit() else total


def _name(task: Any) -> str:
  """A task in words: its shard or its file, if it has one."""
  if hasattr(task, 'shard'):
    return f'shard {task.shard}'
  return str(getattr(task, 'path', 'a task'))


def _begin(doing: Any) -> None:
  """Prepares a worker, which from now on ends when its parent does."""
  global _doing
  _doing = doing
  # A normal exit of an interpreter takes 0.2 s, for which its parent waits.
  atexit.register(os._exit, 0)
  signal.signal(signal.SIGINT, signal.SIG_IGN)
  parent = multiprocessing.parent_process()
  assert parent is not None  # It is a worker.

  def watch() -> None:
    multiprocessing.connection.wait([parent.sentinel])
    os._exit(1)

  threading.Thread(target=watch, daemon=True).start()


def _work(function: Callable[[Any], Any], numbered: tuple[int, Any]) -> Any:
  """Does a task, and writes its number where the parent can read it."""
  number, task = numbered
  _doing[int(multiprocessing.current_process().name)] = number + 1
  return function(task)


def _kill_all(number: int) -> None:
  """Kills the workers before this process ends."""
  del number
  # The lock is never released, so no worker starts from now on.
  _starting.acquire(timeout=5)
  for child in multiprocessing.active_children():
    child.kill()
