"""The file system of this machine: follows links, and names what it refuses."""

import errno
import os
import posixpath
import re
from collections.abc import Iterator
from typing import Any

from fsspec.implementations.local import LocalFileSystem
from fsspec.utils import glob_translate

from infoprune_jax.config.validation import UserError

_MAGIC = re.compile(r'[*?[]')


def printable(name: str) -> str:
  r"""A name as text that UTF-8 can hold: other bytes become '\xff'."""
  return os.fsencode(name).decode('utf-8', 'backslashreplace')


def is_glob(path: str) -> bool:
  """Whether a path is a pattern rather than a name."""
  return bool(_MAGIC.search(path))


def check_links(name: str) -> None:
  """Raises `UserError` if a link on the way to a local name leads nowhere."""
  while name != '/':
    if os.path.islink(name) and not os.path.exists(name):
      raise UserError(
        f'{printable(name)} is a symbolic link to '
        f'{printable(os.readlink(name))}, which does not exist. Restore the '
        'target, or delete the link.'
      )
    name = os.path.dirname(name)


class LocalFiles(LocalFileSystem):
  """Follows links, and refuses folders that may not be listed.

  fsspec skips both silently. Names are those of `canonical`.
  """

  def exists(self, path: str, **kwargs: Any) -> bool:
    """Whether there is such a file or folder; refuses links to nowhere."""
    del kwargs
    check_links(path)
    return os.path.exists(path)

  def info(self, path: str, **kwargs: Any) -> dict[str, Any]:
    """As fsspec's; refuses links to nowhere."""
    check_links(path)
    return super().info(path, **kwargs)

  def ls(self, path: str, detail: bool = False, **kwargs: Any) -> list[Any]:
    """As fsspec's, with the targets of links; broken links have type 'link'."""
    check_links(path)
    hidden = kwargs.get('hidden', True)
    with os.scandir(path) as entries:
      names = [e.path for e in entries if hidden or not e.name.startswith('.')]
    if not detail:
      return names
    return [info for name in names if (info := self._info(name))]

  def _open(self, path: str, *args: Any, **kwargs: Any) -> Any:
    check_links(path)
    return super()._open(path, *args, **kwargs)

  def _info(self, name: str) -> dict[str, Any] | None:
    """Details of a file; None if it is gone by now."""
    try:
      return super().info(name)
    except OSError as error:
      if error.errno not in (errno.ENOENT, errno.ELOOP):
        raise
    if not os.path.islink(name):
      return None
    return {'name': name, 'size': 0, 'type': 'link'}

  def walk(
    self, path: str, *args: Any, inside: tuple[str, ...] = (), **kwargs: Any
  ) -> Iterator[Any]:
    """As fsspec's; `find` uses it.

    Raises:
      UserError: a link leads to a folder that holds it.
    """
    real = os.path.realpath(path)
    if real in inside:
      link = path
      while not os.path.islink(link):
        link = os.path.dirname(link)
      raise UserError(
        f'{printable(link)} is a symbolic link to '
        f'{printable(os.readlink(link))}, a folder that holds it: a cycle '
        'without end. Delete the link, or name the folders beside it.'
      )
    kwargs |= {'on_error': _refuse, 'inside': (*inside, real)}
    return super().walk(path, *args, **kwargs)

  def glob(self, path: str, **kwargs: Any) -> dict[str, Any]:
    """The matches of a pattern that are not hidden, in the form of `find`.

    A part of the path that exists as it is spelled is a name, not a pattern.
    """
    del kwargs
    root, parts = split_glob(self, path)
    # The last part names files, the parts before it name folders.
    patterns = [
      re.compile(glob_translate('/'.join(parts[: number + 1])))
      for number in range(len(parts))
    ]
    depth = None if '**' in parts else len(parts)
    below_root: Any = self.find(  # Of `detail`: a dict.
      root, depth, withdirs=True, detail=True, hidden=False
    )
    matching = {}
    for name, info in below_root.items():
      below = name[len(posixpath.join(root, '')) :]
      if info['type'] == 'link' and any(p.match(below) for p in patterns):
        check_links(name)
      if patterns[-1].match(below):
        matching[name] = info
    return matching


def split_glob(filesystem: Any, path: str) -> tuple[str, list[str]]:
  """The folder of a glob, and the patterns of the parts of names below it."""
  root, parts = '/' * path.startswith('/'), path.strip('/').split('/')
  while len(parts) > 1:
    folder = posixpath.join(root, parts[0])
    there = isinstance(filesystem, LocalFiles) and os.path.lexists(folder)
    if is_glob(parts[0]) and not there:
      break
    root = folder
    del parts[0]
  return root, parts


def _refuse(error: Exception) -> None:
  if not isinstance(error, FileNotFoundError | NotADirectoryError):
    raise error
