"""Folders of this machine, for libraries that write to a path of their own."""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from typing import Any

from infoprune_jax.runtime import files


@contextlib.contextmanager
def folder(path: str = '') -> Iterator[str]:
  """A folder to write to, deleted at the end.

  Args:
    path: Where to make it; elsewhere if that is in an object store, or ''. What
      is there is deleted first.
  """
  if not path or not files.is_local(path):
    with tempfile.TemporaryDirectory() as made:
      yield made
    return
  made = files.canonical(path)
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


def upload(
  made: str, path: str, writer: files.Writer = files.write_file
) -> None:
  """Writes all files of such a folder below `path`, under the same names."""
  for parent, _, names in os.walk(made):
    for name in names:
      source = os.path.join(parent, name)
      target = os.path.join(path, os.path.relpath(source, made))
      writer(target, lambda file, s=source: copy_into(s, file))
