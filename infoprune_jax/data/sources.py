"""Documents out of files: plain text and JSONL, also compressed, and Parquet.

Every row of a file comes out, good or bad, in the file's order, so that two
passes over one file agree on what its n-th row is.
"""

import dataclasses
import io
import json
import os
import posixpath
import re
from collections.abc import Iterator, Mapping
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from infoprune_jax.config import SourceConfig, UserError

CODECS = {'.gz': 'gzip', '.zst': 'zstd'}
MAX_ID_BYTES = 4096
PARQUET_BATCH = 1024  # rows held at once


@dataclasses.dataclass(frozen=True)
class InputFile:
  """One file of a source."""

  source: str  # the name in `corpus.sources`
  config: SourceConfig
  path: str
  name: str  # relative to what the source's path names; part of the ids
  size: int  # bytes, as stored


@dataclasses.dataclass(frozen=True)
class Document:
  """One example."""

  example_id: str
  source: str
  text: str


@dataclasses.dataclass(frozen=True)
class BadRow:
  """A row that is no document."""

  reason: str  # a short class, to count by
  where: str  # file and line
  detail: str

  def __str__(self) -> str:
    """One line for the user."""
    return f'{self.where}: {self.reason} ({self.detail})'


class _Bad(Exception):
  """Reason and detail of a bad row."""


def list_files(sources: Mapping[str, SourceConfig]) -> list[InputFile]:
  """The files of all sources, in a fixed order.

  Raises:
    UserError: a path or glob matches no file.
  """
  files = []
  for source, config in sources.items():
    found = [_matches(source, path) for path in config.paths]
    # Names are relative to what all paths of a source share: no two are alike.
    root = _shared_folder([root for root, _ in found])
    seen = set()
    for path, size in (file for _, matches in found for file in matches):
      if path not in seen:  # Globs may overlap.
        seen.add(path)
        name = posixpath.relpath(path, root) if root else path
        # A name may hold bytes that are no UTF-8; an id may not.
        name = os.fsencode(name).decode('utf-8', 'backslashreplace')
        files.append(InputFile(source, config, path, name, size))
  return files


def _shared_folder(folders: list[str]) -> str:
  try:
    return posixpath.commonpath(folders)
  except ValueError:  # On different file systems.
    return ''


def _matches(source: str, path: str) -> tuple[str, list[tuple[str, int]]]:
  """The folder that a path names, and the files it matches, with sizes."""
  filesystem, pattern = fsspec.core.url_to_fs(os.path.expanduser(path))
  if any(character in pattern for character in '*?['):
    root = posixpath.dirname(re.split(r'[*?[]', pattern)[0])
    found = filesystem.glob(pattern, detail=True)
  elif filesystem.isdir(pattern):
    root = pattern.rstrip('/')
    found = filesystem.find(root, detail=True)
  else:
    root = posixpath.dirname(pattern)
    found = (
      {pattern: filesystem.info(pattern)} if filesystem.exists(pattern) else {}
    )

  def url(name: str) -> str:
    return filesystem.unstrip_protocol(name) if '://' in path else name

  files = []
  for name, info in sorted(found.items()):
    relative = posixpath.relpath(name, root or '/')
    hidden = any(part.startswith('.') for part in relative.split('/'))
    if info['type'] == 'file' and not hidden:
      files.append((url(name), info['size']))
  if not files:
    raise UserError(
      f'corpus.sources.{source}.paths: no file matches {path!r} (looked from '
      f'{os.getcwd()}).'
    )
  return url(root), files


def read_rows(file: InputFile) -> Iterator[tuple[int, Document | BadRow]]:
  """The rows of a file, in order, each with its line or number (from 1).

  Raises:
    UserError: the file cannot be read to its end.
  """
  try:
    with fsspec.open(file.path, 'rb') as raw:
      codec = CODECS.get(posixpath.splitext(file.path)[1])
      stream = pa.CompressedInputStream(raw, codec) if codec else raw
      if file.config.format == 'text':
        yield 1, _text_file(file, stream.read())
      elif file.config.format == 'parquet':
        yield from _parquet_rows(file, raw)
      else:
        with io.BufferedReader(stream, 1 << 20) as lines:
          yield from _json_lines(file, lines)
  except (OSError, pa.ArrowException) as error:
    raise UserError(f'{file.path} cannot be read: {error}') from None


def _text_file(file: InputFile, data: bytes) -> Document | BadRow:
  try:
    text = _text(_utf8(data))
    return Document(f'{file.source}/{file.name}', file.source, text)
  except _Bad as bad:
    return BadRow(bad.args[0], file.path, bad.args[1])


def _json_lines(
  file: InputFile, stream: io.BufferedReader
) -> Iterator[tuple[int, Document | BadRow]]:
  for number, line in enumerate(stream, 1):
    if not line.strip():
      continue  # A blank line is no row.
    try:
      yield number, _json_document(file, number, line)
    except _Bad as bad:
      where = f'{file.path}:{number}'
      yield number, BadRow(bad.args[0], where, bad.args[1])


def _json_document(file: InputFile, number: int, line: bytes) -> Document:
  try:
    row = json.loads(_utf8(line))
  except RecursionError:
    raise _Bad('broken JSON', 'nested too deeply') from None
  except ValueError as error:
    raise _Bad('broken JSON', str(error)) from None
  if not isinstance(row, dict):
    raise _Bad('not a JSON object', f'a {type(row).__name__}')
  return _row_document(file, number, row)


def _parquet_rows(
  file: InputFile, raw: Any
) -> Iterator[tuple[int, Document | BadRow]]:
  config = file.config
  wanted = (config.text_column, config.id_column, config.source_column)
  columns = [name for name in wanted if name]
  with pq.ParquetFile(raw) as parquet:
    there = parquet.schema_arrow.names
    for name in columns:
      if name not in there and name.partition('.')[0] not in there:
        raise UserError(
          f'{file.path} has no column {name!r}; columns are '
          f'{", ".join(there)}. Name another in corpus.sources.{file.source}.'
        )
    number = 0
    for batch in parquet.iter_batches(PARQUET_BATCH, columns=columns):
      for position in range(batch.num_rows):
        number += 1
        try:
          row = _parquet_row(batch, position)
          yield number, _row_document(file, number, row)
        except _Bad as bad:
          where = f'{file.path}:{number}'
          yield number, BadRow(bad.args[0], where, bad.args[1])


def _parquet_row(batch: pa.RecordBatch, position: int) -> dict[str, Any]:
  try:
    return {name: batch[name][position].as_py() for name in batch.schema.names}
  except UnicodeDecodeError as error:
    raise _Bad('not UTF-8', f'at byte {error.start}') from None


def _row_document(
  file: InputFile, number: int, row: dict[str, Any]
) -> Document:
  config = file.config
  text = _text(_column(row, config.text_column))
  example_id = f'{file.source}/{file.name}:{number}'
  if config.id_column:
    value = _column(row, config.id_column)
    if type(value) not in (str, int) or value == '':
      raise _Bad('bad id', f'{config.id_column}={value!r:.50}')
    example_id = str(value)
    # A lone surrogate fails here, before a table of ids refuses it.
    if len(_encodable(example_id)) > MAX_ID_BYTES:
      raise _Bad('bad id', f'longer than {MAX_ID_BYTES} bytes')
  source = file.source
  if config.source_column:
    source = _column(row, config.source_column)
    if not isinstance(source, str) or not source:
      raise _Bad('bad source', f'{config.source_column}={source!r:.50}')
    _encodable(source)
  return Document(example_id, source, text)


def _column(row: dict[str, Any], name: str) -> Any:
  """The column `name`, or where there is none the field that 'a.b' names."""
  if name in row:
    return row[name]
  outer, _, inner = name.partition('.')
  if inner and isinstance(row.get(outer), dict):
    return _column(row[outer], inner)
  columns = ', '.join(sorted(row)[:20]) or 'none'
  raise _Bad('no such column', f'no {name!r}, columns are {columns:.200}')


def _utf8(data: bytes) -> str:
  try:
    return data.decode('utf-8')
  except UnicodeDecodeError as error:
    raise _Bad('not UTF-8', f'at byte {error.start}') from None


def _encodable(text: str) -> bytes:
  try:
    return text.encode('utf-8')
  except UnicodeEncodeError as error:
    raise _Bad('not UTF-8', f'at character {error.start}') from None


def _text(value: Any) -> str:
  if not isinstance(value, str):
    raise _Bad('text is not a string', f'a {type(value).__name__}')
  if not value.strip():
    raise _Bad('empty text', f'{len(value)} characters of white space')
  _encodable(value)
  return value
