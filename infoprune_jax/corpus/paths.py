"""Files and folders that a source's paths, globs and URLs name."""

import contextlib
import os
import posixpath
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pyarrow as pa

from infoprune_jax.config.validation import UserError
from infoprune_jax.runtime import filesystems, hub
from infoprune_jax.runtime.progress import logger

# Raised by file systems and codecs for files that are missing or damaged.
READ_ERRORS = (OSError, pa.ArrowException, zipfile.BadZipFile, zlib.error)
_MAX_NAMED = 5  # skipped files in a log line

# Files that other programs put beside the files of a dataset: markers,
# checksums and logs of Spark and Delta, cards and licences of the Hugging Face
# Hub. Unknown files are read, and refused if they are of another format,
# because they may be data.
# fmt: off
_NO_ROWS = frozenset([
  '.crc', '.md', '.rst', '.html', '.htm', '.yaml', '.yml', '.toml', '.cfg',
  '.ini', '.lock', '.log', '.pdf', '.png', '.jpg', '.svg', '.py', '.ipynb',
  '.sh', '.sha256', '.md5', '.bib', '.gitattributes', '.gitignore',
])
_NAMES = frozenset([
  'readme', 'license', 'licence', 'notice', 'citation', 'changelog', 'authors',
  'dataset_info.json', 'dataset_infos.json', 'dataset_dict.json', 'state.json',
  'manifest.json', 'sha256sums', 'md5sums',
])
# fmt: on


def is_data(
  name: str,
  extensions: Sequence[str],
  without_records: Sequence[str] = (),
) -> bool:
  """Whether a file in a folder of tables may hold records.

  Args:
    name: Relative to the folder.
    extensions: Of files with records.
    without_records: Extensions of files that hold none, besides the known ones.

  >>> [is_data(name, ['.parquet']) for name in ('a/0.parquet', 'a/_SUCCESS')]
  [True, False]
  """
  *folders, base = name.lower().split('/')
  # As in Spark, which writes unfinished files into such folders.
  if any(f.startswith('_') and '=' not in f for f in folders):
    return False
  stem, extension = posixpath.splitext(base)
  if base in _NAMES or (stem in _NAMES and extension == '.txt'):
    return False
  if base.startswith('_'):
    return any(own in base for own in extensions)
  return extension not in _NO_ROWS and extension not in without_records


def open_filesystem(field: str, path: str) -> tuple[Any, str]:
  """The fsspec file system of a path or URL, and the path on it.

  The path of a file of the Hub names its commit.

  Args:
    field: The config field that names the path.
    path: As the user gave it.

  Raises:
    UserError: no driver is installed for it, or its file system fails.
  """
  try:
    return filesystems.filesystem_of(hub.pinned(path))
  except UserError as error:
    raise UserError(f'{field}: {error}') from None
  except READ_ERRORS as error:
    raise unreadable(field, path, error) from None


def unreadable(field: str, path: str, error: Exception) -> UserError:
  """The error for a path that its file system refuses."""
  return UserError(
    f'{field}: {path!r} cannot be read: {_first_line(error)}. Fix its '
    'permissions, or name another path.'
  )


def _first_line(error: Exception) -> str:
  return (str(error).splitlines() or [type(error).__name__])[0]


@contextlib.contextmanager
def read_error_as_user_error(path: str) -> Iterator[None]:
  """Turns errors of reading a file into a `UserError` with its path."""
  try:
    yield
  except (*READ_ERRORS, *hub.read_errors(path)) as error:
    raise UserError(f'{path} cannot be read: {_first_line(error)}') from None


def url(filesystem: Any, name: str, given: str) -> str:
  """The path to open a file by, as `given` names its file system."""
  if filesystems.is_local(given):
    return name
  inner, container = filesystems.split_chain(given)
  full = filesystem.unstrip_protocol(name)
  if not container:
    return full
  return f'{full}::{container}' if '://' in inner else f'{inner}::{full}'


def display(path: str) -> str:
  """A path after its container: 'zip://a::/b.zip' is '/b.zip/a'."""
  inner, container = filesystems.split_chain(path)
  if not container:
    return path
  name = inner.partition('://')[2]
  return posixpath.join(container, name) if name else container


def relative_names(paths: list[str], folders: list[str]) -> list[str]:
  """Names relative to the parent that all folders share; no two are equal."""
  try:
    root = posixpath.commonpath([display(folder) for folder in folders])
  except ValueError:  # On different file systems.
    root = ''
  names = []
  for path in map(display, paths):
    name = posixpath.relpath(path, root) if root else path
    # A name may hold bytes that are not UTF-8; an id may not.
    names.append(filesystems.printable(name))
  return names


def matches(
  field: str, path: str, is_data: Callable[[str], bool] | None = None
) -> tuple[str, list[tuple[str, int]]]:
  """The folder that a path names, and the files it matches, with sizes.

  Args:
    field: The config field that names the path.
    path: A file, a folder (with all below it), a glob, or a URL of one.
    is_data: Whether to read a file of a folder, by its relative name; None for
      all. A file that a path or a glob names is always read.

  Raises:
    UserError: nothing matches, or a folder may not be listed.
  """
  filesystem, name = open_filesystem(field, path)
  try:
    root, entries = filesystems.expand(filesystem, name)
    if root == name.rstrip('/') and is_data:  # A folder.
      entries = _without_leftovers(path, root, entries, is_data)
  except FileNotFoundError:
    root, entries = '', {}
  except (*READ_ERRORS, *hub.read_errors(path)) as error:
    raise unreadable(field, path, error) from None
  files = []
  for name, info in sorted(entries.items()):
    relative = posixpath.relpath(name, root or '/')
    hidden = any(shard.startswith('.') for shard in relative.split('/'))
    if info['type'] == 'file' and not hidden:
      files.append((url(filesystem, name, path), info['size'] or 0))
  if not files:
    raise UserError(
      f'{field}: no file matches {path!r} (looked from {os.getcwd()}).'
    )
  return url(filesystem, root, path), files


def _without_leftovers(
  path: str, root: str, entries: dict[str, Any], is_data: Callable[[str], bool]
) -> dict[str, Any]:
  """The files of a folder that hold data; a log line counts the others."""
  names = {name: posixpath.relpath(name, root) for name in entries}
  skipped = [name for name in names.values() if not is_data(name)]
  if skipped:
    more = ', ...' * (len(skipped) > _MAX_NAMED)
    logger.info(
      '%s: skips %d files that hold no data: %s%s',
      filesystems.printable(path),
      len(skipped),
      ', '.join(map(filesystems.printable, sorted(skipped)[:_MAX_NAMED])),
      more,
    )
  return {name: entries[name] for name in entries if is_data(names[name])}
