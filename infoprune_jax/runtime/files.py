"""Writes files whole or not at all, on local disks and object stores alike.

Uses `filesystems`, and the locks of the kernel if there are any.
"""

import contextlib
import errno
import fcntl
import functools
import hashlib
import json
import os
import re
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypedDict

from infoprune_jax.config.validation import UserError
from infoprune_jax.runtime import object_stores
from infoprune_jax.runtime.filesystems import (
  canonical,
  check_utf8,
  filesystem_of,
  is_local,
  make_folder,
  read_bytes,
)

LOCK = '.lock'  # the file by which a process holds a folder


class ContentHash(TypedDict):
  """The checksum of some content."""

  sha256: str  # as hex digits


class FileFacts(ContentHash):
  """The checksum of a file, and its size."""

  bytes: int


class _HashingWriter:
  """A binary file that digests and counts what passes through."""

  def __init__(self, file: Any):  # A binary file, or a wrapper of one.
    self._file = file
    self.sha256 = hashlib.sha256()
    self.size = 0
    self.closed = False

  def write(self, data: Any) -> int:
    view = memoryview(data).cast('B')
    self._file.write(view)
    self.sha256.update(view)
    self.size += len(view)
    return len(view)

  def facts(self) -> FileFacts:
    return FileFacts(sha256=self.sha256.hexdigest(), bytes=self.size)

  def flush(self) -> None:
    self._file.flush()

  def tell(self) -> int:
    return self.size

  def close(self) -> None:
    """Does nothing: a wrapper closes this file before its owner is done."""


def write_file(
  path: str,
  write: Callable[[Any], None],
  suffix: str = '.tmp',
  check: Callable[[], None] = lambda: None,
) -> FileFacts:
  """Writes a file whole or not at all.

  Args:
    path: Its final name; the folder is created.
    write: Called with a binary file to write to.
    suffix: Suffix of the temporary name, on a local file system.
    check: Called when the file is complete, right before others see it. If it
      raises, the file does not change.

  Returns:
    The checksum and size of the content.
  """
  filesystem, name = filesystem_of(path)
  make_folder(os.path.dirname(path))
  if not is_local(path):
    with tempfile.NamedTemporaryFile() as file:  # Then uploaded.
      writer = _HashingWriter(file)
      write(writer)
      file.flush()
      object_stores.upload(filesystem, name, file, check)
    return writer.facts()
  temporary = name + suffix
  try:
    with open(temporary, 'wb') as file:
      writer = _HashingWriter(file)
      write(writer)
      file.flush()
      os.fsync(file.fileno())
    check()
    os.replace(temporary, name)
  except BaseException:
    with contextlib.suppress(FileNotFoundError):
      os.remove(temporary)
    raise
  return writer.facts()


Writer = Callable[[str, Callable[[Any], None]], FileFacts]


def sweep(folder: str, names: re.Pattern[str]) -> None:
  """Deletes files and folders below a local folder whose name matches.

  An object store shows no incomplete files.
  """
  if not is_local(folder):
    return
  for parent, folders, files in os.walk(canonical(folder)):
    for name in filter(names.search, files):
      remove(os.path.join(parent, name))
    for name in filter(names.search, folders):
      # The owner of the folder may still be writing there.
      shutil.rmtree(os.path.join(parent, name), ignore_errors=True)


def remove(path: str) -> None:
  """Deletes a file, if it is there."""
  filesystem, name = filesystem_of(path)
  with contextlib.suppress(FileNotFoundError):
    filesystem.rm_file(name)


def write_text(path: str, text: str, writer: Writer = write_file) -> FileFacts:
  """Writes UTF-8 text whole or not at all, and returns its checksum.

  Args:
    path: The file.
    text: Its content.
    writer: `write_file`, or that of an artifact.
  """
  return writer(path, lambda file: file.write(text.encode()))


def write_json(path: str, value: Any, writer: Writer = write_file) -> FileFacts:
  """Writes JSON whole or not at all, and returns its checksum."""
  text = json.dumps(value, indent=1, allow_nan=False) + '\n'
  return write_text(path, text, writer)


def read_json(path: str) -> Any | None:
  """The content of a JSON file, or None if there is no such file.

  Raises:
    UserError: the file is not JSON.
  """
  try:
    return json.loads(read_bytes(path))
  except FileNotFoundError:
    return None
  except ValueError as error:
    raise UserError(
      f'{path} is damaged ({error}): delete it and run its stage again.'
    ) from None


def write_record(
  path: str, value: Mapping[str, object], writer: Writer = write_file
) -> FileFacts:
  """Writes a JSON object that carries a checksum of its own content."""
  return write_text(path, _sealed(value)[0], writer)


def read_record(path: str, repair_hint: str) -> dict[str, Any] | None:
  """The object that `write_record` wrote, or None if there is no such file.

  Args:
    path: The file.
    repair_hint: What the user should do if it is damaged, as a sentence.

  Raises:
    UserError: a byte of the file has changed.
  """
  try:
    data = read_bytes(path)
  except FileNotFoundError:
    return None
  try:
    value = json.loads(data)
    said = value.pop('checksum')
    text, checksum = _sealed(value)
  except (AttributeError, KeyError, RecursionError, TypeError, ValueError):
    raise UserError(
      f'{path} is damaged: its {len(data)} bytes are not a JSON object with a '
      f'checksum. {repair_hint}'
    ) from None
  # Compares bytes: a change that JSON ignores is damage, too.
  if text.encode() != data:
    raise UserError(
      f'{path} is damaged: its content has checksum {checksum}, expected '
      f'{said}. {repair_hint}'
    )
  return value


def _sealed(value: Mapping[str, object]) -> tuple[str, str]:
  """A record as text, and its checksum."""
  text = json.dumps(value, indent=1, allow_nan=False)
  checksum = hashlib.sha256(text.encode()).hexdigest()[:16]
  sealed = json.dumps(
    {**value, 'checksum': checksum}, indent=1, allow_nan=False
  )
  return sealed + '\n', checksum


def facts_of(path: str) -> FileFacts:
  """Size and checksum of a local file, as `write_file` returns them.

  A process reads a file once, in blocks, until it changes.

  Raises:
    FileNotFoundError: there is no such file.
  """
  status = os.stat(path)
  digest = _sha256(path, status.st_size, status.st_mtime_ns, status.st_ino)
  return FileFacts(sha256=digest, bytes=status.st_size)


@functools.cache
def _sha256(path: str, *version: int) -> str:
  del version  # Only a key of the cache.
  with open(path, 'rb') as file:
    return hashlib.file_digest(file, 'sha256').hexdigest()


@contextlib.contextmanager
def lock(path: str) -> Iterator[None]:
  """Holds the folder `path` for this process, until the process ends.

  The lock is the kernel's, so a killed process leaves none behind. Object
  stores have no locks: there, the user must run one job per artifact.

  Raises:
    UserError: another process holds it.
  """
  if not is_local(path):
    yield
    return
  make_folder(path)
  name = os.path.join(canonical(path), LOCK)
  with open(name, 'a+', errors='replace') as file:
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      file.seek(0)
      raise UserError(
        f'{path} is being written by another process (pid '
        f'{file.read().strip() or "unknown"}): wait for it, stop it, or use '
        'another --workdir.'
      ) from None
    file.truncate(0)
    file.write(f'{os.getpid()}\n')
    file.flush()
    yield


def check_writable(
  path: str, what: str = 'workdir', option: str = '--workdir'
) -> None:
  """Creates the folder `path`, and checks that it can be written.

  Args:
    path: The folder.
    what: A name of it for the user.
    option: The option that names it.

  Raises:
    UserError: it cannot be written.
  """
  if not is_local(path):
    _try_store(path, what, option)
    return
  check_utf8(canonical(path), option)
  try:
    make_folder(path)
    with tempfile.TemporaryFile(dir=canonical(path)):
      pass
  except OSError as error:
    raise UserError(
      f'The {what} {path} cannot be written: {error.strerror}. Make it '
      f'writable, or name another with {option}.'
    ) from None


def _try_store(path: str, what: str, option: str) -> None:
  """Writes a file to an object store, and deletes it."""
  probe = f'{path}/.writable-{secrets.token_hex(8)}'
  try:
    write_text(probe, 'x')
    remove(probe)
  except UserError:
    raise
  except Exception as error:  # Each driver has errors of its own.
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    raise UserError(
      f'The {what} {path} cannot be written: {reason}. Make it writable, or '
      f'name another with {option}.'
    ) from None


@contextlib.contextmanager
def scratch_folder(path: str = '') -> Iterator[str]:
  """A folder of this machine, deleted at the end.

  It is for libraries that write to a path of their own.

  Args:
    path: Where to make it; its old content is deleted. If '' or in an object
      store, the folder is made elsewhere.
  """
  if not path or not is_local(path):
    with tempfile.TemporaryDirectory() as made:
      yield made
    return
  made = canonical(path)
  shutil.rmtree(made, ignore_errors=True)
  os.makedirs(made)
  try:
    yield made
  finally:
    shutil.rmtree(made, ignore_errors=True)


def copy_into(path: str, file: Any) -> None:
  """Writes the content of a file in such a folder to a binary file."""
  with open(path, 'rb') as written:
    shutil.copyfileobj(written, file, 1 << 20)


def upload_folder(made: str, path: str, writer: Writer = write_file) -> None:
  """Writes all files of such a folder below `path`, under the same names."""
  for parent, _, names in os.walk(made):
    for name in names:
      source = os.path.join(parent, name)
      target = os.path.join(path, os.path.relpath(source, made))
      writer(target, lambda file, s=source: copy_into(s, file))


# Errors of a file system, and what the user can do about them.
_REFUSALS = {
  errno.ENOSPC: 'Free some space',
  errno.EDQUOT: 'Free some space, or raise the quota',
  errno.EFBIG: 'Allow larger files (ulimit -f)',
  errno.EROFS: 'Make it writable',
  errno.EACCES: 'Make it accessible',
  errno.EPERM: 'Make it accessible',
  errno.EIO: 'Check the device',
}
# Libraries quote these messages of the system in errors of their own.
_QUOTED = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)


def refusal(error: BaseException | None) -> str:
  """The error of a file system and what to do; '' for any other error."""
  if isinstance(error, OSError) and error.errno is not None:
    numbers = [number for number in _REFUSALS if number == error.errno]
  else:
    text = str(error)
    numbers = [number for number in _QUOTED if os.strerror(number) in text]
  if not numbers:
    return ''
  name = getattr(error, 'filename', None)
  where = f': {os.fsdecode(name)}' if name else ''
  return f'{os.strerror(numbers[0])}{where}. {_REFUSALS[numbers[0]]}'
