"""Processes for host work."""

import atexit
import concurrent.futures
import contextlib
import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

# Those of a block of `kept`.
_kept: concurrent.futures.ProcessPoolExecutor | None = None


@contextlib.contextmanager
def kept(num_workers: int) -> Iterator[None]:
  """Lets all calls of `run_all` in this block share their processes.

  A process takes half a second to start, and ten where it needs TensorFlow.

  Args:
    num_workers: The most processes of the block; 0 for one a core.
  """
  global _kept
  with _open_pool(num_workers or os.cpu_count() or 1) as pool:
    _kept = pool
    try:
      yield
    finally:
      _kept = None


def run_all(
  function: Callable[[Any], Any],
  tasks: Sequence[Any],
  num_workers: int,
  apart: bool = False,
) -> Iterator[Any]:
  """The result of each task, in the tasks' order, as soon as it is there.

  Args:
    function: A module-level function of one argument.
    tasks: Its arguments; they and the results must pickle.
    num_workers: Processes; 0 for one a core. With one, or one task, the work
      is done in this process. In a block of `kept` its number counts instead.
    apart: Whether it is to be done in another one even then.
  """
  num_workers = min(num_workers or os.cpu_count() or 1, len(tasks))
  if num_workers <= 1 and not (apart and tasks):
    yield from map(function, tasks)
    return
  shared = contextlib.nullcontext(_kept) if _kept else _open_pool(num_workers)
  with shared as pool:
    chunk = max(1, len(tasks) // (num_workers * 16))
    yield from pool.map(function, tasks, chunksize=chunk)


@contextlib.contextmanager
def _open_pool(
  num_workers: int,
) -> Iterator[concurrent.futures.ProcessPoolExecutor]:
  """Processes that start when there is work for them."""
  with concurrent.futures.ProcessPoolExecutor(
    num_workers,
    # A fork of a process that runs JAX would inherit locks without owners.
    mp_context=multiprocessing.get_context('spawn'),
    initializer=_die_with_parent,
  ) as pool:
    try:
      yield pool
    except BaseException:
      pool.shutdown(wait=False, cancel_futures=True)
      raise


def _die_with_parent() -> None:
  """Ends this worker when its parent is gone, so that none outlives a kill.

  Ctrl-C reaches every process of a terminal; the parent's word is enough.
  """
  # Taking an interpreter down takes 0.2 s, for which its parent would wait.
  atexit.register(os._exit, 0)
  signal.signal(signal.SIGINT, signal.SIG_IGN)
  parent = multiprocessing.parent_process()
  assert parent is not None  # It is a worker.

  def watch() -> None:
    multiprocessing.connection.wait([parent.sentinel])
    os._exit(1)

  threading.Thread(target=watch, daemon=True).start()
