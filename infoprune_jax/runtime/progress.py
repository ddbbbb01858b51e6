"""Progress of long work, on standard error, and the units of all figures.

On a terminal, long work is one live line. In a log, it is a line now and then.
"""

import contextlib
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator

logger = logging.getLogger('infoprune_jax')

_LIVE_SECONDS = 0.2  # from one state of the live line to the next
_LONGEST_SECONDS = 60.0  # from one line of a log to the next
_SYMBOLS = ('B', 'FLOP')  # Units that a prefix is joined to: MB, GFLOP/s.


class _Handler(logging.StreamHandler):
  """Writes log lines, and on a terminal one live line below them."""

  _live, _is_background = '', False
  last_output = 0.0  # by `time.monotonic`

  def emit(self, record: logging.LogRecord) -> None:
    """Writes a log line above the live line."""
    live, is_background = self._live, self._is_background
    self.show('')
    super().emit(record)
    self.show(live, is_background)
    self.last_output = time.monotonic()

  def show(self, text: str, is_background: bool = False) -> None:
    """Replaces the live line; '' wipes it.

    Args:
      text: The new line. The end of a long one is cut off.
      is_background: Whether it gives way to any other live line.
    """
    with self.lock or contextlib.nullcontext():
      if is_background and self._live and not self._is_background:
        return
      if text != self._live:
        columns = os.get_terminal_size(self.stream.fileno()).columns or 80
        # A line that wraps could not be replaced.
        text = text[: columns - 1]
        # The cursor stays at the start: the output of others begins there.
        self.stream.write(f'\r{text.ljust(len(self._live))}\r')
        self.stream.flush()
      self._live, self._is_background = text, is_background


def _terminal() -> _Handler | None:
  """The handler that shows a live line, if there is one."""
  for handler in logger.handlers:
    if isinstance(handler, _Handler) and logger.isEnabledFor(logging.INFO):
      return handler if handler.stream.isatty() else None
  return None


def wipe() -> None:
  """Removes the live line, before other output or when the work is over."""
  if terminal := _terminal():
    terminal.show('')


def log_to_stderr(process: int = 0) -> None:
  """Sends this package's messages to standard error with a time stamp.

  Args:
    process: Index of this process. All but the first log only warnings, with
      their index.
  """
  handler = _Handler(sys.stderr)
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


def counted(number: int, noun: str) -> str:
  """A number with its noun.

  >>> counted(1, 'arm'), counted(2, 'arm')
  ('1 arm', '2 arms')
  """
  return f'{number} {noun}{"" if number == 1 else "s"}'


def quantity(value: float, unit: str = '') -> str:
  """A count or rate with a metric prefix and its unit.

  >>> quantity(12345, 'tokens/s'), quantity(2.5e6, 'B/s'), quantity(12345)
  ('12.3 k tokens/s', '2.5 MB/s', '12.3 k')
  """
  prefix = ''
  for exponent, letter in zip((18, 15, 12, 9, 6, 3), 'EPTGMk', strict=True):
    if value >= 0.9995 * 10**exponent:  # Values that round up take the prefix.
      value, prefix = value / 10**exponent, letter
      break
  if prefix and unit.partition('/')[0] not in _SYMBOLS:
    prefix += ' '
  return f'{value:.3g} {prefix}{unit}'.rstrip()


def _interval(every: float, elapsed: float) -> float:
  """Seconds to the next line of a log: more as the work grows long."""
  return max(every, min(elapsed / 10, _LONGEST_SECONDS))


@contextlib.contextmanager
def alive(what: str, every: float = 10.0) -> Iterator[None]:
  """Shows 'what: running for 0:00:10' while nothing else is shown.

  Args:
    what: The name of the work.
    every: Seconds of silence in a log before such a line, at first.
  """
  start, over = time.monotonic(), threading.Event()

  def tell() -> None:
    last_line = start
    while not over.wait(min(every, 1.0)):
      now = time.monotonic()
      text = f'{what}: running for {duration(now - start)}'
      if terminal := _terminal():
        terminal.show(text, is_background=True)
        continue
      last_line = max(
        [last_line]
        + [x.last_output for x in logger.handlers if isinstance(x, _Handler)]
      )
      if now - last_line >= _interval(every, now - start):
        logger.info('%s', text)
        last_line = now

  thread = threading.Thread(target=tell, daemon=True)
  thread.start()
  try:
    yield
  finally:
    over.set()
    thread.join()
    wipe()


class Progress:
  """Shows 'what: 20.5 % of 60 M tokens, 1.2 M tokens/s, 0:00:40 left'.

  Work before the start, as after a resume, does not count for the rate.
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
    """Starts at `done` of `total` units, with a line every `every` seconds."""
    self._what, self._unit, self._total = what, unit, total
    self._first, self._done, self._every = done, done, every
    self._clock = clock
    self._start = self._last = clock()

  def add(self, amount: float, note: str = '') -> None:
    """Counts `amount` more units, and shows the state when that is due."""
    self._done += amount
    now = self._clock()
    terminal = _terminal()
    interval = _interval(self._every, now - self._start)
    if now - self._last < (_LIVE_SECONDS if terminal else interval):
      return
    self._last = now
    rate = (self._done - self._first) / max(now - self._start, 1e-9)
    left = (self._total - self._done) / rate if rate else 0.0
    text = (
      f'{self._what}: {100 * self._done / max(self._total, 1e-9):.1f} % of '
      f'{quantity(self._total, self._unit)}, '
      f'{quantity(rate, f"{self._unit}/s")}, {duration(left)} left'
      + (f', {note}' if note else '')
    )
    if terminal:
      terminal.show(text)
    else:
      logger.info('%s', text)

  def skip(self, amount: float) -> None:
    """Counts `amount` units that were done before."""
    self._done += amount
    self._first += amount

  def finish(self, note: str = '') -> None:
    """Logs the total and the mean rate."""
    wipe()
    seconds = max(self._clock() - self._start, 1e-9)
    logger.info(
      '%s: done, %s in %s (%s)%s',
      self._what,
      quantity(self._done, self._unit),
      duration(seconds),
      quantity((self._done - self._first) / seconds, f'{self._unit}/s'),
      f', {note}' if note else '',
    )
