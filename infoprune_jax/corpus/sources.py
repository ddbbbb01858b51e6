"""Reads the documents of `corpus.sources`: files and datasets.

`FORMATS` has one entry for each format. A reader yields every record of a unit,
good or bad, in the order of the unit, so two passes over a unit number its
records alike.
"""

import collections
import contextlib
import dataclasses
import functools
import json
import sys
import types
from collections.abc import Callable, Container, Generator, Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from infoprune_jax.config.corpus import SourceConfig
from infoprune_jax.config.validation import UserError
from infoprune_jax.corpus import (
  arrow_records,
  compressed,
  parquet,
  paths,
  quiet_tensorflow,
  records,
  seqio_source,
  tfds_source,
)
from infoprune_jax.corpus.records import BadRecord, Document, InputFile, Records
from infoprune_jax.runtime import filesystems, workers
from infoprune_jax.runtime.progress import logger

# Reads a unit; the arguments are those of `read_records`.
Reader = Callable[[InputFile, Container[int] | None, bool], Records]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Format:
  """How sources of one format are listed and read."""

  read: Reader
  # The module whose `list_units` lists a dataset of TensorFlow, which is listed
  # and read in a process of its own. None if units are files.
  dataset: types.ModuleType | None = None
  # In a folder: extensions of files with records, and of files without any; ()
  # to read every file.
  extensions: tuple[str, ...] = ()
  without_records: tuple[str, ...] = ()
  # Lists the files of a path instead, given the config field that names it.
  list_files: Callable[[str, str], tuple[str, list[tuple[str, int]]]] | None = (
    None
  )
  records_are_documents: bool = True  # otherwise the file is a document
  # Reads the columns of an open file of Arrow records; None for other records.
  schema: Callable[[Any], pa.Schema] | None = None
  # For messages: what to do about a repeated id if no `id_column` is named; and
  # why a text may differ when it is read again.
  same_id_hint: str = ''
  changed_hint: str = (
    'changed while it was being read: start again when nothing writes to it.'
  )

  def matches(self, field: str, path: str) -> tuple[str, list[tuple[str, int]]]:
    """The folder that a path names, and its files with sizes."""
    if self.list_files:
      return self.list_files(field, path)
    is_data = functools.partial(
      paths.is_data,
      extensions=self.extensions,
      without_records=self.without_records,
    )
    return paths.matches(field, path, is_data if self.extensions else None)


def list_files(
  sources: Mapping[str, SourceConfig], section: str = 'corpus.sources'
) -> list[InputFile]:
  """The units of work of all sources, in a fixed order.

  Args:
    sources: By name.
    section: Of the config that has them, for messages.

  Raises:
    UserError: a path or name matches nothing, or cannot be read as it is.
  """
  units = {
    name: _list_files(name, config, f'{section}.{name}.paths')
    for name, config in sources.items()
    if not FORMATS[config.format].dataset
  }
  datasets = [item for item in sources.items() if item[0] not in units]
  if datasets:
    force_subprocess = needs_worker(datasets[0][1])
    if force_subprocess:
      logger.info('tokenize: starts TensorFlow to list TFDS and SeqIO sources')
    listing = workers.run_all(_list_datasets, [datasets], 1, force_subprocess)
    dataset_units, warnings = next(listing)
    units.update(dataset_units)
    for warning in warnings:
      logger.warning('tokenize: %s', warning)
  return [file for name in sources for file in units[name]]


def needs_worker(*configs: SourceConfig) -> bool:
  """Whether reading would bring TensorFlow into a main process without it."""
  datasets = any(FORMATS[config.format].dataset for config in configs)
  return datasets and quiet_tensorflow.needs_subprocess()


def about_ids(config: SourceConfig) -> str:
  """What to do about a repeated id; the sentence ends before its last 'or'."""
  hint = '' if config.id_column else FORMATS[config.format].same_id_hint
  return hint or 'Fix it, name another id_column,'


def _list_files(
  source: str, config: SourceConfig, field: str
) -> list[InputFile]:
  matches = [
    FORMATS[config.format].matches(field, path) for path in config.paths
  ]
  # Globs may overlap.
  sizes = {path: size for _, files in matches for path, size in files}
  if config.format == 'text' and config.max_document_bytes:
    sizes = _without_long_files(field, config.max_document_bytes, sizes)
  names = paths.relative_names(list(sizes), [folder for folder, _ in matches])
  return [
    InputFile(source, config, path, name, size)
    for (path, size), name in zip(sizes.items(), names, strict=True)
  ]


def _without_long_files(
  field: str, longest: int, sizes: Mapping[str, int]
) -> dict[str, int]:
  """The files that may hold a text of `longest` bytes at most, with sizes."""
  short = {
    path: size
    for path, size in sizes.items()
    if size <= longest or compressed.codec_of(path)
  }
  if not short:
    raise UserError(
      f'{field}: every file is longer than max_document_bytes={longest}: raise '
      'it, or name other files.'
    )
  return short


def _list_datasets(
  sources: Sequence[tuple[str, SourceConfig]],
) -> tuple[dict[str, list[InputFile]], list[str]]:
  """The units of TFDS and SeqIO sources, and warnings for the user."""
  units: dict[str, list[InputFile]] = {}
  warnings: list[str] = []
  for name, config in sources:
    dataset = FORMATS[config.format].dataset
    assert dataset  # `list_files` gives no others.
    units[name] = dataset.list_units(name, config, warnings)
  tfds_source.check_ids(units)
  return units, warnings


def read_records(
  file: InputFile,
  wanted: Container[int] | None = None,
  whole: bool = False,
) -> Records:
  """The records of a unit, in order, each with its line or number (from 1).

  Args:
    file: The unit.
    wanted: The numbers of the records to read; None for all. Other records may
      be yielded if skipping them saves little.
    whole: Whether documents have their `record`, if the format has records.

  Raises:
    UserError: the unit cannot be read to its end.
  """
  return FORMATS[file.config.format].read(file, wanted, whole)


def _arrow_records(read: Callable[..., Records]) -> Reader:
  """A reader that opens the file, and then reads it by `read`."""

  def open_and_read(
    file: InputFile, wanted: Container[int] | None, whole: bool
  ) -> Records:
    with (
      paths.read_error_as_user_error(file.path),
      filesystems.open_file(file.path) as raw,
    ):
      yield from read(file, raw, wanted, whole)

  return open_and_read


def _json_records(
  file: InputFile, wanted: Container[int] | None, whole: bool
) -> Records:
  assert not isinstance(file.part, records.RowGroups)
  try:
    with contextlib.closing(read_lines(file.path, file.part)) as lines:
      for number, line in lines:
        if wanted is None or number in wanted:
          yield records.read_record(
            file,
            number,
            functools.partial(_json_document, file, number, line, whole),
          )
  except records.Bad as bad:
    yield 1, BadRecord(bad.args[0], file.path, bad.args[1])


def read_lines(
  path: str, part: records.Lines | None = None
) -> Generator[tuple[int, bytes], None, None]:
  """The lines of a file of JSONL that are not blank, with numbers from 1.

  Args:
    path: The file.
    part: The lines to read; None for all.

  Raises:
    Bad: the name says that the file is compressed, and it has no byte.
    UserError: it cannot be read to its end, or is not UTF-8 text.
  """
  part = part or records.Lines(0, 0, sys.maxsize, 0)
  with (
    paths.read_error_as_user_error(path),
    filesystems.open_file(path) as raw,
    compressed.open_stored(path, raw, part.start) as lines,
  ):
    if part.start:
      position = len(lines.read(part.skip))
    else:
      position = compressed.skip_mark(path, lines)
    for number, line in enumerate(lines, part.lines_before + 1):
      if line.strip():
        yield number, line
      position += len(line)
      if position >= part.end:
        return


def read_schema(file: InputFile) -> pa.Schema:
  """The columns of a file whose format has a `schema`.

  Raises:
    UserError: the file cannot be read.
  """
  schema = FORMATS[file.config.format].schema
  assert schema, f'{file.path} is not a table'
  with (
    paths.read_error_as_user_error(file.path),
    filesystems.open_file(file.path) as raw,
  ):
    return schema(raw)


def columns_of(file: InputFile) -> list[str]:
  """The columns of the first record of JSON or Arrow of a unit; else none."""
  with contextlib.closing(read_records(file, whole=True)) as records_of_file:
    for _, record in records_of_file:
      if isinstance(record, BadRecord):
        continue
      if isinstance(record.record, bytes):
        return list(json_object(record.record))
      return list(getattr(record.record, 'schema', pa.schema([])).names)
  return []


def without_checksums(files: Sequence[InputFile]) -> list[str]:
  """Parquet sources without checksums in their first files.

  Raises:
    UserError: a file cannot be read.
  """
  first = {
    file.source: file.path
    for file in reversed(files)
    if file.config.format == 'parquet'
  }
  unverified = []
  for source, path in first.items():
    with (
      paths.read_error_as_user_error(path),
      filesystems.open_file(path) as raw,
    ):
      if not parquet.has_checksums(raw):
        unverified.append(source)
  return sorted(unverified)


def _text_records(
  file: InputFile, wanted: Container[int] | None, whole: bool
) -> Records:
  """The single record of a file that is one document."""
  del wanted, whole
  try:
    with (
      paths.read_error_as_user_error(file.path),
      filesystems.open_file(file.path) as raw,
      compressed.open_stored(file.path, raw) as content,
    ):
      data = content.read()
    text = records.checked_text(compressed.text_of(data))
    yield 1, Document(f'{file.source}/{file.name}', file.source, text)
  except records.Bad as bad:
    yield 1, BadRecord(bad.args[0], file.path, bad.args[1])


def _json_document(
  file: InputFile, number: int, line: bytes, whole: bool
) -> Document:
  record = json_object(line)
  document = records.record_document(
    file, record, records.id_of_place(file, number)
  )
  return (
    dataclasses.replace(document, record=line.strip()) if whole else document
  )


def json_object(line: bytes) -> dict[str, Any]:
  """The object in a line of JSONL; raises `records.Bad`."""
  try:
    record = _JSON.decode(records.utf8(line))
  except RecursionError:
    raise records.Bad('broken JSON', 'nested too deeply') from None
  except ValueError as error:
    raise records.Bad('broken JSON', str(error)) from None
  if not isinstance(record, dict):
    raise records.Bad('not a JSON object', f'a {type(record).__name__}')
  return record


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
  """An object without equal keys, of which the parser would keep the last."""
  record = dict(pairs)
  if len(record) < len(pairs):
    names = collections.Counter(name for name, _ in pairs)
    [(name, times)] = names.most_common(1)
    raise records.Bad('duplicate key', f'{name!r:.50} comes {times} times')
  return record


_JSON = json.JSONDecoder(object_pairs_hook=_unique)

FORMATS = {
  'text': Format(read=_text_records, records_are_documents=False),
  'jsonl': Format(
    read=_json_records, extensions=('.jsonl', '.json', '.ndjson')
  ),
  'parquet': Format(
    read=_arrow_records(arrow_records.parquet_records),
    extensions=('.parquet', '.parq', '.pq'),
    without_records=('.json', '.jsonl', '.txt', '.csv', '.tsv', '.xml'),
    schema=pq.read_schema,
  ),
  'hf_dataset': Format(
    read=_arrow_records(arrow_records.saved_records),
    list_files=arrow_records.saved_matches,
    schema=arrow_records.saved_schema,
  ),
  'tfds': Format(
    read=lambda file, wanted, whole: tfds_source.read_records(file),
    dataset=tfds_source,
    same_id_hint='The split names an example twice: fix it, name an id_column,',
  ),
  'seqio': Format(
    read=lambda file, wanted, whole: seqio_source.read_records(file),
    dataset=seqio_source,
    same_id_hint='Without a tfds_id, the id of a SeqIO example is a '
    'fingerprint of its text, so copies have the same id. Examples that a preprocessor '
    'made of one example share its tfds_id. Leave out such examples, name an '
    'id_column,',
    changed_hint='gave another text when it was read again: its input changed, '
    'or its preprocessors draw at random. In that case name a text_column '
    'that they do not change.',
  ),
}
ARROW_FORMATS = tuple(name for name in FORMATS if FORMATS[name].schema)
