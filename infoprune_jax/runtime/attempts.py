"""Attempts: of all that were started to write a folder, the newest alone may.

A process that was stopped and goes on, a host that was taken for lost, a worker
of Beam whose job was killed: each may still hold what it was about to write.
So an attempt puts a token of its own into the folder when it begins. Whoever
writes for it puts the token into temporary names, and compares it with the
folder's right before a file gets its final name.

On a local file system a file of an older attempt cannot slip in between: when
  an
attempt has put its token there, it deletes the temporary files of all others,
and what is deleted cannot be renamed. On an object store it can, for as long as
the upload of a file takes.
"""

import posixpath
import re
import secrets
from collections.abc import Callable
from typing import Any

from infoprune_jax.config.validation import UserError
from infoprune_jax.runtime import files

FILE = '.attempt'
_TEMPORARY = re.compile(r'\.[0-9a-f]{16}\.tmp$')


def begin(folder: str) -> str:
  """Begins an attempt, the only one that may write from now on.

  Returns:
    Its token.
  """
  token = secrets.token_hex(8)
  files.write_text(posixpath.join(folder, FILE), token)
  files.sweep(folder, _TEMPORARY)
  return token


def temporary(name: str, token: str) -> str:
  """The name of a file or folder of an attempt, while it is being written."""
  return f'{name}.{token}.tmp'


def write_file(
  folder: str, token: str, path: str, write: Callable[[Any], None]
) -> dict[str, Any]:
  """As `files.write_file`, for an attempt.

  Args:
    folder: That the attempt was begun on; the file is below it.
    token: As `begin` returned it; '' for none, who writes without asking.
    path: The file.
    write: Called with a binary file.

  Raises:
    UserError: another attempt has begun; the file is as it was.
  """
  if not token:
    return files.write_file(path, write)
  return _write(folder, token, path, write, lambda: _check(folder, token))


def write_last(
  folder: str, token: str, path: str, write: Callable[[Any], None]
) -> dict[str, Any]:
  """As `write_file`, and ends the attempt: nobody may write then."""

  def end() -> None:
    if token:
      _check(folder, token)
    files.remove(posixpath.join(folder, FILE))

  return _write(folder, token, path, write, end)


def _write(
  folder: str,
  token: str,
  path: str,
  write: Callable[[Any], None],
  check: Callable[[], None],
) -> dict[str, Any]:
  suffix = temporary('', token) if token else '.tmp'
  if token:
    # Also before a temporary file is made: an older attempt may be ended while
    # it writes, and nobody would delete that file from a finished folder.
    _check(folder, token)
  try:
    return files.write_file(path, write, suffix, check)
  except FileNotFoundError:
    check()  # The next attempt deletes temporary files.
    raise


def _check(folder: str, token: str) -> None:
  try:
    current = files.read_bytes(posixpath.join(folder, FILE))
  except FileNotFoundError:
    current = b''
  if current != token.encode():
    raise UserError(
      f'{folder} was deleted, or written by another job that began later: this '
      'one stops, and changes nothing more there. If no other job runs, run it '
      'again: what is finished is kept.'
    )
