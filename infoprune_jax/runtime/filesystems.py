"""The file system of a path or URL, and its canonical name there.

Only this module and `local_files` import fsspec. `~/x`, `file:///x`, `./x`, `x/`,
`a//x` and `a/../x` are spellings of local names. `::` is part of a name, except
after a protocol that reads files of another store: `zip://*.txt::/b.zip`.
Symbolic links are followed.
"""

import contextlib
import fnmatch
import inspect
import io
import os
import posixpath
import re
import sys
from collections.abc import Iterator
from typing import Any, BinaryIO

import fsspec
import fsspec.config

from infoprune_jax.config.validation import UserError
from infoprune_jax.runtime import (
  drivers,
  local_cache,
  local_files,
  object_stores,
)
from infoprune_jax.runtime.local_files import (
  LocalFiles,
  is_glob,
  printable,
  split_glob,
)

_FILE_URL = re.compile(r'^(file|local):(//(localhost(?=/))?|(?=/))')
_PROTOCOL = re.compile(r'^([A-Za-z][A-Za-z0-9+.-]*)(://|::)')
# Of what a listing once showed fsspec answers later questions, too: whether a
# file is there that another process writes. This holds for Orbax as well.
for _protocol in ('gs', 's3'):
  fsspec.config.conf.setdefault(_protocol, {}).setdefault(
    'use_listings_cache', False
  )


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
    if filesystem is _LOCAL or not file.seekable():
      yield file
      return
    with io.BufferedReader(object_stores.WholeReader(file, path)) as whole:
      yield whole


def read_bytes(path: str) -> bytes:
  """The content of a file.

  Raises:
    FileNotFoundError: there is no such file.
    UserError: a link on the way to it leads nowhere.
  """
  filesystem, name = filesystem_of(path)
  if filesystem is not _LOCAL:
    return object_stores.read_whole(filesystem, name)
  with filesystem.open(name, 'rb') as file:
    return file.read()


def local_copy(path: str, anew: bool = False) -> str:
  """A local file with the content of `path`: itself, or a cached download.

  Open it before the next call of this thread, see `local_cache`.

  Args:
    path: The file.
    anew: Whether to download it again.

  Raises:
    FileNotFoundError: there is no such object.
    UserError: a link on the way to it leads nowhere.
  """
  filesystem, name = filesystem_of(path)
  if filesystem is not _LOCAL:
    return local_cache.copy_of(filesystem, name, anew)
  if not os.path.exists(name):
    local_files.check_links(name)
  return name


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
  elif filesystem is _LOCAL:
    filesystem.rm(name, recursive=True)
  else:  # `rm` would take the name for a pattern, and refuse one that is gone.
    for file in filesystem.find(name):
      with contextlib.suppress(FileNotFoundError):
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
    local_files.check_links(name)
  if is_glob(name) and not filesystem.exists(name):
    for part in name.split('/'):
      if '**' in part and part != '**':
        raise UserError(
          f"{name}: '**' stands for folders, so it must be a whole name: write "
          f'{part.replace("**", "*")!r}, or put a / beside it.'
        )
    root, _ = split_glob(filesystem, name)
    return root, filesystem.glob(name, detail=True)
  if not filesystem.isdir(name):
    return posixpath.dirname(name), {name: filesystem.info(name)}
  root = name.rstrip('/')
  if filesystem is not _LOCAL:
    return root, filesystem.find(root, detail=True)
  files = filesystem.find(root, detail=True, hidden=False)
  for file, info in files.items():
    if info['type'] == 'link':
      local_files.check_links(file)
  return root, files


def check_links(path: str) -> None:
  """Raises `UserError` if a link on the way to a path leads nowhere."""
  if is_local(path):
    local_files.check_links(canonical(path))


_LOCAL = LocalFiles()
