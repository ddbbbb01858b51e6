"""Files and folders that a source's paths, globs and URLs name."""

import contextlib
import os
import posixpath
import re
import zipfile
import zlib
from collections.abc import Iterator
from typing import Any

import fsspec
import pyarrow as pa
from fsspec.implementations.local import LocalFileSystem

from infoprune_jax.config import UserError

# What file systems and codecs raise for what is not there, closed or damaged.
READ_ERRORS = (OSError, pa.ArrowException, zipfile.BadZipFile, zlib.error)


class _Local(LocalFileSystem):
  """Refuses folders that may not be listed, where fsspec leaves them out."""

  def walk(self, path: str, *args: Any, **kwargs: Any) -> Iterator[Any]:
    """As fsspec's, of which `find` and `glob` are made."""
    return super().walk(path, *args, **{**kwargs, 'on_error': _refuse})


def _refuse(error: Exception) -> None:
  if not isinstance(error, FileNotFoundError):
    raise error


def open_filesystem(field: str, path: str) -> tuple[Any, str]:
  """The fsspec file system of a path or URL, and the path on it.

  Args:
    field: The config field that names the path.
    path: As the user gave it; '~' is the home folder.

  Raises:
    UserError: there is no driver for it, or it does not answer.
  """
  try:
    filesystem, name = fsspec.core.url_to_fs(os.path.expanduser(path))
  except ImportError as error:
    package = getattr(error.__cause__, 'name', None) or 'what it names'
    raise UserError(
      f'{field}: {path!r} needs a driver that is not installed ({error}): '
      f'pip install {package}.'
    ) from None
  except ValueError as error:
    raise UserError(
      f'{field}: {path!r} is no path or URL that fsspec knows ({error}). URLs '
      'start with file://, gs://, s3://, https://, zip:// and the like; another '
      'scheme needs the package of its driver.'
    ) from None
  except READ_ERRORS as error:
    raise unreadable(field, path, error) from None
  if isinstance(filesystem, LocalFileSystem):
    filesystem = _Local()
  return filesystem, name


def unreadable(field: str, path: str, error: Exception) -> UserError:
  """What to tell of a path that is refused by its file system."""
  return UserError(
    f'{field}: {path!r} cannot be read: {_first_line(error)}. Mend its '
    'permissions, or name another path.'
  )


def _first_line(error: Exception) -> str:
  return (str(error).splitlines() or [type(error).__name__])[0]


@contextlib.contextmanager
def user_errors(path: str) -> Iterator[None]:
  """Makes what reading a file can raise a `UserError` with its path."""
  try:
    yield
  except READ_ERRORS as error:
    raise UserError(f'{path} cannot be read: {_first_line(error)}') from None


def is_glob(path: str) -> bool:
  """Whether a path names what matches it, rather than itself."""
  return any(character in path for character in '*?[')


def url(filesystem: Any, name: str, given: str) -> str:
  """The path to open a file by, as `given` names its file system."""
  if '://' not in given:
    return name
  _, chained, container = given.partition('::')
  return filesystem.unstrip_protocol(name) + chained + container


def display(path: str) -> str:
  """A path with what it is in before it: 'zip://a::/b.zip' is '/b.zip/a'."""
  inner, chained, container = path.partition('::')
  if not chained:
    return path
  return posixpath.join(container, inner.partition('://')[2])


def relative_names(paths: list[str], folders: list[str]) -> list[str]:
  """Names relative to what all folders share: so that no two are alike."""
  try:
    root = posixpath.commonpath([display(folder) for folder in folders])
  except ValueError:  # On different file systems.
    root = ''
  names = []
  for path in map(display, paths):
    name = posixpath.relpath(path, root) if root else path
    # A name may hold bytes that are no UTF-8; an id may not.
    names.append(os.fsencode(name).decode('utf-8', 'backslashreplace'))
  return names


def matches(field: str, path: str) -> tuple[str, list[tuple[str, int]]]:
  """The folder that a path names, and the files it matches, with sizes.

  Args:
    field: The config field that names the path.
    path: A file, a folder (with all below it), a glob, or a URL of one.

  Raises:
    UserError: nothing matches, or it may not be listed.
  """
  filesystem, pattern = open_filesystem(field, path)
  try:
    if is_glob(pattern):
      root = posixpath.dirname(re.split(r'[*?[]', pattern)[0])
      found = filesystem.glob(pattern, detail=True)
    else:
      root, found = _named(filesystem, pattern)
  except FileNotFoundError:
    root, found = '', {}
  except READ_ERRORS as error:
    raise unreadable(field, path, error) from None
  files = []
  for name, info in sorted(found.items()):
    relative = posixpath.relpath(name, root or '/')
    hidden = any(part.startswith('.') for part in relative.split('/'))
    if info['type'] == 'file' and not hidden:
      files.append((url(filesystem, name, path), info['size'] or 0))
  if not files:
    raise UserError(
      f'{field}: no file matches {path!r} (looked from {os.getcwd()}).'
    )
  return url(filesystem, root, path), files


def _named(filesystem: Any, path: str) -> tuple[str, dict[str, Any]]:
  """The folder of one file or folder, and the files with what is known."""
  if filesystem.isdir(path):
    root = path.rstrip('/')
    return root, filesystem.find(root, detail=True)
  return posixpath.dirname(path), {path: filesystem.info(path)}
