"""The records of one file, of the first pass over the corpus."""

import collections
import dataclasses
from collections.abc import Sequence

import numpy as np

from infoprune_jax.config.validation import UserError, did_you_mean
from infoprune_jax.corpus import sources
from infoprune_jax.runtime.hashing import content_hash, text_hash, utf8_hash


@dataclasses.dataclass(frozen=True)
class FileIndex:
  """The documents of one file: equally long arrays, in the file's order."""

  line: np.ndarray  # int64, from 1
  num_bytes: np.ndarray  # int64, of the text in UTF-8
  content_hash: np.ndarray  # int64
  text_hash: np.ndarray  # int64, of the very text
  id_hash: np.ndarray  # int64
  source: np.ndarray  # int32, into source_names
  source_names: tuple[str, ...]
  bad_records: dict[str, int]  # by reason
  first_bad_record: str  # '' if there is none
  kept: tuple[str, ...]  # columns of `keep_columns` that some record has


def index_file(file: sources.InputFile) -> FileIndex:
  """Reads a file once."""
  records, bad, first_bad = [], collections.Counter(), ''
  names: dict[str, int] = {}
  kept: set[str] = set()
  for line, record in sources.read_records(file):
    if isinstance(record, sources.BadRecord):
      bad[record.reason] += 1
      first_bad = first_bad or str(record)
      continue
    data = record.text.encode()
    source = names.setdefault(record.source, len(names))
    kept.update(n for n, value in record.kept.items() if value is not None)
    records.append(
      (
        line,
        len(data),
        content_hash(record.text),
        utf8_hash(data),
        text_hash(record.example_id),
        source,
      )
    )
  line, num_bytes, content, utf8, example, source = (
    np.array(records, np.int64).reshape(-1, 6).T
  )
  return FileIndex(
    line,
    num_bytes,
    content,
    utf8,
    example,
    source.astype(np.int32),
    tuple(names),
    dict(bad),
    first_bad,
    tuple(sorted(kept)),
  )


# Records that lose nothing when they are dropped: they hold no text.
_EMPTY = {'empty text', 'empty compressed file'}
# Even one record of these kinds means that the file is not JSONL.
_NO_JSONL = {'broken JSON', 'not a JSON object'}


def check_some(file: sources.InputFile, parts: Sequence[FileIndex]) -> None:
  """Raises `UserError` for a file of which every record would be dropped.

  Such a file is of another format, or its columns have other names.

  Args:
    file: The file, or its last part.
    parts: The records of all its parts.
  """
  bad = sum(sum(index.bad_records.values()) for index in parts)
  reasons = {name for index in parts for name in index.bad_records} - _EMPTY
  kind = sources.FORMATS[file.config.format]
  if kind.dataset or not kind.records_are_documents:
    return
  if any(len(index.line) for index in parts) or not reasons:
    return
  first = next(i.first_bad_record for i in parts if i.first_bad_record)
  if bad > 1 or reasons & _NO_JSONL:
    raise UserError(
      f'{file.path} gives no document: all records are bad ({bad}). The first: '
      f'{first}. corpus.on_bad_record drops records, but no '
      'whole file: fix the file, or name other files or columns in '
      f'corpus.sources.{file.source}.'
    )


def check_kept(
  files: Sequence[sources.InputFile], indices: Sequence[FileIndex]
) -> None:
  """Raises `UserError` for a column to keep that no record of a source has."""
  there: dict[str, set[str]] = {}
  for file, index in zip(files, indices, strict=True):
    there.setdefault(file.source, set()).update(index.kept)
  for file in files:
    for name in file.config.keep_columns:
      if name not in there[file.source]:
        columns = sources.columns_of(file)
        raise UserError(
          f'corpus.sources.{file.source}.keep_columns names {name!r}, which no '
          f'record has.{did_you_mean(name, columns)} The first record of '
          f'{file.path} has {", ".join(columns) or "no other columns"}.'
        )
