"""Whether the other processes of a job live, and why they ended.

Every process shows a sign of life in a key-value store. Process 0 looks after
the others. It holds the store: one that does not answer is its silence.
"""

import contextlib
import signal
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

FOLDER = 'infoprune_jax'  # in the store
AGAIN = 'Start the job again, on any number of hosts: what is finished is kept.'


class Watch:
  """Shows that this process lives, and finds out who does not."""

  def __init__(
    self,
    client: Any,
    process: int,
    processes: int,
    timeout: float,
    stop: Callable[..., Any],
    store_error: type[Exception] = RuntimeError,
    clock: Callable[[], float] = time.monotonic,
  ):
    """Calls `stop` with what is wrong, and with the exit code if not 2.

    Args:
      client: Of the store.
      process: Which process this is.
      processes: How many there are.
      timeout: Seconds without a sign of life after which one counts as lost.
      stop: Ends this process.
      store_error: What the client raises if the store is gone.
      clock: In seconds.
    """
    self._store_error = store_error
    self._client, self._process = client, process
    self._stop, self._clock = stop, clock
    self.timeout = timeout  # seconds
    self.interval = min(1.0, timeout / 20)  # seconds between signs of life
    self._beat = 0
    now = clock()
    # The last sign of each process, and when it came.
    self._seen = {str(other): ('', now) for other in range(processes)}
    self.answered = now  # When the store last did.
    self._awake = now  # When this process last was.

  def run(self, stop: threading.Event) -> None:
    """Looks again and again, until it is told to stop."""
    while not stop.wait(self.interval):
      # Without the store JAX ends the process, see `distributed`.
      with contextlib.suppress(self._store_error):
        self.look(stop)

  def guard(self, stop: threading.Event) -> None:
    """Looks whether the store answers; a call to a frozen one never returns.

    Time in which this process itself stands still is no silence of another's.
    """
    answered, silent = self.answered, 0.0
    while not stop.wait(self.interval):
      if message := self._stood_still():
        self._stop(message)
      now = self._clock()
      silent += min(now - self._awake, 2 * self.interval)
      self._awake = now
      if self.answered != answered:
        answered, silent = self.answered, 0.0
      if silent > self.timeout and not stop.is_set():
        self._stop(self._silence(['0']))

  def _stood_still(self) -> str:
    passed = self._clock() - self._awake
    if passed <= self.timeout:
      return ''
    return f'it stood still for {passed:.0f} s, and counts as lost. {AGAIN}'

  def look(self, stop: threading.Event) -> None:
    """One sign of life, and one look at the others."""
    self._beat += 1
    self._client.key_value_set(
      f'{FOLDER}/alive/{self._process}', str(self._beat), allow_overwrite=True
    )
    self.answered = self._clock()
    failed = dict(self._client.key_value_dir_get(f'{FOLDER}/failed'))
    told = dict(self._client.key_value_dir_get(f'{FOLDER}/told'))
    if not (failed or told) and self._process == 0:
      failed = self._late()
    if not (failed or told) or stop.is_set():
      return
    if self._process == 0:  # The store goes with it: the others look first.
      time.sleep(3 * self.interval)
    if told:
      self._stop(next(iter(told.values())), 128 + signal.SIGTERM)
    else:
      self._stop(next(iter(failed.values())))

  def blame(self, address: str) -> str:
    """Whether process 0, at this address, is gone, as a message; '' if not.

    To a process that stood still, it is.
    """
    if message := self._stood_still():
      return message
    silent = self._clock() - self.answered
    if silent < 10 * self.interval and _reachable(address):
      return ''
    return f'process 0, at {address}, is gone: look at its log. {AGAIN}'

  def _late(self) -> dict[str, str]:
    """Notes new signs of life; says whose are overdue, to all the others."""
    now = self._clock()
    for key, beat in self._client.key_value_dir_get(f'{FOLDER}/alive'):
      name = key.rsplit('/', 1)[1]
      if self._seen[name][0] != beat:
        self._seen[name] = beat, now
    late = [
      name for name, (_, at) in self._seen.items() if now - at > self.timeout
    ]
    if not late:
      return {}
    message = self._silence(late)
    self._client.key_value_set(f'{FOLDER}/failed/late', message)
    return {'failed': message}

  def _silence(self, late: list[str]) -> str:
    return (
      f'process {", ".join(late)} of {len(self._seen)} gave no sign of life '
      f'for {self.timeout:.0f} s: look at its log. {AGAIN}'
    )


def _reachable(address: str) -> bool:
  host, port = address.rsplit(':', 1)
  try:
    with socket.create_connection((host.strip('[]'), int(port)), timeout=5):
      return True
  except OSError:
    return False
