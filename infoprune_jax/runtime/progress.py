"""Progress of long work, on standard error: count, rate and time left."""

import contextlib
import logging
import sys
import threading
import time
from collections.abc import Callable, Iterator

logger = logging.getLogger('infoprune_jax')


def log_to_stderr(process: int = 0) -> None:
  """Sends this package's messages to standard error with a time stamp.

  Args:
    process: Which of the job this is; others than the first say only what is
      wrong, and who they are.
  """
  handler = logging.StreamHandler(sys.stderr)
  who = f'process {process}: ' if process else ''
  handler.setFormatter(
    logging.Formatter(f'%(asctime)s {who}%(message)s', '%H:%M:%S')
  )
  logger.handlers[:] = [handler]
  logger.setLevel(logging.WARNING if process else logging.INFO)
  logger.propagate = False


def duration(seconds: float) -> str:
  """Seconds as h:mm:ss."""
  minutes, seconds = divmod(round(seconds), 60)
  hours, minutes = divmod(minutes, 60)
  return f'{hours}:{minutes:02d}:{seconds:02d}'


def quantity(value: float) -> str:
  """A count or rate with a metric prefix: 12345 is '12.3k'."""
  for exponent, prefix in zip((18, 15, 12, 9, 6, 3), 'EPTGMk', strict=True):
    if value >= 0.9995 * 10**exponent:  # What rounds up to the prefix has it.
      return f'{value / 10**exponent:.3g}{prefix}'
  return f'{value:.3g}'


@contextlib.contextmanager
def alive(what: str, every: float = 5.0) -> Iterator[None]:
  """Logs 'what: for 0:00:10' while a call runs that says nothing of itself.

  Args:
    what: What is done.
    every: Seconds from one line to the next.
  """
  start, over = time.monotonic(), threading.Event()

  def tell() -> None:
    while not over.wait(every):
      logger.info('%s: for %s', what, duration(time.monotonic() - start))

  thread = threading.Thread(target=tell, daemon=True)
  thread.start()
  try:
    yield
  finally:
    over.set()
    thread.join()


class Progress:
  """Logs 'what: 12.3M of 60M tokens, 1.2M tokens/s, 0:00:40 left'.

  What was done before the start, as after a resume, does not count into the
  rate.
  """

  def __init__(
    self,
    what: str,
    unit: str,
    total: float,
    *,
    done: float = 0,
    every: float = 5.0,
    clock: Callable[[], float] = time.monotonic,
  ):
    """Starts at `done` of `total` units, with a line each `every` seconds."""
    self._what, self._unit, self._total = what, unit, total
    self._first, self._done, self._every = done, done, every
    self._clock = clock
    self._start = self._last = clock()

  def add(self, amount: float, note: str = '') -> None:
    """Counts `amount` more units, and logs a line when one is due."""
    self._done += amount
    now = self._clock()
    if now - self._last < self._every:
      return
    self._last = now
    rate = (self._done - self._first) / max(now - self._start, 1e-9)
    left = (self._total - self._done) / rate if rate else 0.0
    logger.info(
      '%s: %s of %s %s, %s %s/s, %s left%s',
      self._what,
      quantity(self._done),
      quantity(self._total),
      self._unit,
      quantity(rate),
      self._unit,
      duration(left),
      f', {note}' if note else '',
    )

  def finish(self, note: str = '') -> None:
    """Logs the total and the mean rate."""
    seconds = max(self._clock() - self._start, 1e-9)
    logger.info(
      '%s: done, %s %s in %s (%s %s/s)%s',
      self._what,
      quantity(self._done),
      self._unit,
      duration(seconds),
      quantity((self._done - self._first) / seconds),
      self._unit,
      f', {note}' if note else '',
    )
