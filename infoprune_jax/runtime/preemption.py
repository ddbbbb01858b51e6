"""SIGTERM and SIGINT as requests: who can save first does so, and ends by itself.

The second one ends the process at once, and so does the first where nothing
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
  """What was asked to stop has saved, and can go on from there."""

  def __init__(self, message: str):
    """Notes the signal that asked: SIGTERM, if another process was asked."""
    super().__init__(message)
    self.number = _number


@contextlib.contextmanager
def listening() -> Iterator[None]:
  """In this block `ask` is heard: the work looks at `is_asked` often."""
  _listening.set()
  try:
    yield
  finally:
    _listening.clear()
    _asked.clear()


def ask(number: int = signal.SIGTERM) -> bool:
  """Asks the work, because of a signal, to save and stop; whether it will.

  It will not if it does not listen, or was asked before.
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
  """Has a function called, with the signal, before one ends the process.

  It is called in a thread, at any moment, and must return soon.
  """
  if function not in _at_exit:
    _at_exit.append(function)


def exit_for(number: int) -> NoReturn:
  """Ends the process at once, as a signal asks for."""
  for function in _at_exit:
    function(number)
  message = 'infoprune_jax: stopped; run it again to go on.\n'
  os.write(sys.stderr.fileno(), message.encode())
  os._exit(128 + number)
