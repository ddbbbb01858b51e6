"""The records that an arm keeps, with all their fields.

A line of JSON goes into JSONL as it is, to the byte, and a record of Arrow into
Parquet with its own types. Sources without records (text, TFDS, SeqIO) give id,
source and text.
"""

import dataclasses
import itertools
import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from infoprune_jax.config.validation import UserError
from infoprune_jax.corpus import parquet, sources
from infoprune_jax.corpus.corpus_index import CorpusIndex
from infoprune_jax.corpus.records import Document
from infoprune_jax.export import schemas
from infoprune_jax.export.corpus import source_names
from infoprune_jax.runtime.artifacts import Artifact
from infoprune_jax.runtime.manifests import Marker
from infoprune_jax.runtime.workdir import data_file

# The most of a row group, which is held at once.
_GROUP_ROWS, _GROUP_BYTES = 1 << 14, 1 << 26


class DocumentMarker(Marker):
  """A shard of an export that is done."""

  num_documents: int


@dataclasses.dataclass(frozen=True)
class ShardTask:
  """What a worker needs to write one part of what an arm keeps."""

  artifact: Artifact
  shard: int
  num_shards: int
  index: CorpusIndex  # of the documents of this part that are kept
  schemas: Mapping[str, pa.Schema]  # of each source; for Parquet

  def documents(self, whole: bool = False) -> Iterator[Document]:
    """The documents, in order, with their records or without."""
    return self.index.documents(np.ones(len(self.index.line), bool), whole)

  def finish(self, files: Mapping[str, Any]) -> Marker:
    """Writes files, by extension, and the part's marker."""
    return self.artifact.finish_shard(
      self.shard,
      self.num_shards,
      {
        data_file(self.shard, self.num_shards, extension): write
        for extension, write in files.items()
      },
      num_documents=len(self.index.line),
    )


def check_json(index: CorpusIndex) -> None:
  """Raises `UserError` for a column that JSON cannot hold."""
  for file in index.files:
    if file.config.format in sources.ARROW_FORMATS:
      column = schemas.not_json(sources.read_schema(file))
      if column:
        raise UserError(
          f'{file.path} has a column that JSON has no value for: {column}. '
          "Take 'parquet' in export.formats instead of 'jsonl'."
        )


def write_jsonl(task: ShardTask) -> Marker:
  """Writes a shard as .jsonl.zst, a line a document."""

  def write(file: Any) -> None:
    with pa.CompressedOutputStream(file, 'zstd') as stream:
      for document in task.documents(whole=True):
        stream.write(_line(document) + b'\n')

  return task.finish({'.jsonl.zst': write})


def _line(document: Document) -> bytes:
  """The record of a document, as JSON."""
  if isinstance(document.record, bytes):
    return document.record
  try:
    record = _plain(document)
    return json.dumps(record, ensure_ascii=False, allow_nan=False).encode()
  except ValueError as error:  # Not finite, or no UTF-8.
    raise UserError(
      f'The record of {document.example_id!r} cannot be written as JSON ({error}). '
      "Take 'parquet' in export.formats instead of 'jsonl'."
    ) from None


def _plain(document: Document) -> dict[str, Any]:
  """The record of a document, in Python's types."""
  if document.record is None:
    names = {'id': document.example_id, 'source': document.source}
    return {**names, 'text': document.text}
  if isinstance(document.record, bytes):
    return json.loads(document.record)
  return document.record.to_pylist()[0]


def record_types(task: ShardTask) -> dict[str, pa.DataType]:
  """The type of the records of each source of JSONL in a shard.

  Raises:
    UserError: no type holds the values of a field.
  """
  types: dict[str, pa.DataType] = {}
  for source, files in _by_source(task.index).items():
    if files.files[0].config.format != 'jsonl':
      continue
    every = np.ones(len(files.line), bool)
    lines = (json.loads(d.record) for d in files.documents(every, whole=True))
    try:
      types[source] = schemas.of_records(lines)
    except schemas.Unfit as unfit:
      raise _refusal(source, unfit) from None
  return types


def schemas_of(
  index: CorpusIndex, types: Iterable[Mapping[str, pa.DataType]]
) -> dict[str, pa.Schema]:
  """One schema a source, for all shards.

  Args:
    index: Of all that is kept.
    types: The result of `record_types` for each shard.

  Raises:
    UserError: a source cannot be a table.
  """
  kinds: dict[str, pa.DataType] = {}
  for source, kind in itertools.chain.from_iterable(t.items() for t in types):
    try:
      kinds[source] = schemas.merged(kinds.get(source, pa.null()), kind, '')
    except schemas.Unfit as unfit:
      raise _refusal(source, unfit) from None
  result = {}
  for source, files in _by_source(index).items():
    if source in kinds:
      result[source] = pa.schema(list(kinds[source]))
    elif files.files[0].config.format in sources.ARROW_FORMATS:
      result[source] = _unified(source, files.files)
    else:
      result[source] = schemas.DOCUMENT
    empty = schemas.empty_object(pa.struct(list(result[source])))
    if empty:
      why = 'is an empty object in every record, which Parquet cannot hold'
      raise _refusal(source, schemas.Unfit(empty, why))
  return result


def _unified(source: str, files: Iterable[sources.InputFile]) -> pa.Schema:
  """The schema that the files of a source share."""
  try:
    return pa.unify_schemas([sources.read_schema(file) for file in files])
  except pa.ArrowException as error:
    raise UserError(
      f'The files of the source {source!r} have columns of different types '
      f"({error}): take 'jsonl' in export.formats instead of 'parquet', or give "
      'each kind of file a source of its own.'
    ) from None


def _refusal(source: str, unfit: schemas.Unfit) -> UserError:
  field, why = unfit.args
  return UserError(
    f'The field {field!r} of the source {source!r} {why}: it is no column of a '
    "table. Take 'jsonl' in export.formats instead of 'parquet'."
  )


def _by_source(index: CorpusIndex) -> dict[str, CorpusIndex]:
  """The documents of each source, in order."""
  of_file = np.array([file.source for file in index.files], object)
  return {
    source: index.only(np.flatnonzero(of_file[index.file] == source))
    for source in dict.fromkeys(of_file.tolist())
  }


def write_parquet(task: ShardTask) -> Marker:
  """Writes a shard as Parquet, a file for each source that it has records of."""
  names = source_names(task.index)

  def write(files: CorpusIndex, schema: pa.Schema, file: Any) -> None:
    every = np.ones(len(files.line), bool)
    documents = files.documents(every, whole=True)
    with parquet.writer(file, schema, compression='zstd') as writer:
      for size in _group_sizes(files.num_bytes):
        group = list(itertools.islice(documents, size))
        writer.write_table(_table(group, schema))

  return task.finish(
    {
      f'.{names[source]}.parquet': (
        lambda file, files=files, source=source: write(
          files, task.schemas[source], file
        )
      )
      for source, files in _by_source(task.index).items()
    }
  )


def _group_sizes(num_bytes: np.ndarray) -> list[int]:
  """The documents of each row group, of texts of so many bytes."""
  by_rows = np.arange(len(num_bytes)) // _GROUP_ROWS
  by_bytes = np.cumsum(num_bytes) // _GROUP_BYTES
  cut = np.diff(by_rows, prepend=-1) | np.diff(by_bytes, prepend=-1)
  return np.diff(np.flatnonzero(cut), append=len(num_bytes)).tolist()


def _table(documents: list[Document], schema: pa.Schema) -> pa.Table:
  """Records of one source."""
  try:
    if isinstance(documents[0].record, pa.RecordBatch):
      batches = [document.record for document in documents]
      # Files of one source may lack columns that others have.
      tables = [
        pa.Table.from_batches(alike)
        for _, alike in itertools.groupby(batches, lambda batch: batch.schema)
      ]
      table = pa.concat_tables(
        [schema.empty_table(), *tables], promote_options='default'
      )
      return table.cast(schema).unify_dictionaries().combine_chunks()
    return pa.Table.from_pylist([_plain(d) for d in documents], schema)
  except pa.ArrowException as error:
    raise UserError(
      f'Records from {documents[0].example_id!r} on do not fit one table ({error}). '
      "Take 'jsonl' in export.formats instead of 'parquet'."
    ) from None
