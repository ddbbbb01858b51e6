"""UTF-8 for names of files and for output, in any locale."""

import io
import os
import sys

_VARIABLE = 'PYTHONUTF8'


def enter() -> None:
  """Runs the program again in Python's UTF-8 mode, unless it is UTF-8 already.

  Under LC_ALL=C Python cannot open a file whose name is not ASCII. A running
  program cannot change that. Child processes inherit the mode.
  """
  if sys.getfilesystemencoding() != 'utf-8' and (
    os.environ.get(_VARIABLE) != '1'  # A second try would not help.
  ):
    os.environ[_VARIABLE] = '1'
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
  print_anything()


def print_anything() -> None:
  """Makes output UTF-8; file names that are not UTF-8 are printed escaped."""
  for stream in (sys.stdout, sys.stderr):
    if isinstance(stream, io.TextIOWrapper):
      stream.reconfigure(encoding='utf-8', errors='backslashreplace')
