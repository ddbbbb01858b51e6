"""Ends a process whose training hangs, with the stacks of its threads."""

import faulthandler
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from infoprune_jax.runtime import distributed

EXIT_CODE = 75  # EX_TEMPFAIL: start it again


class Watchdog:
  """Looks whether steps end."""

  def __init__(
    self,
    name: str,
    minutes: float,
    leave: Callable[[int], None] = os._exit,
  ):
    """Waits for `watching`.

    Args:
      name: Of the run, for the message.
      minutes: Without the end of a step, after which the process ends; 0.0 to
        wait for ever.
      leave: Ends the process.
    """
    self._name, self._seconds, self._leave = name, 60 * minutes, leave
    self._step, self._since = 0, time.monotonic()
    self._ended = threading.Event()

  def step_ended(self, step: int) -> None:
    """Notes that work goes on."""
    self._step, self._since = step, time.monotonic()

  @contextmanager
  def watching(self) -> Iterator[None]:
    """Looks, in a thread of its own, until the block ends."""
    self.step_ended(self._step)
    if not self._seconds:
      yield
      return
    thread = threading.Thread(target=self._look, daemon=True)
    thread.start()
    try:
      yield
    finally:
      self._ended.set()
      thread.join()

  def _look(self) -> None:
    while not self._ended.wait(min(self._seconds / 10, 10.0)):
      if time.monotonic() - self._since > self._seconds:
        self._bark()
        return

  def _bark(self) -> None:
    print(
      f'infoprune_jax: {self._name}: process {distributed.index()} of '
      f'{distributed.count()} has ended no step after step {self._step} for '
      f'{self._seconds / 60:g} minutes (watchdog_minutes). Its threads:',
      file=sys.stderr,
      flush=True,
    )
    faulthandler.dump_traceback(all_threads=True)
    self._leave(EXIT_CODE)
