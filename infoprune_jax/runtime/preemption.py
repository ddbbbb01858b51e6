"""SIGTERM and SIGINT as requests to save first and then stop.

A second signal ends the process at once, and so does the first if nothing
listens.
"""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from typing import NoReturn

_listening = threading.Event()
_asked = threading.Event()
_number = signal.SIGTERM  # the signal that asked
_at_exit: list[Callable[[int], None]] = []


class Stopped(Exception):
  """Work that was asked to stop has saved its state, and can continue later."""

  def __init__(self, message: str):
    """Notes the signal: SIGTERM if another process received it."""
    super().__init__(message)
    self.number = _number


@contextlib.contextmanager
def listening() -> Iterator[None]:
  """In this block requests are accepted: the work checks `is_asked` often."""
  _listening.set()
  try:
    yield
  finally:
    _listening.clear()
    _asked.clear()


def ask(number: int = signal.SIGTERM) -> bool:
  """Asks the work, because of a signal, to save and stop.

  Returns False if nothing listens, or if the work was asked before.
  """
  heard = _listening.is_set() and not _asked.is_set()
  if heard:
    global _number
    _number = number
    _asked.set()
  return heard


def is_asked() -> bool:
  """Whether the work should save and stop."""
  return _asked.is_set()


def at_exit(function: Callable[[int], None]) -> None:
  """Registers a function to call with a signal that ends the process.

  It is called in a thread, at any moment, and must return soon.
  """
  if function not in _at_exit:
    _at_exit.append(function)


def exit_for(number: int) -> NoReturn:
  """Ends the process at once, as a signal asks for."""
  for function in _at_exit:
    function(number)
  message = 'infoprune_jax: stopped; run it again to continue.\n'
  os.write(sys.stderr.fileno(), message.encode())
  os._exit(128 + number)
