"""Checks whether the other processes of a job live, and why they ended.

Every process writes a heartbeat to a key-value store, and process 0 checks
those of the others. The store is in process 0: if the store does not answer,
process 0 is late.
"""

import contextlib
import signal
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

FOLDER = 'infoprune_jax'  # in the store
AGAIN = 'Start the job again, on any number of hosts: finished work is kept.'
LOST = 'failed/lost'  # the folder of messages about lost processes
LOST_EXIT_CODE = 75  # EX_TEMPFAIL: another process is lost; start the job again


class Watch:
  """Writes the heartbeat of this process, and finds processes without one."""

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
    """Prepares to call `stop` with a message, and an exit code.

    Args:
      client: The client of the store.
      process: Index of this process.
      processes: Number of processes.
      timeout: Seconds without a heartbeat after which one counts as lost.
      stop: Ends this process: `LOST_EXIT_CODE` if a process is lost, 143 if one
        was told to stop, and no code if one has failed.
      store_error: The error of the client if the store is gone.
      clock: In seconds.
    """
    self._store_error = store_error
    self._client, self._process = client, process
    self._stop, self._clock = stop, clock
    self.timeout = timeout  # seconds
    self.interval = min(1.0, timeout / 20)  # seconds between heartbeats
    self._beat = 0
    now = clock()
    # The last heartbeat of each process, and the time of it.
    self._seen = {str(other): ('', now) for other in range(processes)}
    self.answered = now  # When the store last answered.
    self._awake = now  # When this process last ran.
    self._looked = now  # When `look` last ran, in process 0.

  def run(self, stop: threading.Event) -> None:
    """Calls `look` at every interval, until it is told to stop."""
    while not stop.wait(self.interval):
      # Without the store JAX ends the process, see `distributed`.
      with contextlib.suppress(self._store_error):
        self.look(stop)

  def guard(self, stop: threading.Event) -> None:
    """Checks whether the store answers; a call to a frozen one never returns.

    The time while this process itself stands still does not count.
    """
    answered, silent = self.answered, 0.0
    while not stop.wait(self.interval):
      if message := self._stood_still(self._awake):
        self._stop(message, LOST_EXIT_CODE)
      now = self._clock()
      silent += min(now - self._awake, 2 * self.interval)
      self._awake = now
      if self.answered != answered:
        answered, silent = self.answered, 0.0
      if silent > self.timeout and not stop.is_set():
        self._stop(self._silence(['0']), LOST_EXIT_CODE)

  def _stood_still(self, since: float) -> str:
    passed = self._clock() - since
    if passed <= self.timeout:
      return ''
    return f'it stood still for {passed:.0f} s, and counts as lost. {AGAIN}'

  def look(self, stop: threading.Event) -> None:
    """Writes one heartbeat, and checks the others once."""
    self._beat += 1
    self._client.key_value_set(
      f'{FOLDER}/alive/{self._process}', str(self._beat), allow_overwrite=True
    )
    self.answered = self._clock()
    failed = dict(self._client.key_value_dir_get(f'{FOLDER}/failed'))
    told = dict(self._client.key_value_dir_get(f'{FOLDER}/told'))
    if self._process == 0:
      # The others look late to a process that stood still itself.
      if message := self._stood_still(self._looked):
        return self._stop(message, LOST_EXIT_CODE)
      self._looked = self._clock()
      if not (failed or told):
        failed = self._late(self._looked)
    if not (failed or told) or stop.is_set():
      return
    if self._process == 0:  # The store ends with process 0: others read first.
      time.sleep(3 * self.interval)
    if told:
      self._stop(next(iter(told.values())), 128 + signal.SIGTERM)
    else:
      key, message = next(iter(failed.items()))
      is_lost = key.startswith(f'{FOLDER}/{LOST}/')
      self._stop(message, *([LOST_EXIT_CODE] if is_lost else []))

  def blame(self, address: str) -> str:
    """A message if process 0, at this address, is gone; '' if not.

    For a process that stood still, the message is about itself.
    """
    if message := self._stood_still(self._awake):
      return message
    silent = self._clock() - self.answered
    if silent < 10 * self.interval and _reachable(address):
      return ''
    return f'process 0, at {address}, is gone: look at its log. {AGAIN}'

  def _late(self, now: float) -> dict[str, str]:
    """Notes new heartbeats; tells all processes which ones are overdue."""
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
    key = f'{FOLDER}/{LOST}/late'
    self._client.key_value_set(key, message)
    return {key: message}

  def _silence(self, late: list[str]) -> str:
    return (
      f'process {", ".join(late)} of {len(self._seen)} sent no heartbeat '
      f'for {self.timeout:.0f} s: look at its log. {AGAIN}'
    )


def _reachable(address: str) -> bool:
  host, port = address.rsplit(':', 1)
  try:
    with socket.create_connection((host.strip('[]'), int(port)), timeout=5):
      return True
  except OSError:
    return False
