"""Files of an artifact, held to the checksums that its records name.

A record is the manifest of an artifact or the marker of a shard.
"""

import contextlib
import hashlib
import posixpath
import re
from collections.abc import Mapping
from typing import Any

from infoprune_jax.config.validation import UserError
from infoprune_jax.runtime.files import facts_of
from infoprune_jax.runtime.filesystems import (
  check_links,
  filesystem_of,
  local_copy,
)

MANIFEST = 'manifest.json'
DONE = '.done'  # ends the name of a part's marker


def how_to_repair(path: str, name: str, job: str) -> str:
  """What to do about a damaged file: as little as possible is made again.

  Args:
    path: The artifact.
    name: The file's, in it.
    job: The stage that writes it.
  """
  manifest = posixpath.join(path, MANIFEST)
  shard = re.fullmatch(r'(\w+/)?(part-\d+-of-\d+)\..*', name)
  if shard:
    return (
      f'Delete {posixpath.join(path, shard[2] + DONE)} and {manifest} and run '
      f'--job={job} again: only that shard is made again.'
    )
  return (
    f'Delete {manifest} and run --job={job} again: shards that are finished and '
    'sound are kept.'
  )


def verify(
  path: str, name: str, facts: Mapping[str, Any], repair_hint: str
) -> str:
  """A local copy of a file, compared with its checksum.

  A file is read once a process for this, about a second a gigabyte.

  Args:
    path: The folder.
    name: The file's, in it.
    facts: As `write_file` returned them.
    repair_hint: What the user should do when they differ, as a sentence.

  Raises:
    UserError: the file is missing or damaged.
  """
  file = posixpath.join(path, name)
  try:
    local = local_copy(file)
    found = facts_of(local)
  except FileNotFoundError:
    raise UserError(f'{file} is missing. {repair_hint}') from None
  _compare(file, found, facts, repair_hint)
  return local


def _compare(
  file: str,
  found: Mapping[str, Any],
  facts: Mapping[str, Any],
  repair_hint: str,
) -> None:
  if found['sha256'] != facts['sha256']:
    raise UserError(
      f'{file} is damaged: expected {facts["bytes"]} bytes with sha256 '
      f'{facts["sha256"][:16]}, got {found["bytes"]} bytes with '
      f'{found["sha256"][:16]}. {repair_hint}'
    )


def verified(path: str, manifest: Mapping[str, Any], name: str) -> str:
  """A local copy of a file that a manifest names, as `verify` gives it."""
  repair_hint = how_to_repair(path, name, manifest['job'])
  return verify(path, name, manifest['files'][name], repair_hint)


def check_content(
  path: str, data: bytes, facts: Mapping[str, Any], job: str
) -> None:
  """Raises `UserError` unless a file holds what its manifest says."""
  found = {'sha256': hashlib.sha256(data).hexdigest(), 'bytes': len(data)}
  folder, name = posixpath.split(path)
  _compare(path, found, facts, how_to_repair(folder, name, job))


def check_sizes(
  path: str, manifest: Mapping[str, Any], kind: str, job: str
) -> None:
  """Compares the files of an artifact with its manifest, without reading them.

  Raises:
    UserError: a file is missing or has another size; it is named.
  """
  sizes: dict[str, int] = {}
  for folder in {posixpath.dirname(name) for name in manifest['files']}:
    filesystem, root = filesystem_of(posixpath.join(path, folder))
    with contextlib.suppress(FileNotFoundError):  # Each file is missing.
      sizes |= {
        posixpath.join(folder, posixpath.basename(info['name'])): info['size']
        for info in filesystem.ls(root, detail=True)
        if info['type'] == 'file'
      }
  for name, facts in manifest['files'].items():
    if sizes.get(name) != facts['bytes']:
      file = posixpath.join(path, name)
      check_links(file)
      state = f'has {sizes[name]} bytes' if name in sizes else 'is missing'
      raise UserError(
        f'{file} {state}, the manifest of the {kind} says '
        f'{facts["bytes"]} bytes. {how_to_repair(path, name, job)}'
      )
