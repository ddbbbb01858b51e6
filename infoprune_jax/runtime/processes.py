"""Processes that work for this one, and what becomes of them.

They never outlive it, are deaf to Ctrl-C, and one that is killed is named, with
what it did and how much memory it had.
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
_doing: Any = None  # In a worker: the number of each one's task, from 1.


class _Worker(multiprocessing.context.SpawnProcess):
  """A process that never hears of Ctrl-C, which a terminal sends to all."""

  def start(self) -> None:
    """Starts it; what is blocked here stays so there, from the first line."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
      with _starting:
        super().start()
    finally:
      signal.pthread_sigmask(signal.SIG_SETMASK, before)


# A fork of a process that runs JAX would inherit locks without owners.
class _Context(multiprocessing.context.SpawnContext):
  """Starts workers, and remembers them: the executor forgets the dead."""

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
    """Starts none yet."""
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
      with _starting:  # Never, where they were killed because this one ends.
        raise UserError(self._post_mortem(tasks)) from None

  def _post_mortem(self, tasks: Sequence[Any]) -> str:
    """Which worker died, of what, and what to do."""
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

  Where the executor's thread waits for it too, `join` may return before that
  thread has stored the code.
  """
  last = time.monotonic() + 10
  worker.join(10)
  while worker.exitcode is None and time.monotonic() < last:
    time.sleep(0.01)


def _start_tracker() -> None:
  """Starts what removes semaphores behind a process that is killed, silently.

  The interpreter's options are the only way to its warnings.
  """
  sys.warnoptions.append(_TRACKER_WARNINGS)
  try:
    resource_tracker.ensure_running()
  finally:
    sys.warnoptions.remove(_TRACKER_WARNINGS)


def _advice(code: int, num_workers: int) -> str:
  again = 'Run it again: what is finished is kept.'
  if code != -signal.SIGKILL:
    return f'{again} If it ends there again, look at what is read there.'
  most = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
  return (
    'That is most often the kernel, out of memory: the largest worker had '
    f'{quantity(most)}B, all of this machine is {quantity(_memory())}B. Run it '
    f'again with fewer corpus.num_workers (here {num_workers}): what is '
    'finished is kept.'
  )


def _memory() -> int:
  """Bytes of memory that this process may have: of the machine, or less."""
  total = os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')
  if not os.path.exists(_CGROUP_LIMIT):
    return total
  limit = files.read_bytes(_CGROUP_LIMIT).decode().strip()
  return min(total, int(limit)) if limit.isdigit() else total


def _name(task: Any) -> str:
  """What a task is about, where it says so: a shard, or a file."""
  if hasattr(task, 'shard'):
    return f'shard {task.shard}'
  return str(getattr(task, 'path', 'a task'))


def _begin(doing: Any) -> None:
  """The first that a worker does.

  It ends when its parent is gone, so that none outlives a kill.
  """
  global _doing
  _doing = doing
  # Taking an interpreter down takes 0.2 s, for which its parent would wait.
  atexit.register(os._exit, 0)
  signal.signal(signal.SIGINT, signal.SIG_IGN)
  parent = multiprocessing.parent_process()
  assert parent is not None  # It is a worker.

  def watch() -> None:
    multiprocessing.connection.wait([parent.sentinel])
    os._exit(1)

  threading.Thread(target=watch, daemon=True).start()


def _work(function: Callable[[Any], Any], numbered: tuple[int, Any]) -> Any:
  """Does a task, and notes which: a killed worker cannot say."""
  number, task = numbered
  _doing[int(multiprocessing.current_process().name)] = number + 1
  return function(task)


def _kill_all(number: int) -> None:
  """Ends the workers with this process, before one says that it lost it."""
  del number
  # Not released: none starts from now on, and none is missed.
  _starting.acquire(timeout=5)
  for child in multiprocessing.active_children():
    child.kill()
