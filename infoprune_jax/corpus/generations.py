"""The files of a corpus that grows, by generation.

The first generation is the corpus as it was first tokenized. Each growth adds
one. The token store has a record of the files of each, `generation-N.json`:
these files stay as they are, and files that are in no record are new.
"""

import hashlib
import itertools
import posixpath
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from infoprune_jax.config.validation import UserError
from infoprune_jax.corpus.file_index import FileIndex
from infoprune_jax.corpus.records import InputFile
from infoprune_jax.runtime import files, manifests
from infoprune_jax.runtime.progress import counted, quantity

_NAMED = 5  # files that a message names


class FileRecord(NamedTuple):
  """A file of a corpus."""

  source: str  # its name in `corpus.sources`, or the task of a mixture
  name: str  # in its source
  num_bytes: int  # as stored
  digest: str  # of its records; '' if it is not read yet


class Generation(NamedTuple):
  """Files that were tokenized together."""

  num_shards: int  # of the store, with those of earlier generations
  files: tuple[FileRecord, ...]


def record_name(number: int) -> str:
  """The file of a generation's record in the token store."""
  return f'generation-{number}.json'


def as_record(generation: Generation) -> dict[str, Any]:
  """The content of the record."""
  return {
    'num_shards': generation.num_shards,
    'files': [list(file) for file in generation.files],
  }


def read(path: str, count: int) -> list[Generation]:
  """The generations that a token store records.

  Args:
    path: The token store.
    count: How many it has.

  Returns:
    All of them; none if it has one, of an older version, that was not recorded.

  Raises:
    UserError: a record is missing or damaged.
  """
  generations = []
  for number in range(count):
    name = posixpath.join(path, record_name(number))
    hint = (
      manifests.how_to_repair(path, record_name(number), 'tokenize')
      if count == 1
      else 'Put it back from a copy, or tokenize the corpus in another '
      '--workdir: nothing else says which files were there first.'
    )
    record = files.read_record(name, hint)
    if record is None and count == 1:
      return []
    if record is None:
      raise UserError(f'{name} is missing. {hint}')
    generations.append(
      Generation(
        record['num_shards'], tuple(FileRecord(*f) for f in record['files'])
      )
    )
  return generations


def _key(file: InputFile) -> tuple[str, str]:
  number, count = file.shard
  shard = f' [{number} of {count}]' if count > 1 else ''
  return file.source, file.name + shard


def grouped(
  listed: Sequence[InputFile], generations: Sequence[Generation]
) -> tuple[list[list[InputFile]], list[InputFile]]:
  """The files of each generation, in its order, and those that are new.

  Files that are no longer there are left out, see `check`.
  """
  by_key = {_key(file): file for file in listed}
  groups = [
    [by_key.pop(f[:2]) for f in one.files if f[:2] in by_key]
    for one in generations
  ]
  return groups, [file for file in listed if _key(file) in by_key]


def listed_records(listed: Sequence[InputFile]) -> list[FileRecord]:
  """What is known of files before they are read."""
  return [FileRecord(*_key(file), file.size, '') for file in listed]


def check(
  files_now: Sequence[FileRecord], generations: Sequence[Generation]
) -> None:
  """Raises `UserError` unless the files of all generations are as they were.

  Args:
    files_now: The files that are there. Digests are compared if they have one.
    generations: Those that were tokenized.
  """
  now = {file[:2]: file for file in files_now}
  problems = []
  for old in itertools.chain.from_iterable(one.files for one in generations):
    new = now.get(old[:2])
    where = f'{old.name} (source {old.source})'
    if new is None:
      problems.append(f'{where} has vanished')
    elif new.num_bytes != old.num_bytes:
      problems.append(
        f'{where} has {new.num_bytes} bytes, expected {old.num_bytes}'
      )
    elif new.digest and new.digest != old.digest:
      problems.append(f'{where} has other records')
  if problems:
    more = len(problems) - _NAMED
    raise UserError(
      'The files of the corpus are not those that were tokenized: '
      + '; '.join(problems[:_NAMED])
      + (f'; and {more} more' if more > 0 else '')
      + '. A corpus can only grow: put these files back as they were, or '
      'tokenize the corpus in another --workdir.'
    )


def summary(new: Sequence[InputFile]) -> str:
  """New files in a few words: 'the corpus grows by 2 files (1.2 MB): ...'."""
  names = ', '.join(f'{file.source}/{file.name}' for file in new[:_NAMED])
  more = f' and {len(new) - _NAMED} more' if len(new) > _NAMED else ''
  size = quantity(sum(file.size for file in new), 'B')
  return (
    f'the corpus grows by {counted(len(new), "file")} ({size}): {names}{more}'
  )


def records(
  input_files: Sequence[InputFile], indices: Sequence[FileIndex]
) -> tuple[FileRecord, ...]:
  """The records of files. Parts of a long file give one."""
  pairs = zip(input_files, indices, strict=True)
  made = []
  for (source, name), parts in itertools.groupby(pairs, lambda p: _key(p[0])):
    digest, size = hashlib.sha256(), 0
    parts = list(parts)
    for column in ('line', 'text_hash', 'id_hash'):
      for _, index in parts:
        data = np.ascontiguousarray(getattr(index, column))
        digest.update(data.tobytes())
    for file, index in parts:
      digest.update(repr(index.source_names).encode())
      size += file.size
    made.append(FileRecord(source, name, size, digest.hexdigest()[:16]))
  return tuple(made)
