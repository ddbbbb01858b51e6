"""Manifests: the content of an artifact, and its options and inputs.

Stages exchange data only through artifacts. `begun.json` names the options and
inputs of an artifact, a marker says that a shard is finished, and
`manifest.json` comes last. A manifest names all that decided the artifact's
bytes (`options`, and `inputs` by fingerprint), and has a fingerprint of its
own, which the next stage names.

Each of these records holds a checksum of its own content, and the checksums of
data files. A file is compared with its checksum before a process first uses it.
"""

import contextlib
import hashlib
import json
import posixpath
import re
from collections.abc import Callable, Mapping
from typing import Any, NotRequired, TypedDict, cast

from infoprune_jax.config.validation import UserError
from infoprune_jax.runtime.files import (
  FileFacts,
  facts_of,
  read_record,
)
from infoprune_jax.runtime.filesystems import (
  check_links,
  filesystem_of,
  is_local,
  local_copy,
  matching,
)
from infoprune_jax.runtime.options import ABSENT, Change, changes

MANIFEST = 'manifest.json'
BEGUN = 'begun.json'
DONE = '.done'  # ends the name of a shard's marker
# Format 1 had statistics in the score table, 2 data files beside the manifest.
FORMAT_VERSION = 3


class Grown(TypedDict):
  """What an artifact was before shards were added to it."""

  fingerprint: str
  num_shards: int


class Begun(TypedDict):
  """The options and inputs of an artifact, written before its files."""

  job: str  # the stage that writes it
  format_version: int
  options: Any  # the options that decide its bytes, without defaults
  inputs: dict[str, str]  # fingerprints of artifacts, by name
  # Of an artifact that has grown: each time before, the first one first.
  generations: NotRequired[list[Grown]]
  # Of `begun.json`: the fingerprints of its options and inputs each time before.
  earlier: NotRequired[list[str]]


class Manifest(Begun):
  """A finished artifact. The stage that writes it may add facts of its own."""

  kind: str  # for the user: 'token store', 'score table'
  files: dict[str, FileFacts]  # by path in the artifact
  fingerprint: str


class Marker(TypedDict):
  """A finished shard. The stage that writes it may add counts of its own.

  'begun' is the fingerprint of the options and inputs, see `Artifact.begun`.
  """

  files: dict[str, FileFacts]  # by path in the artifact


def fingerprint(value: Any) -> str:
  """A digest of a JSON value that does not depend on the order of keys."""
  text = json.dumps(value, sort_keys=True, separators=(',', ':'))
  return hashlib.sha256(text.encode()).hexdigest()[:16]


def content_fingerprint(manifest: Manifest) -> str:
  """The fingerprint of an artifact: of its options, inputs and bytes."""
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
  """The manifest of the artifact in `path`, or None if it is not finished.

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
  """The options and inputs of the artifact in `path`; None if not recorded.

  Raises:
    UserError: `begun.json` is damaged, or of another format.
  """
  record = read_record(posixpath.join(path, BEGUN), _begun_hint(path, job))
  if record is None:
    return None
  _check_format(path, record, job)
  return cast(Begun, record)


def _check_format(path: str, record: Mapping[str, Any], job: str) -> None:
  # Formats 1 and 2 did not record their version.
  version = record.get('format_version', '2 or older')
  if version != FORMAT_VERSION:
    raise UserError(
      f'{path} has format {version}, but this version of infoprune_jax reads '
      f'format {FORMAT_VERSION}: run --job={job} in a new --workdir.'
    )


def open_finished(path: str, kind: str, job: str) -> Manifest:
  """The manifest of an artifact that an earlier stage must have finished.

  Raises:
    UserError: it is missing or not finished.
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


def causes(
  record: Begun,
  options: Any,
  inputs: Mapping[str, str],
  sections: Mapping[str, str],
  may_change: Callable[[Change], bool] = lambda change: False,
) -> list[str]:
  """What has changed since an artifact was begun, for the user.

  Args:
    record: The manifest of the artifact, or its `begun.json`.
    options: Those of the config now, as `Artifact.options`.
    inputs: The fingerprints of inputs now. Others are not compared.
    sections: See `Artifact.sections`.
    may_change: Whether an option may differ.

  Returns:
    Texts such as 'select.arms.top: fraction 0.8 -> 0.7'; none if nothing has
    changed.
  """
  texts = []
  for change in changes(record['options'], options, 'options'):
    if may_change(change):
      continue
    name, old, new = change
    section, _, option = _config_name(name, sections).rpartition('.')
    texts.append(
      f'{section or "options"}: {option} {_value(old)} -> {_value(new)}'
    )
  for name, digest in inputs.items():
    if record['inputs'].get(name) != digest:
      where = sections.get(f'inputs.{name}')
      if where and where.endswith('.paths'):
        texts.append(f'{where}: the files have changed')
      elif where:
        texts.append(f'{where} names another model')
      else:
        texts.append(f'it was made from another version of {name}')
  return texts


def _config_name(name: str, sections: Mapping[str, str]) -> str:
  """The name in the config of an option of an artifact, 'options.a.b'."""
  name = name.removeprefix('options.')
  heads = [
    head
    for head in sections
    if not head or name == head or name.startswith((f'{head}.', f'{head}['))
  ]
  if not heads:
    return name
  head = max(heads, key=len)
  rest = name[len(head) :].removeprefix('.')
  dot = '.' if sections[head] and rest and rest[0] != '[' else ''
  return f'{sections[head]}{dot}{rest}'


def _value(value: Any) -> str:
  """A value of an option; a long one in a few words."""
  if value is ABSENT:
    return 'absent'
  text = repr(value)
  is_long = len(text) > 80 and isinstance(value, Mapping | list)
  return f'({len(value)} entries)' if is_long else text


def shard_total(manifest: Mapping[str, Any], shard: int) -> int:
  """How many shards an artifact had when one of them was written.

  This number is in the names of its files.
  """
  ends = [one['num_shards'] for one in manifest.get('generations', [])]
  return next((end for end in ends if shard < end), manifest['num_shards'])


def check_made_from(
  manifest: Mapping[str, Any],
  kind: str,
  name: str,
  source: Mapping[str, object],
  source_kind: str,
) -> None:
  """Checks that an artifact was made from the input that is there now.

  Args:
    manifest: The manifest of the artifact.
    kind: The kind of the artifact, for the message.
    name: The input to compare, a key of `inputs`.
    source: The manifest of that input, as it is now.
    source_kind: The kind of the input, for the message.

  Raises:
    UserError: it was made from another; both fingerprints are named.
  """
  if manifest['inputs'][name] != source['fingerprint']:
    raise UserError(
      f'The {kind} was made from {source_kind} {manifest["inputs"][name]}, but '
      f'the one here is {source["fingerprint"]}. Delete the {kind} and run '
      f'its job again, or use another --workdir.'
    )


def _begun_hint(path: str, job: str) -> str:
  """What to do about a damaged `begun.json`.

  Args:
    path: The artifact.
    job: The stage that writes it.
  """
  if matching(path, MANIFEST):
    return (
      f'Delete {posixpath.join(path, BEGUN)} and run --job={job} again: '
      f'{MANIFEST} has the same content.'
    )
  return (
    f'Delete {path} and run --job={job} again: nothing else records the options '
    'and inputs of the shards there.'
  )


def how_to_repair(path: str, name: str, job: str) -> str:
  """What to do about a damaged file, so that little is made again.

  Args:
    path: The artifact.
    name: The file in the artifact.
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

  Each process reads a file once for this, about a second per gigabyte.

  Args:
    path: The folder.
    name: The file in the folder.
    facts: The result of `write_file`.
    repair_hint: What the user should do if they differ, as a sentence.

  Raises:
    UserError: the file is missing or damaged.
  """
  file = posixpath.join(path, name)
  try:
    local = local_copy(file)
    actual = facts_of(local)
    if actual != facts and not is_local(file):
      # The copy may be of a file that has been made again since.
      local = local_copy(file, anew=True)
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
    file = posixpath.join(path, name)
    if sizes.get(name) != facts['bytes'] and not is_local(file):
      # A listing may be old.
      filesystem, root = filesystem_of(file)
      with contextlib.suppress(FileNotFoundError):
        sizes[name] = filesystem.info(root)['size']
    if sizes.get(name) != facts['bytes']:
      check_links(file)
      state = f'has {sizes[name]} bytes' if name in sizes else 'is missing'
      raise UserError(
        f'{file} {state}, but the manifest of the {kind} says '
        f'{facts["bytes"]} bytes. {how_to_repair(path, name, job)}'
      )
