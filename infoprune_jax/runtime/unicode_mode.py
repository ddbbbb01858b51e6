"""UTF-8 for names of files and for what is printed, whatever the locale says."""

import io
import os
import sys

_VARIABLE = 'PYTHONUTF8'


def enter() -> None:
  """Runs the program again in Python's UTF-8 mode, unless it is UTF-8 already.

  Under LC_ALL=C Python cannot open a file whose name is not ASCII, and nothing
  that a running program does changes that. Processes that it starts inherit the
  mode.
  """
  if sys.getfilesystemencoding() != 'utf-8' and (
    os.environ.get(_VARIABLE) != '1'  # It would not help again.
  ):
    os.environ[_VARIABLE] = '1'
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
  print_anything()


def print_anything() -> None:
  """Output is UTF-8; a name of a file that is not is printed with escapes."""
  for stream in (sys.stdout, sys.stderr):
    if isinstance(stream, io.TextIOWrapper):
      stream.reconfigure(encoding='utf-8', errors='backslashreplace')
