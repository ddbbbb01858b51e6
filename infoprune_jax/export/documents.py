"""The records that an arm keeps, with all their fields.

Lines of JSON are copied to JSONL byte for byte. Records of Arrow keep their
types in Parquet; for JSONL see `json_values`. For sources without records
(text, TFDS, SeqIO) the fields are id, source and text. Where an arm repeats
examples, each is there once, and a field more says how often an epoch uses it.
"""

import dataclasses
import functools
import itertools
import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from infoprune_jax.config.validation import UserError
from infoprune_jax.corpus import parquet, records, sources
from infoprune_jax.corpus.corpus_index import CorpusIndex
from infoprune_jax.corpus.records import Document, InputFile
from infoprune_jax.export import json_values, schemas
from infoprune_jax.runtime.artifacts import Artifact
from infoprune_jax.runtime.manifests import Marker
from infoprune_jax.runtime.workdir import data_file
from infoprune_jax.tokens.original_documents import source_names

REPEATS = 'repeats'  # the field that records of arms with repeats have besides
# The largest row group, which is in memory as a whole.
_GROUP_ROWS, _GROUP_BYTES = 1 << 14, 1 << 26


class DocumentMarker(Marker):
  """A finished shard of an export."""

  num_documents: int


@dataclasses.dataclass(frozen=True)
class ShardTask:
  """What a worker needs to write one shard of what an arm keeps."""

  artifact: Artifact
  shard: int
  num_shards: int
  index: CorpusIndex  # of the kept documents of this shard
  schemas: Mapping[str, pa.Schema]  # of each source; for Parquet
  # How often an epoch uses each document, [documents] uint8; None if once.
  repeats: np.ndarray | None

  def documents(self, whole: bool = False) -> Iterator[Document]:
    """The documents, in order, with or without their records."""
    return self.index.documents(np.ones(len(self.index.line), bool), whole)

  def documents_with_repeats(
    self, whole: bool = False
  ) -> Iterator[tuple[Document, int | None]]:
    """The documents, each with its `repeats`."""
    repeats = itertools.repeat(None)
    if self.repeats is not None:
      repeats = self.repeats.tolist()
    return zip(self.documents(whole), repeats, strict=False)

  def finish(self, files: Mapping[str, Any]) -> Marker:
    """Writes files, by extension, and the marker of the shard."""
    return self.artifact.finish_shard(
      self.shard,
      self.num_shards,
      {
        data_file(self.shard, self.num_shards, extension): write
        for extension, write in files.items()
      },
      num_documents=len(self.index.line),
    )


def refusals(files: Iterable[InputFile], format: str) -> list[str]:
  """A message for each source with columns that a format cannot hold.

  Args:
    files: Files of the corpus. Those without types of columns are left out.
    format: 'jsonl' or 'parquet'.

  Raises:
    UserError: a file cannot be read.
  """
  columns: dict[str, dict[str, None]] = {}
  for file in files:
    if file.config.format not in sources.ARROW_FORMATS:
      continue
    schema = sources.read_schema(file)
    if format == 'jsonl':
      texts = records.wanted_columns(file.config)
      _, refused = json_values.converters(schema, texts)
    else:
      refused = schemas.not_parquet(schema)
    columns.setdefault(file.source, {}).update(dict.fromkeys(refused))
  other = {'jsonl': 'parquet', 'parquet': 'jsonl'}[format]
  return [
    f'The source {source!r} has columns that {format!r} cannot hold: '
    f'{", ".join(refused)}. Use {other!r} in export.formats, or leave these '
    'columns out of its files.'
    for source, refused in columns.items()
    if refused
  ]


def check_columns(index: CorpusIndex, format: str) -> None:
  """Raises `UserError` for columns that 'jsonl' or 'parquet' cannot hold."""
  if problems := refusals(index.files, format):
    raise UserError('\n'.join(problems))


def check_repeats(index: CorpusIndex) -> None:
  """Raises `UserError` if columns of a source leave no place for `REPEATS`."""
  for file in index.files:
    if file.config.format in sources.ARROW_FORMATS:
      _check_free(file.source, sources.read_schema(file).names)


def _check_free(source: str, names: Iterable[str]) -> None:
  if REPEATS in names:
    raise UserError(
      f'The records of the source {source!r} have a field {REPEATS!r} already, '
      'in which the export would say how often an epoch uses an example: '
      "rename the field in its files, or use 'keep_set' in export.formats."
    )


def write_jsonl(task: ShardTask) -> Marker:
  """Writes a shard as .jsonl.zst, one line per document."""
  configs = [file.config for file in task.index.files]
  # Of all sources at once: `check_columns` has refused other columns of bytes.
  texts = frozenset(
    itertools.chain.from_iterable(map(records.wanted_columns, configs))
  )

  def write(file: Any) -> None:
    with pa.CompressedOutputStream(file, 'zstd') as stream:
      for document, repeats in task.documents_with_repeats(whole=True):
        line = _line(document, texts)
        if repeats is not None:
          _check_free(document.source, json.loads(line))
          # The other bytes stay as they are.
          line = line.rstrip()[:-1] + f', "{REPEATS}": {repeats}}}'.encode()
        stream.write(line + b'\n')

  return task.finish({'.jsonl.zst': write})


_converters = functools.lru_cache(maxsize=64)(json_values.converters)


def _line(document: Document, texts: frozenset[str]) -> bytes:
  """The record of a document, as JSON; `texts` is as in `converters`."""
  if isinstance(document.record, bytes):
    return document.record
  try:
    if isinstance(document.record, pa.RecordBatch):
      columns, _ = _converters(document.record.schema, texts)
      record = {
        name: json_values.converted(convert, document.record[name][0])
        for name, convert in columns.items()
      }
    else:
      record = _plain(document)
    return json.dumps(record, ensure_ascii=False, allow_nan=False).encode()
  except (ValueError, OverflowError) as error:  # Such as nan, or not UTF-8.
    raise UserError(
      f'The record of {document.example_id!r} cannot be written as JSON '
      f"({error}). Use 'parquet' in export.formats instead of 'jsonl'."
    ) from None


def _plain(document: Document) -> dict[str, Any]:
  """The record of a document that is no record of Arrow."""
  if document.record is None:
    names = {'id': document.example_id, 'source': document.source}
    return {**names, 'text': document.text}
  return json.loads(document.record)


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
  index: CorpusIndex,
  types: Iterable[Mapping[str, pa.DataType]],
  with_repeats: bool,
) -> dict[str, pa.Schema]:
  """One schema per source, for all shards; without `REPEATS`.

  Args:
    index: The kept documents.
    types: The result of `record_types` for each shard.
    with_repeats: Whether the files are to have `REPEATS`.

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
    if with_repeats:
      _check_free(source, result[source].names)
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
      f"({error}): use 'jsonl' in export.formats instead of 'parquet', or give "
      'each kind of file a source of its own.'
    ) from None


def _refusal(source: str, unfit: schemas.Unfit) -> UserError:
  field, why = unfit.args
  return UserError(
    f'The field {field!r} of the source {source!r} {why}: it cannot be a column '
    "of a table. Use 'jsonl' in export.formats instead of 'parquet'."
  )


def _positions(index: CorpusIndex) -> dict[str, np.ndarray]:
  """The positions of the documents of each source, ascending."""
  of_file = np.array([file.source for file in index.files], object)
  return {
    source: np.flatnonzero(of_file[index.file] == source)
    for source in dict.fromkeys(of_file.tolist())
  }


def _by_source(index: CorpusIndex) -> dict[str, CorpusIndex]:
  """The documents of each source, in order."""
  return {
    source: index.only(positions)
    for source, positions in _positions(index).items()
  }


def write_parquet(task: ShardTask) -> Marker:
  """Writes a shard as Parquet, one file for each source with records in it."""
  names = source_names(task.index)

  def write(source: str, positions: np.ndarray, file: Any) -> None:
    files, schema = task.index.only(positions), task.schemas[source]
    documents = files.documents(np.ones(len(positions), bool), whole=True)
    whole = schema
    if task.repeats is not None:
      whole = schema.append(pa.field(REPEATS, pa.int32()))
    with parquet.writer(file, whole, compression='zstd') as writer:
      for size in _group_sizes(files.num_bytes):
        group = list(itertools.islice(documents, size))
        table = _table(group, schema)
        if task.repeats is not None:
          here, positions = positions[:size], positions[size:]
          repeats = task.repeats[here].astype(np.int32)
          table = table.append_column(whole.field(REPEATS), pa.array(repeats))
        writer.write_table(table)

  return task.finish(
    {
      f'.{names[source]}.parquet': functools.partial(write, source, positions)
      for source, positions in _positions(task.index).items()
    }
  )


def _group_sizes(num_bytes: np.ndarray) -> list[int]:
  """The number of documents of each row group, by the bytes of their texts."""
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
      f'Records from {documents[0].example_id!r} on do not fit one table '
      f"({error}). Use 'jsonl' in export.formats instead of 'parquet'."
    ) from None
