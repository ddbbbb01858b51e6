"""Documents out of what `corpus.sources` names: files and datasets.

`FORMATS` has one entry for each format. Every record of a unit comes out, good
or bad, in the unit's order, so that two passes over one unit agree on what its
n-th record is.
"""

import collections
import contextlib
import dataclasses
import functools
import json
import types
from collections.abc import Callable, Container, Generator, Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from infoprune_jax.config.corpus import SourceConfig
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

# Reads a unit: it, the records that are asked for (None for all), and whether
# documents come with their `record`; see `read_records`.
Reader = Callable[[InputFile, Container[int] | None, bool], Records]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Format:
  """How sources of one format are listed and read."""

  read: Reader
  # The module whose `list_units` lists a dataset of TensorFlow: it is listed
  # and read in a process of its own. None where units are files.
  dataset: types.ModuleType | None = None
  # Of files in a folder: those with records, and those that hold none; () where
  # every file in a folder is read.
  extensions: tuple[str, ...] = ()
  without_records: tuple[str, ...] = ()
  # Lists the files of a path instead, given the config field that names it.
  list_files: Callable[[str, str], tuple[str, list[tuple[str, int]]]] | None = (
    None
  )
  records_are_documents: bool = True  # of a file; else the file is a document
  # The columns of an open file, whose records are Arrow's; None for other
  # records.
  schema: Callable[[Any], pa.Schema] | None = None
  # For messages: what to do about an id that comes twice, where no `id_column`
  # is named; and why a text may differ when it is read again.
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


def list_files(sources: Mapping[str, SourceConfig]) -> list[InputFile]:
  """The units of work of all sources, in a fixed order.

  Raises:
    UserError: a path or name matches nothing, or cannot be read as it is.
  """
  units = {
    name: _list_files(name, config)
    for name, config in sources.items()
    if not FORMATS[config.format].dataset
  }
  datasets = [item for item in sources.items() if item[0] not in units]
  if datasets:
    force_subprocess = needs_worker(datasets[0][1])
    if force_subprocess:
      logger.info('tokenize: TensorFlow starts, to list TFDS and SeqIO sources')
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
  """What can be done about an id that comes twice, up to the last 'or'."""
  hint = '' if config.id_column else FORMATS[config.format].same_id_hint
  return hint or 'Fix it, name another id_column,'


def _list_files(source: str, config: SourceConfig) -> list[InputFile]:
  field = f'corpus.sources.{source}.paths'
  matches = [
    FORMATS[config.format].matches(field, path) for path in config.paths
  ]
  # Globs may overlap.
  sizes = {path: size for _, files in matches for path, size in files}
  names = paths.relative_names(list(sizes), [folder for folder, _ in matches])
  return [
    InputFile(source, config, path, name, size)
    for (path, size), name in zip(sizes.items(), names, strict=True)
  ]


def _list_datasets(
  sources: Sequence[tuple[str, SourceConfig]],
) -> tuple[dict[str, list[InputFile]], list[str]]:
  """The units of TFDS and SeqIO sources, and what to warn of."""
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
    wanted: The numbers of the records that are asked for; others may be left
      out, and are where parsing them is most of the work. None for all.
    whole: Whether documents come with their `record`, where a record is one.

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
  try:
    with contextlib.closing(read_lines(file.path)) as lines:
      for number, line in lines:
        if wanted is None or number in wanted:
          yield records.read_record(
            file,
            number,
            functools.partial(_json_document, file, number, line, whole),
          )
  except records.Bad as bad:
    yield 1, BadRecord(bad.args[0], file.path, bad.args[1])


def read_lines(path: str) -> Generator[tuple[int, bytes], None, None]:
  """The lines of a file of JSONL that are not blank, with numbers from 1.

  Raises:
    Bad: the file is compressed by its name, and has no byte.
    UserError: it cannot be read to its end, or is no text in UTF-8.
  """
  with (
    paths.read_error_as_user_error(path),
    filesystems.open_file(path) as raw,
    compressed.open_stored(path, raw) as lines,
  ):
    compressed.skip_mark(path, lines)
    for number, line in enumerate(lines, 1):
      if line.strip():
        yield number, line


def read_schema(file: InputFile) -> pa.Schema:
  """The columns of a file whose format has a `schema`.

  Raises:
    UserError: the file cannot be read.
  """
  schema = FORMATS[file.config.format].schema
  assert schema, f'{file.path} is no table'
  with (
    paths.read_error_as_user_error(file.path),
    filesystems.open_file(file.path) as raw,
  ):
    return schema(raw)


def without_checksums(files: Sequence[InputFile]) -> list[str]:
  """Sources of Parquet in which damage may go unnoticed, by their first files.

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
  """The only record of a file that is one document."""
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
  """The object in a line of JSONL, or `records.Bad`."""
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
  """An object, of which the parser would keep the last of equal keys."""
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
    same_id_hint='Examples of a SeqIO task without a tfds_id have a fingerprint '
    'of their text for id, so that copies share one; those that a preprocessor '
    'made of one example share its tfds_id. Leave out such examples, name an '
    'id_column,',
    changed_hint='gave another text when it was read again: what it reads '
    'changed, or its preprocessors draw at random; if so, name a text_column '
    'that they leave alone.',
  ),
}
ARROW_FORMATS = tuple(name for name in FORMATS if FORMATS[name].schema)
