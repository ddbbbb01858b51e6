"""SIGTERM as a request: who can save first does so, and ends by itself."""

import contextlib
import threading
from collections.abc import Iterator

_listening = threading.Event()
_asked = threading.Event()


class Stopped(Exception):
  """What was asked to stop has saved, and can go on from there."""


@contextlib.contextmanager
def listening() -> Iterator[None]:
  """In this block `ask` is heard: the work looks at `is_asked` often."""
  _listening.set()
  try:
    yield
  finally:
    _listening.clear()
    _asked.clear()


def ask() -> bool:
  """Asks the work to save and stop; whether it will.

  It will not if it does not listen, or was asked before.
  """
  heard = _listening.is_set() and not _asked.is_set()
  if heard:
    _asked.set()
  return heard


def is_asked() -> bool:
  """Whether the work should save and stop."""
  return _asked.is_set()
