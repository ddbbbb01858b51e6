"""Files that grow by lines, on local disks and object stores alike."""

import os
import time
from collections.abc import Callable

from infoprune_jax.runtime import files

# An object store cannot append: each upload writes the whole file again.
# Between calls of `sync` there is at most one upload per minute, and uploads
# take at most this fraction of the time.
_UPLOAD_SECONDS, _UPLOAD_FRACTION = 60.0, 0.01


class AppendLog:
  """Appends bytes to a file.

  On a local file system each append goes to the system at once, so a killed
  process loses nothing. On an object store a killed process loses the bytes
  after the last upload, at most those since `sync`.
  """

  def __init__(
    self,
    path: str,
    beginning: bytes,
    writer: files.Writer = files.write_file,
    clock: Callable[[], float] = time.monotonic,
  ):
    """Opens the file, and makes `beginning` its whole content.

    Args:
      path: The file.
      beginning: The bytes to keep of an earlier process.
      writer: Writes whole files, see `files.write_text`.
      clock: Seconds.
    """
    self._path, self._writer, self._clock = path, writer, clock
    self._write_whole(beginning)
    self._next_upload = clock() + _UPLOAD_SECONDS
    self._is_synced = True
    # An open file stays that of this process if another one replaces it.
    self._file, self._content = None, bytearray()
    if files.is_local(path):
      self._file = open(files.canonical(path), 'ab')  # noqa: SIM115
    else:
      self._content += beginning

  def append(self, data: bytes) -> None:
    """Adds bytes at the end."""
    self._is_synced = False
    if self._file:
      self._file.write(data)
      self._file.flush()
      return
    self._content += data
    if self._clock() >= self._next_upload:
      self.sync()

  def sync(self) -> None:
    """Returns when all that was appended is stored on disk."""
    if self._is_synced:
      return
    if self._file:
      os.fsync(self._file.fileno())
    else:
      begin = self._clock()
      self._write_whole(bytes(self._content))
      end = self._clock()
      wait = max(_UPLOAD_SECONDS, (end - begin) / _UPLOAD_FRACTION)
      self._next_upload = end + wait
    self._is_synced = True

  def close(self) -> None:
    """Syncs and closes."""
    try:
      self.sync()
    finally:
      if self._file:
        self._file.close()

  def _write_whole(self, data: bytes) -> None:
    self._writer(self._path, lambda file: file.write(data))
