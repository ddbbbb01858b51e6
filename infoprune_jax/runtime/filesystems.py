"""The file system of a path or URL, and its canonical name there.

This is the only module that uses fsspec. `~/x`, `file:///x`, `./x`, `x/`,
`a//x` and `a/../x` are spellings of local names. `::` is part of a name, except
after a protocol that reads files of another store: `zip://*.txt::/b.zip`.
Symbolic links are followed.
"""

import contextlib
import errno
import fnmatch
import functools
import inspect
import os
import posixpath
import re
import sys
from collections.abc import Iterator
from typing import Any, BinaryIO

import fsspec
from fsspec.implementations.local import LocalFileSystem
from fsspec.utils import glob_translate

from infoprune_jax.config.validation import UserError
from infoprune_jax.runtime import drivers

_FILE_URL = re.compile(r'^(file|local):(//(localhost(?=/))?|(?=/))')
_PROTOCOL = re.compile(r'^([A-Za-z][A-Za-z0-9+.-]*)(://|::)')
_MAGIC = re.compile(r'[*?[]')


def is_local(path: str) -> bool:
  """Whether `path` is on a mounted file system."""
  url = _PROTOCOL.match(path)
  if not url or _FILE_URL.match(path):
    return True
  return url[2] == '::' and url[1] not in fsspec.available_protocols()


def canonical(path: str) -> str:
  """The canonical spelling of a path: absolute if local, without a last '/'.

  Only links before '..' are resolved, as the system does.

  >>> canonical('file:///runs//lr[3e-4]/../a::1/')
  '/runs/a::1'
  """
  if not is_local(path):
    return path if split_chain(path)[1] else path.rstrip('/')
  name = os.path.expanduser(_FILE_URL.sub('', path))
  # If the locale is not UTF-8, Python spells such names in its own way.
  name = os.fsdecode(name.encode('utf-8', 'surrogateescape'))
  folder = '/' if name.startswith('/') else os.getcwd()
  for part in name.split('/'):
    if part == '..':
      link = os.path.islink(folder)
      folder = os.path.dirname(os.path.realpath(folder) if link else folder)
    elif part not in ('', '.'):
      folder = posixpath.join(folder, part)
  return folder


def printable(name: str) -> str:
  r"""A name as text that UTF-8 can hold: other bytes become '\xff'."""
  return os.fsencode(name).decode('utf-8', 'backslashreplace')


def check_utf8(path: str, option: str) -> None:
  """Raises `UserError` for a name that Orbax, TensorFlow or Arrow cannot open.

  Args:
    path: A path from `canonical`.
    option: The option that names it.
  """
  try:
    path.encode('utf-8')
  except UnicodeEncodeError:
    problem = (
      f'{option}: the name {printable(path)} cannot be opened by the libraries '
      'that write checkpoints and tables: '
    )
    encoding = sys.getfilesystemencoding()
    if encoding != 'utf-8':
      raise UserError(
        f'{problem}names are {encoding} in this locale. Set PYTHONUTF8=1.'
      ) from None
    raise UserError(f'{problem}it is not UTF-8. Name another.') from None


def split_chain(path: str) -> tuple[str, str]:
  """The path in a container, and the container; '' for none.

  >>> split_chain('zip://*.jsonl::/b.zip')
  ('zip://*.jsonl', '/b.zip')
  """
  inner, _, container = path.partition('::')
  if container and not is_local(path) and _reads_others(path):
    return inner, container
  return path, ''


def _reads_others(path: str) -> bool:
  """Whether a file system reads files of another file system."""
  with drivers.missing_driver_as_user_error(path):
    system = fsspec.get_filesystem_class(path.partition(':')[0])
  takes = {
    name
    for base in system.__mro__
    for name in inspect.signature(base.__init__).parameters
  }
  return not takes.isdisjoint(('fo', 'target_protocol'))


def filesystem_of(path: str) -> tuple[Any, str]:
  """The fsspec file system of a path or URL, and its name there.

  Raises:
    UserError: there is no driver for it, or fsspec does not know the URL.
  """
  if is_local(path):
    return _LOCAL, canonical(path)
  with drivers.missing_driver_as_user_error(path):
    if '::' not in path or split_chain(path)[1]:
      return fsspec.core.url_to_fs(path)
    protocol = path.partition(':')[0]
    system = fsspec.get_filesystem_class(protocol)
    options = system._get_kwargs_from_urls(path)
    return fsspec.filesystem(protocol, **options), system._strip_protocol(path)


@contextlib.contextmanager
def open_file(path: str) -> Iterator[BinaryIO]:
  """Opens a file to read bytes.

  Raises:
    FileNotFoundError: there is no such file.
    UserError: a link on the way to it leads nowhere.
  """
  filesystem, name = filesystem_of(path)
  # Keep the file system: a zip is closed when its file system is deleted.
  with filesystem.open(name, 'rb') as file:
    yield file


def local_copy(path: str) -> str:
  """A local file with the content of `path`: itself, or a cached download.

  Raises:
    UserError: a link on the way to it leads nowhere.
  """
  filesystem, name = filesystem_of(path)
  if filesystem is _LOCAL:
    if not os.path.exists(name):
      _check_links(name)
    return name
  with _downloads(filesystem).open(name, 'rb') as file:
    return file.name


@functools.cache
def _downloads(filesystem: Any) -> Any:
  return fsspec.filesystem('simplecache', fs=filesystem)


def make_folder(path: str) -> None:
  """Creates a folder and its parents if they are missing.

  Raises:
    UserError: a link on the way to it leads nowhere.
  """
  filesystem, name = filesystem_of(path)
  try:
    filesystem.makedirs(name, exist_ok=True)
  except OSError:
    check_links(path)
    raise


def delete_folder(path: str) -> None:
  """Deletes a folder, if it is there; for a link, also the target."""
  filesystem, name = filesystem_of(path)
  if not filesystem.exists(name):
    return
  if filesystem is _LOCAL and os.path.islink(name):
    filesystem.rm(os.path.realpath(name), recursive=True)
    os.unlink(name)
  elif filesystem is _LOCAL or not is_glob(name):
    filesystem.rm(name, recursive=True)
  else:  # `rm` would take the name for a pattern.
    for file in filesystem.find(name):
      filesystem.rm_file(file)


def names_in(folder: str) -> list[str]:
  """The sorted names in a folder; [] if there is no such folder.

  Raises:
    UserError: a link on the way to it leads nowhere.
  """
  filesystem, root = filesystem_of(folder)
  # Object stores are listed once and remembered.
  filesystem.invalidate_cache()
  try:
    entries = filesystem.ls(root, detail=False)
  except (FileNotFoundError, NotADirectoryError):
    return []
  names = {name.rstrip('/') for name in entries} - {root.rstrip('/')}
  return sorted(posixpath.basename(name) for name in names)


def matching(folder: str, pattern: str) -> list[str]:
  """The paths below a folder that match a pattern.

  Args:
    folder: A name, not a pattern; it may hold '[' and '*'.
    pattern: A pattern of names below it, such as 'train/*/seed-*'.

  Raises:
    UserError: a link that matches leads nowhere.
  """
  paths = [folder]
  for part in pattern.split('/'):
    paths = [
      posixpath.join(parent, name)
      for parent in paths
      for name in fnmatch.filter(names_in(parent), part)
    ]
  for path in paths:
    check_links(path)
  return paths


def expand(filesystem: Any, name: str) -> tuple[str, dict[str, Any]]:
  """The files of a path, a folder or a glob, without hidden local files.

  The name of an existing file is not a glob.

  Returns:
    The folder, and details of each file below it (for a glob: of each file or
    folder that matches), by name.

  Raises:
    FileNotFoundError: there is no such file.
    UserError: a link leads nowhere, or to a folder that holds it; or '**' is
      not a whole name.
  """
  if filesystem is _LOCAL:
    _check_links(name)
  if is_glob(name) and not filesystem.exists(name):
    for part in name.split('/'):
      if '**' in part and part != '**':
        raise UserError(
          f"{name}: '**' stands for folders, so it must be a whole name: write "
          f'{part.replace("**", "*")!r}, or put a / beside it.'
        )
    root, _ = _split_glob(filesystem, name)
    return root, filesystem.glob(name, detail=True)
  if not filesystem.isdir(name):
    return posixpath.dirname(name), {name: filesystem.info(name)}
  root = name.rstrip('/')
  if filesystem is not _LOCAL:
    return root, filesystem.find(root, detail=True)
  files = filesystem.find(root, detail=True, hidden=False)
  for file, info in files.items():
    if info['type'] == 'link':
      _check_links(file)
  return root, files


def is_glob(path: str) -> bool:
  """Whether a path is a pattern rather than a name."""
  return bool(_MAGIC.search(path))


def check_links(path: str) -> None:
  """Raises `UserError` if a link on the way to a path leads nowhere."""
  if is_local(path):
    _check_links(canonical(path))


def _check_links(name: str) -> None:
  while name != '/':
    if os.path.islink(name) and not os.path.exists(name):
      raise UserError(
        f'{printable(name)} is a symbolic link to '
        f'{printable(os.readlink(name))}, which does not exist. Restore the '
        'target, or delete the link.'
      )
    name = os.path.dirname(name)


class _Local(LocalFileSystem):
  """Follows links, and refuses folders that may not be listed.

  fsspec skips both silently. Names are those of `canonical`.
  """

  def exists(self, path: str, **kwargs: Any) -> bool:
    """Whether there is such a file or folder; refuses links to nowhere."""
    del kwargs
    _check_links(path)
    return os.path.exists(path)

  def info(self, path: str, **kwargs: Any) -> dict[str, Any]:
    """As fsspec's; refuses links to nowhere."""
    _check_links(path)
    return super().info(path, **kwargs)

  def ls(self, path: str, detail: bool = False, **kwargs: Any) -> list[Any]:
    """As fsspec's, with the targets of links; broken links have type 'link'."""
    _check_links(path)
    hidden = kwargs.get('hidden', True)
    with os.scandir(path) as entries:
      names = [e.path for e in entries if hidden or not e.name.startswith('.')]
    if not detail:
      return names
    return [info for name in names if (info := self._info(name))]

  def _open(self, path: str, *args: Any, **kwargs: Any) -> Any:
    _check_links(path)
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
    root, parts = _split_glob(self, path)
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
        _check_links(name)
      if patterns[-1].match(below):
        matching[name] = info
    return matching


def _split_glob(filesystem: Any, path: str) -> tuple[str, list[str]]:
  """The folder of a glob, and the patterns of the parts of names below it."""
  root, parts = '/' * path.startswith('/'), path.strip('/').split('/')
  while len(parts) > 1:
    folder = posixpath.join(root, parts[0])
    there = filesystem is _LOCAL and os.path.lexists(folder)
    if is_glob(parts[0]) and not there:
      break
    root = folder
    del parts[0]
  return root, parts


def _refuse(error: Exception) -> None:
  if not isinstance(error, FileNotFoundError | NotADirectoryError):
    raise error


_LOCAL = _Local()
