"""Local copies of objects, bounded in size.

A process keeps the files that it used last in a folder of its own, below
`TMPDIR`. The folder is deleted when the process ends. If it is killed, the next
process of this machine that caches anything deletes it: a lock of the kernel
tells which folders have no process any more.
"""

import atexit
import collections
import contextlib
import fcntl
import hashlib
import os
import shutil
import tempfile
import threading
from typing import Any

from infoprune_jax.config.validation import UserError
from infoprune_jax.runtime import object_stores

LIMIT = 'INFOPRUNE_CACHE_GB'  # the variable with the limit of each process
_PREFIX, _LOCK = 'infoprune-cache-', '.lock'


class LocalCache:
  """Copies of objects in a folder.

  A thread must open a copy before it asks for another one. An open or mapped
  file stays readable after its copy is deleted, and takes space until it is
  closed.
  """

  def __init__(self, limit: int):
    """Makes an empty folder.

    Args:
      limit: In bytes. One copy per thread is kept even if it is larger.
    """
    _delete_abandoned()
    self._limit = limit
    self.folder = tempfile.mkdtemp(prefix=_PREFIX)
    self._held = open(os.path.join(self.folder, _LOCK), 'w')  # noqa: SIM115
    fcntl.flock(self._held, fcntl.LOCK_EX)
    self._sizes: collections.OrderedDict[str, int] = collections.OrderedDict()
    self._newest: dict[int, str] = {}  # of each thread
    self._lock = threading.Lock()
    self._downloads: dict[str, threading.Lock] = {}

  def get(self, filesystem: Any, name: str, anew: bool = False) -> str:
    """The path of a copy of an object.

    Args:
      filesystem: Of the store.
      name: Of the object.
      anew: Whether to download it even if there is a copy.

    Raises:
      FileNotFoundError: there is no such object.
    """
    key = f'{type(filesystem).__name__} {filesystem.to_json()} {name}'
    path = os.path.join(self.folder, hashlib.sha256(key.encode()).hexdigest())
    with self._lock:
      self._newest[threading.get_ident()] = path
      one = self._downloads.setdefault(path, threading.Lock())
    with one:
      if anew or path not in self._sizes:
        temporary = f'{path}.tmp'
        try:
          object_stores.download(filesystem, name, temporary)
          os.replace(temporary, path)
        finally:
          with contextlib.suppress(FileNotFoundError):
            os.remove(temporary)
      with self._lock:
        self._sizes[path] = os.path.getsize(path)
        self._sizes.move_to_end(path)
        self._evict()
    return path

  def _evict(self) -> None:
    """Deletes the copies that were not used for longest."""
    alive = {thread.ident for thread in threading.enumerate()}
    self._newest = {k: v for k, v in self._newest.items() if k in alive}
    kept = {*self._newest.values()}
    total = sum(self._sizes.values())
    for path in [*self._sizes]:
      if total <= self._limit:
        return
      if path not in kept:
        os.remove(path)
        total -= self._sizes.pop(path)

  def delete(self) -> None:
    """Deletes the folder."""
    shutil.rmtree(self.folder, ignore_errors=True)
    self._held.close()


def _delete_abandoned() -> None:
  """Deletes the folders of processes that were killed."""
  root = tempfile.gettempdir()
  for name in os.listdir(root):
    folder = os.path.join(root, name)
    if not name.startswith(_PREFIX):
      continue
    with contextlib.suppress(OSError), open(f'{folder}/{_LOCK}') as lock:
      fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
      shutil.rmtree(folder, ignore_errors=True)


_caches: dict[int, LocalCache] = {}  # by process: a fork gets one of its own
_making = threading.Lock()


def copy_of(filesystem: Any, name: str, anew: bool = False) -> str:
  """The path of a copy of an object in the cache of this process.

  Raises:
    FileNotFoundError: there is no such object.
    UserError: `LIMIT` is not a number above 0.
  """
  with _making:
    if os.getpid() not in _caches:
      cache = _caches[os.getpid()] = LocalCache(limit())
      atexit.register(cache.delete)
  return _caches[os.getpid()].get(filesystem, name, anew)


def limit() -> int:
  """Bytes of the cache of one process: `LIMIT`, or half of the free space.

  Raises:
    UserError: `LIMIT` is not a number above 0.
  """
  given = os.environ.get(LIMIT)
  if given is None:
    return shutil.disk_usage(tempfile.gettempdir()).free // 2
  with contextlib.suppress(ValueError):
    if 0 < float(given) < float('inf'):
      return int(float(given) * 1e9)
  raise UserError(
    f'The environment variable {LIMIT} is {given!r}, expected gigabytes, a '
    'number above 0: set it to, for instance, 20, or unset it.'
  )
