"""Scores and decisions as attributes of the Dolma toolkit.

The layout is that of docs/data-format.md and docs/mixer.md of allenai/dolma:
`attributes/NAME/` is beside `documents/` of a dataset and has the same files.
For each line of a document file there is a line with the `id` of the document
and spans [start, end, value] of its text, in characters. `dolma mix` refuses
another number or order of lines.
"""

import contextlib
import dataclasses
import json
import lzma
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from infoprune_jax.config.classifier import PREFIX
from infoprune_jax.config.scoring import PARTIAL_NLL, REFERENCE_COLUMN
from infoprune_jax.config.validation import UserError
from infoprune_jax.corpus import (
  compressed,
  corpus_index,
  paths,
  records,
  sources,
)
from infoprune_jax.corpus.corpus_index import CorpusIndex
from infoprune_jax.export import decisions
from infoprune_jax.runtime.artifacts import Artifact
from infoprune_jax.runtime.hashing import utf8_hash
from infoprune_jax.runtime.manifests import Marker
from infoprune_jax.runtime.workdir import DATA
from infoprune_jax.tokens.original_documents import source_names

NAME = 'infoprune'
_DOCUMENTS = '/documents/'


@dataclasses.dataclass(frozen=True)
class FileTask:
  """What a worker needs to write the attributes of one file."""

  artifact: Artifact
  number: int
  num_files: int
  name: str  # of the file to write
  file: sources.InputFile
  index: CorpusIndex  # of its documents
  first: int  # position of the first document in its shard
  tables: decisions.Tables


def tasks(
  artifact: Artifact, index: CorpusIndex, tables: decisions.Tables
) -> list[FileTask]:
  """A task for each file of the corpus.

  Raises:
    UserError: a source is not JSONL, or two files would get one name.
  """
  names = _names(index)
  starts = np.searchsorted(index.shard, np.arange(index.shard.max() + 1))
  made = []
  for number, file in enumerate(index.files):
    inside = np.flatnonzero(index.file == number)
    first = 0
    if len(inside):
      first = int(inside[0] - starts[index.shard[inside[0]]])
    made.append(
      FileTask(
        artifact,
        number,
        len(names),
        names[number],
        file,
        index.only(inside),
        first,
        tables,
      )
    )
  return made


def _names(index: CorpusIndex) -> list[str]:
  """The name of the attributes of each file, below a folder for each source."""
  folders = source_names(index)
  names: dict[str, str] = {}
  for file in index.files:
    if problem := not_jsonl(file):
      raise UserError(problem)
    path = paths.display(file.path)
    relative = (
      path.rpartition(_DOCUMENTS)[2] if _DOCUMENTS in path else file.name
    )
    name = f'{DATA}/{folders[file.source]}/attributes/{NAME}/{relative}'
    if name in names:
      raise UserError(
        f'{names[name]} and {file.path} would both have their attributes in '
        f'{name}: give each a source of its own.'
      )
    names[name] = file.path
  return list(names)


def not_jsonl(file: sources.InputFile) -> str:
  """Why a source has no attributes; '' if it is JSONL."""
  if file.config.format == 'jsonl':
    return ''
  return (
    f'The source {file.source!r} is of format {file.config.format!r}, but '
    "Dolma's documents are JSONL: leave 'dolma_attributes' out of "
    "export.formats; 'scores' has the same of all sources."
  )


def write_attributes(task: FileTask) -> Marker:
  """Writes the attributes of a file, a line for each of its records."""

  def write(file: Any) -> None:
    with _compressed(task, file) as put:
      for line in _lines(task):
        put(line + b'\n')

  return task.artifact.finish_shard(
    task.number,
    task.num_files,
    {task.name: write},
    num_documents=len(task.index.line),
  )


@contextlib.contextmanager
def _compressed(task: FileTask, file: Any) -> Iterator[Callable[[bytes], Any]]:
  codec = compressed.codec_of(task.file.path)
  if codec is None:
    yield file.write
    return
  if codec == 'xz':  # Arrow does not write it.
    with lzma.LZMAFile(file, 'wb') as stream:
      yield stream.write
    return
  with pa.CompressedOutputStream(file, codec) as stream:
    yield stream.write


def _lines(task: FileTask) -> Iterator[bytes]:
  """The attributes of each record, also of records that are not in the corpus.

  Raises:
    UserError: the file has changed since it was indexed.
  """
  index, config = task.index, task.file.config
  places = {line: place for place, line in enumerate(index.line.tolist())}
  values = list(_values(task))
  for number, line in _stored_lines(task.file.path):
    record = _parsed(line)
    text = _text(record, config.text_column)
    place = places.pop(number, None)
    example_id, attributes = None, {}
    if place is None:
      attributes = {f'{name}_keep': 0.0 for name in task.tables.selections}
      attributes |= {f'{n}_repeats': 0.0 for n in task.tables.repeats_columns}
    else:
      data = text.encode('utf-8', 'surrogatepass')
      if utf8_hash(data) != index.text_hash[place]:
        raise UserError(corpus_index.changed(task.file))
      example_id, attributes = values[place]
    spans = {
      f'{NAME}__{name.replace("-", "_")}': [[0, len(text), value]]
      for name, value in attributes.items()
    }
    record = {
      'id': record.get('id', example_id),
      'attributes': spans,
      'source': record.get('source', task.file.source),
    }
    yield json.dumps(record, allow_nan=False).encode()
  if places:
    raise UserError(corpus_index.changed(task.file))


def _stored_lines(path: str) -> Iterator[tuple[int, bytes]]:
  """The lines of a file; none for an empty file that was left out."""
  with contextlib.suppress(records.Bad):
    yield from sources.read_lines(path)


def _parsed(line: bytes) -> Mapping[str, Any]:
  """The record of a line; an empty one if the line is not a record."""
  try:
    record = json.loads(line)
  except (ValueError, RecursionError):
    return {}
  return record if isinstance(record, dict) else {}


def _text(record: Mapping[str, Any], name: str) -> str:
  try:
    text = records.column(dict(record), name)
  except records.Bad:
    return ''
  return text if isinstance(text, str) else ''


def _values(task: FileTask) -> Iterator[tuple[str, dict[str, float]]]:
  """The id and the attributes of each document of a file, in order."""
  if not len(task.index.line):
    return
  table = pa.concat_tables(
    decisions.shard_table(task.tables, number)
    for number in np.unique(task.index.shard).tolist()
  ).slice(task.first, len(task.index.line))
  sums = [
    name
    for name in table.column_names
    if REFERENCE_COLUMN.match(name) or name == 'unigram_nll_sum'
  ]
  odds = [PREFIX + name for name in task.tables.classifiers]
  columns = {
    name: table[name].to_pylist()
    for name in (
      *('example_id', 'num_tokens', *sums, *odds, *task.tables.keep_columns),
      *task.tables.repeats_columns.values(),
    )
  }
  for place in range(table.num_rows):
    tokens = columns['num_tokens'][place]
    attributes = {}
    for name in sums:
      value = columns[name][place]
      if value is not None and tokens:
        partial = PARTIAL_NLL.match(name)
        summed = min(tokens, int(partial[2])) if partial else tokens
        attributes[name.replace('sum', 'per_token')] = value / summed
    for name in odds:
      if columns[name][place] is not None:
        attributes[name] = columns[name][place]
    for name, column in zip(
      task.tables.selections, task.tables.keep_columns, strict=True
    ):
      attributes[f'{name}_keep'] = float(columns[column][place])
    for name, column in task.tables.repeats_columns.items():
      attributes[f'{name}_repeats'] = float(columns[column][place])
    yield columns['example_id'][place], attributes
