"""Reads tables of the user's: Parquet, JSONL or Arrow, one batch at a time.

Each file of a table has the keys and the columns that the config names. Files are
known by a digest of their content, so that a changed file is noticed.
"""

import dataclasses
import functools
import posixpath
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import pyarrow as pa
from pyarrow import json as pa_json

from infoprune_jax.config.selection import TableConfig
from infoprune_jax.config.validation import UserError, did_you_mean
from infoprune_jax.corpus import compressed, parquet, paths
from infoprune_jax.runtime import files, filesystems, manifests

BATCH = 1 << 20  # records of a batch, at most
_BLOCK = 1 << 24  # bytes of JSONL that are parsed at once
_EXAMPLE_ID, _SOURCE = 'example_id', 'source'


class Column(NamedTuple):
  """A column of a table, and its type where it is stored."""

  name: str
  type: pa.DataType


@dataclasses.dataclass(frozen=True)
class UserTable:
  """A table of the user's, opened.

  Attributes:
    name: In `select.tables`.
    files: The paths, by a name below what the config names, in order.
    keys: The columns that say which example a record is about.
    columns: Those to join.
  """

  name: str
  files: Mapping[str, str]
  keys: tuple[str, ...]
  columns: tuple[Column, ...]

  @property
  def schema(self) -> pa.Schema:
    """The columns to join."""
    return pa.schema([*self.columns])

  def batches(self) -> Iterator[tuple[str, int, pa.RecordBatch]]:
    """Yields each batch: the file, its first record from 0, keys and columns.

    Raises:
      UserError: a file cannot be read, or lacks a column or a key.
    """
    names = [*self.keys, *self.schema.names]
    for path in self.files.values():
      first = 0
      for batch in _read(path, names):
        yield path, first, self._checked(path, first, batch)
        first += batch.num_rows

  def _checked(
    self, path: str, first: int, batch: pa.RecordBatch
  ) -> pa.RecordBatch:
    """A batch with the types that are stored, and without a missing key."""
    where = f'select.tables.{self.name}: {path}'
    arrays = []
    for name in self.keys:
      column = batch[name]
      if column.null_count:
        record = first + column.is_null().index(True).as_py()
        raise UserError(
          f'{where}: record {record} (from 0) has no {name}, by which the table '
          'is joined: leave such records out.'
        )
      kind = pa.string() if name in (_EXAMPLE_ID, _SOURCE) else pa.int64()
      arrays.append(_cast(where, column, Column(name, kind)))
    arrays += [_cast(where, batch[one.name], one) for one in self.columns]
    return pa.RecordBatch.from_arrays(
      arrays, names=[*self.keys, *self.schema.names]
    )


def open_table(name: str, config: TableConfig) -> UserTable:
  """Opens a table: lists its files, and reads the columns of the first.

  Args:
    name: In `select.tables`.
    config: Its options.

  Raises:
    UserError: a path matches nothing, a file cannot be read, or a column is
      missing or of a type that no rule can read.
  """
  listed = _list_files(name, config)
  first = next(iter(listed.values()))
  where = f'select.tables.{name}: {first}'
  schema = _schema(first)
  there = {field.name: field.type for field in schema}
  for column in (*config.on, *config.columns):
    if column not in there:
      hint = did_you_mean(column, schema.names)
      raise UserError(
        f'{where} has no column {column!r}.{hint} Columns are '
        f'{", ".join(schema.names)}.'
      )
  has_source = config.on == (_EXAMPLE_ID,) and _SOURCE in there
  keys = (_SOURCE, _EXAMPLE_ID) if has_source else config.on
  wanted = config.columns or [n for n in there if n not in keys]
  types = {n: stored_type(there[n]) for n in wanted}
  lacking = [n for n in wanted if types[n] is None]
  columns = tuple(Column(n, kind) for n, kind in types.items() if kind)
  if (config.columns and lacking) or not columns:
    kinds = ', '.join(f'{n} ({there[n]})' for n in lacking) or 'none'
    raise UserError(
      f'{where}: rules read numbers, texts, dates and times; the columns '
      f'beside {", ".join(keys)} are {kinds}. Name others in '
      f'select.tables.{name}.columns.'
    )
  return UserTable(name, listed, keys, columns)


def files_facts(
  table: UserTable, known: Mapping[str, Any]
) -> dict[str, dict[str, Any]]:
  """Size, time of change and SHA-256 of each file, by its name.

  Args:
    table: The table.
    known: An earlier result: files of the same size and time are not read.
  """
  facts = {}
  for name, path in table.files.items():
    info = _info(path)
    earlier = known.get(name, {})
    if {**earlier, **info} == earlier and info['changed']:
      facts[name] = dict(earlier)
    else:
      with paths.read_error_as_user_error(path):
        local = filesystems.local_copy(path)
        facts[name] = {**info, 'sha256': files.facts_of(local)['sha256']}
  return facts


def digest(facts: Mapping[str, Mapping[str, Any]]) -> str:
  """A fingerprint of the names and contents of files."""
  return manifests.fingerprint([[n, f['sha256']] for n, f in facts.items()])


def fills(table: UserTable, missing: float | str) -> list[pa.Scalar]:
  """What examples without a record have in each column.

  Args:
    table: The table.
    missing: Of its config; '' gives nulls.

  Raises:
    UserError: `missing` is no value of a column.
  """
  return [_fill(table.name, column, missing) for column in table.columns]


def _fill(table: str, column: Column, missing: float | str) -> pa.Scalar:
  if missing == '':
    return pa.scalar(None, column.type)
  try:
    return pa.scalar(missing).cast(column.type)
  except (pa.ArrowException, ValueError) as error:
    raise UserError(
      f'select.tables.{table}.missing is {missing!r}, which is no value of the '
      f'column {column.name!r}, {column.type} ({error}): give another, or leave '
      f'the column out of select.tables.{table}.columns.'
    ) from None


def stored_type(kind: pa.DataType) -> pa.DataType | None:
  """The type in which a column is joined; None if no rule can read it."""
  if pa.types.is_dictionary(kind):
    return stored_type(kind.value_type)
  if pa.types.is_string(kind) or pa.types.is_large_string(kind):
    return pa.string()
  if pa.types.is_float16(kind):
    return pa.float32()
  readable = (
    *(pa.types.is_integer, pa.types.is_floating, pa.types.is_boolean),
    *(pa.types.is_date, pa.types.is_timestamp),
  )
  return kind if any(is_kind(kind) for is_kind in readable) else None


def _cast(where: str, array: pa.Array, column: Column) -> pa.Array:
  """A column in the type that is stored; raises `UserError` if it does not fit."""
  try:
    return array.cast(column.type)
  except (pa.ArrowException, ValueError) as error:
    raise UserError(
      f'{where}: the column {column.name!r} is {array.type}, expected '
      f'{column.type} ({str(error).splitlines()[0]}). Write it with one type in '
      'all files.'
    ) from None


def _list_files(name: str, config: TableConfig) -> dict[str, str]:
  """The files of a table by names that do not depend on where they are."""
  field = f'select.tables.{name}.paths'
  is_data = functools.partial(paths.is_data, extensions=(*_READERS,))
  matches = [paths.matches(field, path, is_data) for path in config.paths]
  listed = dict.fromkeys(path for _, some in matches for path, _ in some)
  for path in listed:
    if _extension(path) not in _READERS:
      raise UserError(
        f'{field}: {path} is none of {", ".join(_READERS)} (also compressed '
        'JSONL, such as .jsonl.zst): name other files.'
      )
  names = paths.relative_names([*listed], [folder for folder, _ in matches])
  return dict(zip(names, listed, strict=True))


def _extension(path: str) -> str:
  stem, extension = posixpath.splitext(path.lower())
  return posixpath.splitext(stem)[1] if compressed.codec_of(path) else extension


def _info(path: str) -> dict[str, Any]:
  """Size of a file, and what its file system says when it changed."""
  with paths.read_error_as_user_error(path):
    filesystem, name = filesystems.filesystem_of(path)
    info = filesystem.info(name)
  marks = ('ETag', 'etag', 'mtime', 'LastModified', 'updated')
  changed = next((str(info[mark]) for mark in marks if info.get(mark)), '')
  return {'bytes': info['size'], 'changed': changed}


def _schema(path: str) -> pa.Schema:
  """The columns of a file."""
  for batch in _read(path, None):
    return batch.schema
  raise UserError(f'{path} holds no record: leave it out.')


def _read(path: str, columns: list[str] | None) -> Iterator[pa.RecordBatch]:
  """The records of a file, in order; of columns None, a few of all."""
  with (
    paths.read_error_as_user_error(path),
    filesystems.open_file(path) as raw,
  ):
    for batch in _READERS[_extension(path)](path, raw, columns):
      for name in columns or ():
        if batch.schema.get_field_index(name) < 0:
          raise UserError(
            f'{path} has no column {name!r}, or several; other files of the '
            f'table have it. Columns are {", ".join(batch.schema.names)}.'
          )
      yield batch.select(columns) if columns else batch


def _parquet(
  path: str, raw: Any, columns: list[str] | None
) -> Iterator[pa.RecordBatch]:
  del path
  with parquet.open_file(raw) as file:
    if columns is None:
      yield pa.RecordBatch.from_pylist([], schema=file.schema_arrow)
      return
    there = [name for name in columns if name in file.schema_arrow.names]
    yield from file.iter_batches(BATCH, columns=there)


def _arrow(
  path: str, raw: Any, columns: list[str] | None
) -> Iterator[pa.RecordBatch]:
  """A file or a stream of Arrow's IPC format."""
  del path, columns
  is_file = raw.read(6) == b'ARROW1'
  raw.seek(0)
  if not is_file:
    with pa.ipc.open_stream(raw) as stream:
      yield from _small(stream)
    return
  with pa.ipc.open_file(raw) as file:
    yield from _small(map(file.get_batch, range(file.num_record_batches)))


def _small(batches: Any) -> Iterator[pa.RecordBatch]:
  for batch in batches:
    for first in range(0, batch.num_rows, BATCH):
      yield batch.slice(first, BATCH)


def _json(
  path: str, raw: Any, columns: list[str] | None
) -> Iterator[pa.RecordBatch]:
  """Lines of JSON; the first block decides the types of columns."""
  schema, num_records = None, 0
  with compressed.open_stored(path, raw) as lines:
    compressed.skip_mark(path, lines)
    while block := lines.read(_BLOCK):
      block += lines.readline()
      if not block.strip():
        continue
      table = _parsed(path, block, schema, num_records)
      num_records += table.num_rows
      if schema is None:
        there = [
          field for field in table.schema if field.name in (columns or ())
        ]
        schema = pa.schema(there) if columns else table.schema
      yield from table.combine_chunks().to_batches(BATCH)


def _parsed(
  path: str, block: bytes, schema: pa.Schema | None, first: int
) -> pa.Table:
  """The records of a block, with a schema or with types of their own.

  Raises:
    UserError: the values of a column are not of its type in the schema.
  """
  if schema is None:
    return pa_json.read_json(pa.BufferReader(block))
  try:
    return _with_types(block, schema)
  except pa.ArrowInvalid:
    _with_types(block, pa.schema([]))  # Fails again if it is no JSON.
    for field in schema:
      try:
        _with_types(block, pa.schema([field]))
      except pa.ArrowInvalid as error:
        raise UserError(
          f'{path}: the records of the first {_BLOCK >> 20} MiB decide the types '
          f'of columns. In the records from {first} (from 0), the column '
          f'{field.name!r} does not have its type, {field.type} ({error}). Write '
          'all values of a column alike (1.0, not 1, if any is a fraction), or '
          'write the table as Parquet.'
        ) from None
    raise


def _with_types(block: bytes, schema: pa.Schema) -> pa.Table:
  options = pa_json.ParseOptions(
    explicit_schema=schema, unexpected_field_behavior='ignore'
  )
  return pa_json.read_json(pa.BufferReader(block), parse_options=options)


_Reader = Callable[[str, Any, list[str] | None], Iterator[pa.RecordBatch]]
_READERS: dict[str, _Reader] = {
  **dict.fromkeys(('.parquet', '.parq', '.pq'), _parquet),
  **dict.fromkeys(('.jsonl', '.json', '.ndjson'), _json),
  **dict.fromkeys(('.arrow', '.feather', '.ipc'), _arrow),
}
