"""Files that grow by lines, on local disks and object stores alike."""

import os
import time
from collections.abc import Callable

from infoprune_jax.runtime import files

# An object store cannot append: each upload writes the whole file again.
# Between calls of `sync` there is one a minute, or fewer, so that uploads take
# at most this fraction of the time.
_UPLOAD_SECONDS, _UPLOAD_FRACTION = 60.0, 0.01


class AppendLog:
  """Appends bytes to a file.

  On a local file system each append is handed to the system at once, so that a
  killed process loses nothing of it. On an object store a killed process loses
  what came after the last upload: at most what was appended since `sync`.
  """

  def __init__(
    self,
    path: str,
    beginning: bytes,
    writer: files.Writer = files.write_file,
    clock: Callable[[], float] = time.monotonic,
  ):
    """Makes `beginning` the whole content of the file.

    Args:
      path: The file.
      beginning: What is kept of an earlier process's.
      writer: How whole files are written, see `files.write_text`.
      clock: Seconds.
    """
    self._path, self._writer, self._clock = path, writer, clock
    self._write_whole(beginning)
    self._next_upload = clock() + _UPLOAD_SECONDS
    self._is_synced = True
    # An open file stays that of this process when another replaces it.
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
    """Returns when the file has what was appended, whatever happens then."""
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
