"""Processes for host work."""

import concurrent.futures
import multiprocessing
import multiprocessing.connection
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

# What most workers run, and imports what they need.
PRELOADED = 'infoprune_jax.data.tokenize'


def run_all(
  function: Callable[[Any], Any], tasks: Sequence[Any], num_workers: int
) -> Iterator[Any]:
  """The result of each task, in the tasks' order, as soon as it is there.

  Args:
    function: A module-level function of one argument.
    tasks: Its arguments; they and the results must pickle.
    num_workers: Processes; 0 for one a core. With one, or one task, the work
      is done in this process.
  """
  num_workers = min(num_workers or os.cpu_count() or 1, len(tasks))
  if num_workers <= 1:
    yield from map(function, tasks)
    return
  # A fork of a process that runs JAX would inherit locks without owners. One
  # that has only imported what workers need starts in no time.
  context = multiprocessing.get_context('forkserver')
  context.set_forkserver_preload([PRELOADED])
  with concurrent.futures.ProcessPoolExecutor(
    num_workers,
    mp_context=context,
    initializer=_die_with_parent,
  ) as pool:
    try:
      chunk = max(1, len(tasks) // (num_workers * 16))
      yield from pool.map(function, tasks, chunksize=chunk)
    except BaseException:
      pool.shutdown(wait=False, cancel_futures=True)
      raise


def _die_with_parent() -> None:
  """Ends this worker when its parent is gone, so that none outlives a kill."""
  parent = multiprocessing.parent_process()
  assert parent is not None  # It is a worker.

  def watch() -> None:
    multiprocessing.connection.wait([parent.sentinel])
    os._exit(1)

  threading.Thread(target=watch, daemon=True).start()
