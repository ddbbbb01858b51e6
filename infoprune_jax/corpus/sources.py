"""Documents out of what `corpus.sources` names: files and datasets.

Every record of a unit comes out, good or bad, in the unit's order, so that two
passes over one unit agree on what its n-th record is.
"""

import collections
import contextlib
import dataclasses
import functools
import json
from collections.abc import Container, Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa

from infoprune_jax.config.corpus import FILE_FORMATS, SourceConfig
from infoprune_jax.corpus import (
  arrow_records,
  compressed,
  leftovers,
  parquet,
  paths,
  quiet_tensorflow,
  records,
  seqio_source,
  tfds_source,
)
from infoprune_jax.corpus.records import BadRecord, Document, InputFile
from infoprune_jax.runtime import filesystems, workers
from infoprune_jax.runtime.progress import logger

DATASETS = {'tfds': tfds_source, 'seqio': seqio_source}


def list_files(sources: Mapping[str, SourceConfig]) -> list[InputFile]:
  """The units of work of all sources, in a fixed order.

  Raises:
    UserError: a path or name matches nothing, or cannot be read as it is.
  """
  found = {
    name: _list_files(name, config)
    for name, config in sources.items()
    if config.format in FILE_FORMATS
  }
  datasets = [item for item in sources.items() if item[0] not in found]
  if datasets:
    force_subprocess = needs_worker(datasets[0][1])
    if force_subprocess:
      logger.info('tokenize: TensorFlow starts, to list TFDS and SeqIO sources')
    listing = workers.run_all(_list_datasets, [datasets], 1, force_subprocess)
    units, warnings = next(listing)
    found.update(units)
    for warning in warnings:
      logger.warning('tokenize: %s', warning)
  return [file for name in sources for file in found[name]]


def needs_worker(*configs: SourceConfig) -> bool:
  """Whether reading would bring TensorFlow into a main process without it."""
  datasets = any(config.format in DATASETS for config in configs)
  return datasets and quiet_tensorflow.needs_subprocess()


def about_ids(config: SourceConfig) -> str:
  """What can be done about an id that comes twice, up to the last 'or'."""
  if config.format == 'seqio' and not config.id_column:
    return (
      'Examples of a SeqIO task without a tfds_id have a fingerprint of their '
      'text for id, so that copies share one; those that a preprocessor made '
      'of one example share its tfds_id. Leave out such examples, name an '
      'id_column,'
    )
  if config.format == 'tfds' and not config.id_column:
    return 'The split names an example twice: fix it, name an id_column,'
  return 'Fix it, name another id_column,'


def _list_files(source: str, config: SourceConfig) -> list[InputFile]:
  field = f'corpus.sources.{source}.paths'
  if config.format == 'hf_dataset':
    found = [arrow_records.saved_matches(field, path) for path in config.paths]
  else:
    is_data = functools.partial(leftovers.is_data, config.format)
    found = [paths.matches(field, path, is_data) for path in config.paths]
  # Globs may overlap.
  sizes = {path: size for _, files in found for path, size in files}
  names = paths.relative_names(list(sizes), [folder for folder, _ in found])
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
    units[name] = DATASETS[config.format].list_units(name, config, warnings)
  tfds_source.check_ids(units)
  return units, warnings


def read_records(
  file: InputFile,
  wanted: Container[int] | None = None,
  whole: bool = False,
) -> Iterator[tuple[int, Document | BadRecord]]:
  """The records of a unit, in order, each with its line or number (from 1).

  Args:
    file: The unit.
    wanted: The numbers of the records that are asked for; others may be left
      out, and are where parsing them is most of the work. None for all.
    whole: Whether documents come with their `record`, where a record is one.

  Raises:
    UserError: the unit cannot be read to its end.
  """
  if file.config.format in DATASETS:
    yield from DATASETS[file.config.format].read_records(file)
    return
  if file.config.format == 'jsonl':
    yield from _json_records(file, wanted, whole)
    return
  with (
    paths.read_error_as_user_error(file.path),
    filesystems.open_file(file.path) as raw,
  ):
    if file.config.format == 'parquet':
      yield from arrow_records.parquet_records(file, raw, wanted, whole)
    elif file.config.format == 'hf_dataset':
      yield from arrow_records.saved_records(file, raw, wanted, whole)
    else:
      yield _text_record(file, raw)


def _json_records(
  file: InputFile, wanted: Container[int] | None, whole: bool
) -> Iterator[tuple[int, Document | BadRecord]]:
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


def read_lines(path: str) -> Iterator[tuple[int, bytes]]:
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
  """The columns of a file of Parquet, or of a saved dataset.

  Raises:
    UserError: the file cannot be read.
  """
  with (
    paths.read_error_as_user_error(file.path),
    filesystems.open_file(file.path) as raw,
  ):
    return arrow_records.schema(file, raw)


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
  found = []
  for source, path in first.items():
    with (
      paths.read_error_as_user_error(path),
      filesystems.open_file(path) as raw,
    ):
      if not parquet.has_checksums(raw):
        found.append(source)
  return sorted(found)


def _text_record(file: InputFile, raw: Any) -> tuple[int, Document | BadRecord]:
  try:
    with compressed.open_stored(file.path, raw) as content:
      data = content.read()
    text = records.checked_text(compressed.text_of(data))
    return 1, Document(f'{file.source}/{file.name}', file.source, text)
  except records.Bad as bad:
    return 1, BadRecord(bad.args[0], file.path, bad.args[1])


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
