"""Records of Parquet files and of folders of `datasets.Dataset.save_to_disk`.

A saved dataset is a folder with state.json, which lists files of Arrow's IPC
stream format; they are read with pyarrow alone.
"""

import dataclasses
import functools
import json
import os
import posixpath
from collections.abc import Container, Iterable, Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from infoprune_jax.config.validation import UserError
from infoprune_jax.corpus import parquet, paths, records
from infoprune_jax.corpus.records import (
  Document,
  InputFile,
  Records,
  RowGroups,
)
from infoprune_jax.runtime import filesystems

BATCH = 1024  # records of Parquet held at once
# The end of an Arrow stream; a stream cut between two batches lacks it.
END_OF_STREAM = b'\xff\xff\xff\xff\x00\x00\x00\x00'


def parquet_records(
  file: InputFile, raw: Any, wanted: Container[int] | None, whole: bool
) -> Records:
  """The records of an open Parquet file, see `sources.read_records`.

  Row groups without a wanted record are not read.
  """
  with parquet.open_file(raw) as opened:
    batches = _wanted_batches(file, opened, wanted, whole)
    yield from table_records(file, opened.schema_arrow, batches, wanted, whole)


def _wanted_batches(
  file: InputFile,
  opened: pq.ParquetFile,
  wanted: Container[int] | None,
  whole: bool,
) -> Iterator[tuple[int, pa.RecordBatch]]:
  """Batches of the row groups with wanted records, and the rows before each."""
  columns = None if whole else records.wanted_columns(file.config)
  part = file.part or RowGroups(0, opened.num_row_groups, 0)
  assert isinstance(part, RowGroups)
  before = part.rows_before
  for group in range(part.start, part.end):
    rows = opened.metadata.row_group(group).num_rows
    numbers = range(before + 1, before + rows + 1)
    if wanted is None or any(number in wanted for number in numbers):
      batches = opened.iter_batches(BATCH, [group], columns)
      yield from _numbered(batches, before)
    before += rows


def _numbered(
  batches: Iterable[pa.RecordBatch], before: int = 0
) -> Iterator[tuple[int, pa.RecordBatch]]:
  """Batches, each with the number of records before it."""
  for batch in batches:
    yield before, batch
    before += batch.num_rows


def saved_records(
  file: InputFile, raw: Any, wanted: Container[int] | None, whole: bool
) -> Records:
  """The records of an open file of a saved dataset."""
  raw.seek(0, os.SEEK_END)
  raw.seek(max(raw.tell() - len(END_OF_STREAM), 0))
  if raw.read() != END_OF_STREAM:
    raise UserError(
      f'{file.path} cannot be read: it is cut short, or not an Arrow stream. '
      'Save the dataset again.'
    )
  raw.seek(0)
  with pa.ipc.open_stream(raw) as stream:
    batches = _numbered(stream)
    yield from table_records(file, stream.schema, batches, wanted, whole)


def saved_schema(raw: Any) -> pa.Schema:
  """The columns of an open file of a saved dataset."""
  with pa.ipc.open_stream(raw) as stream:
    return stream.schema


def table_records(
  file: InputFile,
  schema: pa.Schema,
  batches: Iterable[tuple[int, pa.RecordBatch]],
  wanted: Container[int] | None,
  whole: bool,
) -> Records:
  """The records of a table that is read in batches.

  Args:
    file: Where the table is from; its config names the columns.
    schema: All columns of the table.
    batches: Its records, with the columns that are needed, and the number of
      records before each batch.
    wanted: The numbers of the records to read; None for all.
    whole: Whether documents have their `record`.

  Raises:
    UserError: a column is missing, or there are two of its name.
  """
  _check_columns(file, schema)
  columns = records.wanted_columns(file.config)
  for before, batch in batches:
    there = batch.schema.names
    outer = {n if n in there else n.partition('.')[0] for n in columns}
    read = batch.select(sorted(outer))
    for position in range(batch.num_rows):
      number = before + position + 1
      if wanted is not None and number not in wanted:
        continue
      record = batch.slice(position, 1) if whole else None
      yield records.read_record(
        file,
        number,
        functools.partial(_document, file, number, read, position, record),
      )


def _document(
  file: InputFile,
  number: int,
  batch: pa.RecordBatch,
  position: int,
  whole: pa.RecordBatch | None,
) -> Document:
  try:
    record = {
      name: batch[name][position].as_py() for name in batch.schema.names
    }
  except UnicodeDecodeError as error:
    raise records.Bad('not UTF-8', f'at byte {error.start}') from None
  document = records.record_document(
    file, record, records.id_of_place(file, number)
  )
  return dataclasses.replace(document, record=whole) if whole else document


def _check_columns(file: InputFile, schema: pa.Schema) -> None:
  for name in records.wanted_columns(file.config):
    if not _has(schema, name):
      raise UserError(
        f'{file.path} has no column {name!r}; columns are '
        f'{", ".join(_names(schema))}. Name another in '
        f'corpus.sources.{file.source}.'
      )
    times = schema.names.count(name.partition('.')[0])
    if times > 1:
      raise UserError(
        f'{file.path} has {times} columns {name!r}: rename one of them, or name '
        f'another in corpus.sources.{file.source}.'
      )


def _has(fields: Iterable[pa.Field], name: str) -> bool:
  types = {field.name: field.type for field in fields}
  outer, _, inner = name.partition('.')
  return name in types or (
    bool(inner)
    and pa.types.is_struct(types.get(outer, pa.null()))
    and _has(types[outer], inner)
  )


def _names(fields: Iterable[pa.Field]) -> Iterator[str]:
  """The names of columns, nested ones as 'a.b'."""
  for field in fields:
    if pa.types.is_struct(field.type):
      yield from (f'{field.name}.{name}' for name in _names(field.type))
    else:
      yield field.name


def saved_matches(field: str, path: str) -> tuple[str, list[tuple[str, int]]]:
  """The parent of saved datasets, and their files in order, with sizes.

  Args:
    field: The config field that names the path.
    path: A folder that `save_to_disk` wrote, a glob, or a URL of one.

  Raises:
    UserError: a folder is not a saved dataset, or lacks one of its files.
  """
  filesystem, name = paths.open_filesystem(field, path)
  try:
    folders = [name.rstrip('/')]
    if filesystems.is_glob(name) and not filesystem.exists(name):
      _, matches = filesystems.expand(filesystem, name)
      folders = [
        folder
        for folder, info in matches.items()
        if info['type'] == 'directory'
      ]
    files = [
      (paths.url(filesystem, file, path), filesystem.size(file) or 0)
      for folder in sorted(folders)
      for file in _saved_files(field, filesystem, folder)
    ]
  except paths.READ_ERRORS as error:
    raise paths.unreadable(field, path, error) from None
  if not files:
    raise UserError(
      f'{field}: no saved dataset that matches {path!r} holds a record (looked '
      f'from {os.getcwd()}).'
    )
  return paths.url(filesystem, posixpath.dirname(folders[0]), path), files


def _saved_files(field: str, filesystem: Any, folder: str) -> list[str]:
  """The files of one saved dataset, in its order."""

  def read(name: str) -> Any:
    try:
      return json.loads(filesystem.cat_file(f'{folder}/{name}'))
    except FileNotFoundError:
      return None
    except ValueError as error:
      raise UserError(
        f'{field}: {folder}/{name} is damaged ({error}): save the dataset '
        'again.'
      ) from None

  splits = read('dataset_dict.json')
  if splits is not None:
    names = ', '.join(repr(f'{folder}/{name}') for name in splits['splits'])
    raise UserError(
      f'{field}: {folder!r} is a DatasetDict of several splits: name one '
      f'or more of {names}.'
    )
  state = read('state.json')
  if state is None:
    raise UserError(
      f'{field}: {folder!r} is not a folder of datasets.Dataset.save_to_disk: '
      f'it has no state.json (looked from {os.getcwd()}).'
    )
  if state.get('_indices_files'):
    raise UserError(
      f'{field}: {folder!r} was saved by datasets 1 with records chosen by an '
      'index: load it and save it again with datasets 2 or newer.'
    )
  return [f'{folder}/{file["filename"]}' for file in state['_data_files']]
