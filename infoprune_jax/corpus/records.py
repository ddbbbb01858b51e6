"""What a record becomes: a document, or a bad record with its reason."""

import dataclasses
import uuid
from collections.abc import Callable, Generator
from typing import Any

from infoprune_jax.config.corpus import SourceConfig

MAX_ID_BYTES = 4096


@dataclasses.dataclass(frozen=True)
class InputFile:
  """One unit of work of a source: a file, or a shard of a dataset."""

  # The name in `corpus.sources`, or of the task where that is a mixture.
  source: str
  config: SourceConfig  # of a dataset: narrowed to this unit
  path: str  # for people, and of a file for opening it
  name: str  # relative to what the source's path names; part of the ids
  size: int  # bytes, as stored
  shard: tuple[int, int] = (0, 1)  # of a SeqIO task: which, and of how many


@dataclasses.dataclass(frozen=True)
class Document:
  """One example."""

  example_id: str
  source: str
  text: str
  # The record that it was read from, where that is asked for and there is one:
  # a line of JSON, or a batch of Arrow with one record.
  record: Any = None


@dataclasses.dataclass(frozen=True)
class BadRecord:
  """A record that is no document."""

  reason: str  # a short class, to count by
  where: str  # file and line
  detail: str

  def __str__(self) -> str:
    """One line for the user."""
    return f'{self.where}: {self.reason} ({self.detail})'


# What a reader gives: for each record its line or number, from 1, and its
# content.
Records = Generator[tuple[int, Document | BadRecord], None, None]


class Bad(Exception):
  """Reason and detail of a bad record."""


def read_record(
  file: InputFile, number: int, document: Callable[[], Document]
) -> tuple[int, Document | BadRecord]:
  """A record's number, and what `document` makes of the record or what it lacks."""
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
    default_id: Gives the id of a text where no column holds ids.

  Raises:
    Bad: the record is no document.
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
  return Document(example_id, source, text)


def _checked_id(name: str, value: Any) -> str:
  """The id that a value gives, or `Bad`."""
  try:
    value = _decoded(value)
  except Bad as bad:
    raise Bad(
      'bad id', f'{name}={value!r:.50}: no UTF-8 {bad.args[1]}'
    ) from None
  # Not of a subclass: True is an integer, too.
  if type(value) not in (str, int, uuid.UUID) or value == '':
    kind = type(value).__name__
    raise Bad(
      'bad id',
      f'{name}={value!r:.50} of type {kind}; ids are text, integers or UUIDs',
    )
  return str(value)


def _decoded(value: Any) -> Any:
  """Text that a table holds as bytes; what is no bytes as it is; or `Bad`."""
  return utf8(value) if isinstance(value, bytes) else value


def id_of_place(file: InputFile, number: int) -> Callable[[str], str]:
  """The default id of a record of a file."""
  return lambda text: f'{file.source}/{file.name}:{number}'


def wanted_columns(config: SourceConfig) -> list[str]:
  """The names of the columns that a source reads."""
  names = (config.text_column, config.id_column, config.source_column)
  return [name for name in dict.fromkeys(names) if name]


def column(record: dict[str, Any], name: str) -> Any:
  """The column `name`, or where there is none the field that 'a.b' names.

  >>> column({'a': {'b': 1}}, 'a.b')
  1

  Raises:
    Bad: there is neither.
  """
  if name in record:
    return record[name]
  outer, _, inner = name.partition('.')
  if inner and isinstance(record.get(outer), dict):
    return column(record[outer], inner)
  columns = ', '.join(sorted(record)[:20]) or 'none'
  raise Bad('no such column', f'no {name!r}, columns are {columns:.200}')


def utf8(data: bytes) -> str:
  """The text of bytes, or `Bad`."""
  try:
    return data.decode('utf-8')
  except UnicodeDecodeError as error:
    raise Bad('not UTF-8', f'at byte {error.start}') from None


def encodable(text: str) -> bytes:
  """The bytes of a text, or `Bad`."""
  try:
    return text.encode('utf-8')
  except UnicodeEncodeError as error:
    raise Bad('not UTF-8', f'at character {error.start}') from None


def checked_text(value: Any) -> str:
  """A text that a document can have, or `Bad`."""
  value = _decoded(value)
  if not isinstance(value, str):
    raise Bad('text is not a string', f'a {type(value).__name__}')
  if not value.strip():
    raise Bad('empty text', f'{len(value)} characters of white space')
  encodable(value)
  return value
