"""Turns a record into a document, or into a bad record with its reason."""

import dataclasses
import json
import uuid
from collections.abc import Callable, Generator, Mapping
from typing import Any, NamedTuple

from infoprune_jax.config.corpus import SourceConfig

MAX_ID_BYTES = 4096


class Lines(NamedTuple):
  """Some lines of a file of JSONL."""

  start: int  # the byte to read from, as stored; a frame of zstd begins there
  skip: int  # bytes of content from there to the first line
  end: int  # bytes of content from there to the end of the last line
  lines_before: int


class RowGroups(NamedTuple):
  """Some row groups of a Parquet file."""

  start: int  # the first
  end: int  # the last and one
  rows_before: int


@dataclasses.dataclass(frozen=True)
class InputFile:
  """One unit of work of a source: a file, or a shard of a dataset."""

  # The name in `corpus.sources`, or the task of a mixture.
  source: str
  config: SourceConfig  # of a dataset: narrowed to this unit
  path: str  # shown to the user; for a file, also its path to open
  name: str  # relative to what the source's path names; part of the ids
  size: int  # bytes, as stored; of the part if it is one
  shard: tuple[int, int] = (0, 1)  # of a SeqIO task: index and count
  part: Lines | RowGroups | None = None  # None for all of the file


@dataclasses.dataclass(frozen=True)
class Document:
  """One example."""

  example_id: str
  source: str
  text: str
  # The record of the document, if it was asked for and the format has records:
  # a line of JSON, or a batch of Arrow with one record.
  record: Any = None
  # The columns of `keep_columns` as texts; None where null.
  kept: Mapping[str, str | None] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class BadRecord:
  """A record that is not a document."""

  reason: str  # a short class, to count by
  where: str  # file and line
  detail: str

  def __str__(self) -> str:
    """One line for the user."""
    return f'{self.where}: {self.reason} ({self.detail})'


# What a reader yields for each record: its line or number, from 1, and its
# content.
Records = Generator[tuple[int, Document | BadRecord], None, None]


class Bad(Exception):
  """Reason and detail of a bad record."""


def read_record(
  file: InputFile, number: int, document: Callable[[], Document]
) -> tuple[int, Document | BadRecord]:
  """A record's number, with the document of the record or a `BadRecord`."""
  try:
    return number, document()
  except Bad as bad:
    return number, BadRecord(bad.args[0], f'{file.path}:{number}', bad.args[1])


def record_document(
  file: InputFile, record: dict[str, Any], default_id: Callable[[str], str]
) -> Document:
  """The document of a record.

  Args:
    file: Where the record is from; its config names the columns.
    record: Values by column; nested columns are dicts.
    default_id: Gives the id of a text if no column holds ids.

  Raises:
    Bad: the record is not a document.
  """
  config = file.config
  text = checked_text(column(record, config.text_column))
  if config.id_column:
    example_id = _checked_id(config.id_column, column(record, config.id_column))
  else:
    example_id = default_id(text)
  # A lone surrogate fails here, before a table of ids refuses it.
  if len(encodable(example_id)) > MAX_ID_BYTES:
    raise Bad('bad id', f'longer than {MAX_ID_BYTES} bytes')
  source = file.source
  if config.source_column:
    source = _decoded(column(record, config.source_column))
    if not isinstance(source, str) or not source:
      raise Bad('bad source', f'{config.source_column}={source!r:.50}')
    encodable(source)
  kept = {name: _kept(record, name) for name in config.keep_columns}
  return Document(example_id, source, text, kept=kept)


def _kept(record: dict[str, Any], name: str) -> str | None:
  """A column as text, numbers and objects as in JSON; raises `Bad`.

  A record of JSON may lack a column.
  """
  try:
    value = _decoded(column(record, name))
  except Bad as bad:
    if bad.args[0] == 'no such column':
      return None
    raise
  if value is None:
    return None
  if isinstance(value, bool | int | float | list | dict):
    value = json.dumps(value, ensure_ascii=False, default=str)
  text = str(value)
  encodable(text)
  return text


def _checked_id(name: str, value: Any) -> str:
  """The id in a value; raises `Bad`."""
  try:
    value = _decoded(value)
  except Bad as bad:
    raise Bad(
      'bad id', f'{name}={value!r:.50}: not UTF-8 {bad.args[1]}'
    ) from None
  # Subclasses are refused: True is an integer, too.
  if type(value) not in (str, int, uuid.UUID) or value == '':
    kind = type(value).__name__
    raise Bad(
      'bad id',
      f'{name}={value!r:.50} of type {kind}; ids are text, integers or UUIDs',
    )
  return str(value)


def _decoded(value: Any) -> Any:
  """Bytes as text, other values unchanged; raises `Bad`."""
  return utf8(value) if isinstance(value, bytes) else value


def id_of_place(file: InputFile, number: int) -> Callable[[str], str]:
  """The default id of a record of a file."""
  return lambda text: f'{file.source}/{file.name}:{number}'


def wanted_columns(config: SourceConfig) -> list[str]:
  """The names of the columns that a source reads."""
  names = (config.text_column, config.id_column, config.source_column)
  names += config.keep_columns
  return [name for name in dict.fromkeys(names) if name]


def column(record: dict[str, Any], name: str) -> Any:
  """The column `name`, or if there is none, field b of column a for 'a.b'.

  >>> column({'a': {'b': 1}}, 'a.b')
  1

  Raises:
    Bad: the record has neither.
  """
  if name in record:
    return record[name]
  outer, _, inner = name.partition('.')
  if inner and isinstance(record.get(outer), dict):
    return column(record[outer], inner)
  columns = ', '.join(sorted(record)[:20]) or 'none'
  raise Bad('no such column', f'no {name!r}, columns are {columns:.200}')


def utf8(data: bytes) -> str:
  """The text of bytes; raises `Bad`."""
  try:
    return data.decode('utf-8')
  except UnicodeDecodeError as error:
    raise Bad('not UTF-8', f'at byte {error.start}') from None


def encodable(text: str) -> bytes:
  """The bytes of a text; raises `Bad`."""
  try:
    return text.encode('utf-8')
  except UnicodeEncodeError as error:
    raise Bad('not UTF-8', f'at character {error.start}') from None


def checked_text(value: Any) -> str:
  """A text that a document can have; raises `Bad`."""
  value = _decoded(value)
  if not isinstance(value, str):
    raise Bad('text is not a string', f'a {type(value).__name__}')
  if not value.strip():
    raise Bad('empty text', f'{len(value)} characters of white space')
  encodable(value)
  return value
