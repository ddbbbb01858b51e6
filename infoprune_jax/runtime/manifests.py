"""Manifests: what an artifact holds, and what it was made from.

Stages meet only on artifacts. `begun.json` says what an artifact is being made
from, a marker says that a shard is done, and `manifest.json` comes last. A
manifest says what decided the artifact's bytes (`options`, and `inputs` by
fingerprint), and has a fingerprint of its own, which the next stage names.

Each of these records carries a checksum of its own content. It also names the
checksums of data files. A file is compared with its checksum before a process
first uses it.
"""

import contextlib
import hashlib
import json
import posixpath
import re
from collections.abc import Mapping
from typing import Any, TypedDict, cast

from infoprune_jax.config.validation import UserError
from infoprune_jax.runtime.files import (
  FileFacts,
  facts_of,
  read_record,
)
from infoprune_jax.runtime.filesystems import (
  check_links,
  filesystem_of,
  local_copy,
  matching,
)

MANIFEST = 'manifest.json'
BEGUN = 'begun.json'
DONE = '.done'  # ends the name of a part's marker
# 1 had statistics among the scores; 2 had data files beside the manifest.
FORMAT_VERSION = 3


class Begun(TypedDict):
  """What an artifact is made from; written before any of it is there."""

  job: str  # the stage that writes it
  format_version: int
  options: Any  # what of the config decides its bytes, less defaults
  inputs: dict[str, str]  # fingerprints of artifacts, by what they are


class Manifest(Begun):
  """A finished artifact. The stage that writes it may add facts of its own."""

  kind: str  # as a user would call it: 'token store', 'score table'
  files: dict[str, FileFacts]  # by path in the artifact
  fingerprint: str


class Marker(TypedDict):
  """A shard that is done. The stage that writes it may add counts of its own."""

  files: dict[str, FileFacts]  # by path in the artifact


def fingerprint(value: Any) -> str:
  """A digest of a JSON value that does not depend on the order of keys."""
  text = json.dumps(value, sort_keys=True, separators=(',', ':'))
  return hashlib.sha256(text.encode()).hexdigest()[:16]


def content_fingerprint(manifest: Manifest) -> str:
  """The fingerprint of what decides the bytes of an artifact, and of the bytes."""
  return fingerprint(
    {
      'kind': manifest['kind'],
      'format_version': manifest['format_version'],
      'options': manifest['options'],
      'inputs': manifest['inputs'],
      'files': {
        name: facts['sha256'] for name, facts in manifest['files'].items()
      },
    }
  )


def read_manifest(path: str, job: str) -> Manifest | None:
  """The manifest of the artifact in `path`, or None where it is not finished.

  Raises:
    UserError: it is damaged.
  """
  record = read_record(
    posixpath.join(path, MANIFEST), how_to_repair(path, MANIFEST, job)
  )
  if record is None:
    return None
  _check_format(path, record, job)
  return cast(Manifest, record)


def read_begun(path: str, job: str) -> Begun | None:
  """What the artifact in `path` was begun as, or None where nothing says so.

  Raises:
    UserError: the note is damaged, or of another format.
  """
  record = read_record(posixpath.join(path, BEGUN), _begun_hint(path, job))
  if record is None:
    return None
  _check_format(path, record, job)
  return cast(Begun, record)


def _check_format(path: str, record: Mapping[str, Any], job: str) -> None:
  # The notes of formats 1 and 2 do not say which they are of.
  version = record.get('format_version', '2 or older')
  if version != FORMAT_VERSION:
    raise UserError(
      f'{path} has format {version}, but this version of infoprune_jax reads '
      f'format {FORMAT_VERSION}: run --job={job} in a new --workdir.'
    )


def open_finished(path: str, kind: str, job: str) -> Manifest:
  """The manifest of an artifact that an earlier stage must have finished.

  Raises:
    UserError: it is not there, or only some of its shards are.
  """
  manifest = read_manifest(path, job)
  if manifest is not None:
    return manifest
  shards = matching(path, f'part-*-of-*{DONE}')
  state = (
    f'has {len(shards)} finished shards but no manifest'
    if shards
    else ('is not there')
  )
  raise UserError(
    f'The {kind} in {path} {state}. Run --job={job} first'
    + (': finished shards are kept.' if shards else '.')
  )


def check_made_from(
  manifest: Mapping[str, Any],
  kind: str,
  name: str,
  source: Mapping[str, object],
  source_kind: str,
) -> None:
  """Compares what an artifact was made from with what is there.

  Args:
    manifest: Of the artifact.
    kind: What it is, for the message.
    name: The input to compare, a key of its `inputs`.
    source: The manifest of that input, as it is now.
    source_kind: What the input is.

  Raises:
    UserError: they differ; both fingerprints are named.
  """
  if manifest['inputs'][name] != source['fingerprint']:
    raise UserError(
      f'The {kind} was made from {source_kind} {manifest["inputs"][name]}, but '
      f'the one here is {source["fingerprint"]}. Delete the {kind} and run '
      f'its job again, or use another --workdir.'
    )


def _begun_hint(path: str, job: str) -> str:
  """What to do about a damaged note of what an artifact is made from.

  Args:
    path: The artifact.
    job: The stage that writes it.
  """
  if matching(path, MANIFEST):
    return (
      f'Delete {posixpath.join(path, BEGUN)} and run --job={job} again: '
      f'{MANIFEST} says the same.'
    )
  return (
    f'Delete {path} and run --job={job} again: nothing else says what the shards '
    'there are made from.'
  )


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


def verify(path: str, name: str, facts: FileFacts, repair_hint: str) -> str:
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
    actual = facts_of(local)
  except FileNotFoundError:
    raise UserError(f'{file} is missing. {repair_hint}') from None
  _compare(file, actual, facts, repair_hint)
  return local


def _compare(
  file: str,
  actual: FileFacts,
  expected: FileFacts,
  repair_hint: str,
) -> None:
  if actual['sha256'] != expected['sha256']:
    raise UserError(
      f'{file} is damaged: expected {expected["bytes"]} bytes with sha256 '
      f'{expected["sha256"][:16]}, got {actual["bytes"]} bytes with '
      f'{actual["sha256"][:16]}. {repair_hint}'
    )


def verified(path: str, manifest: Mapping[str, Any], name: str) -> str:
  """A local copy of a file that a manifest names, as `verify` gives it."""
  repair_hint = how_to_repair(path, name, manifest['job'])
  return verify(path, name, manifest['files'][name], repair_hint)


def check_content(path: str, data: bytes, facts: FileFacts, job: str) -> None:
  """Raises `UserError` unless a file holds what its manifest says."""
  actual = FileFacts(sha256=hashlib.sha256(data).hexdigest(), bytes=len(data))
  folder, name = posixpath.split(path)
  _compare(path, actual, facts, how_to_repair(folder, name, job))


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
