"""ArrayRecord and TFDS: records of tf.train.Example with id, source and text.

A tf.train.Example is a map from names to lists of bytes or integers. It is
encoded here, so TensorFlow is not needed. MaxText's Grain pipeline (its
ParseFeatures) reads `text` from ArrayRecord files. Their groups have one record,
which the random access of Grain needs.
"""

# pyright does not see into array_record, a compiled module.
# pyright: reportAttributeAccessIssue=false

import os
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from infoprune_jax.config.validation import UserError
from infoprune_jax.corpus.records import Document
from infoprune_jax.export import tfds_writer
from infoprune_jax.export.documents import REPEATS, DocumentMarker, ShardTask
from infoprune_jax.runtime import artifacts, files
from infoprune_jax.runtime.files import FileFacts
from infoprune_jax.runtime.manifests import Marker
from infoprune_jax.runtime.workdir import DATA, shard_name


def encode_example(**features: str | int) -> bytes:
  r"""A serialized tf.train.Example; a feature is one text, or one int >= 0.

  >>> encode_example(a='b')
  b'\n\x0c\n\n\n\x01a\x12\x05\n\x03\n\x01b'
  """
  entries = [
    # An entry of the map: the name, and a Feature.
    _field(1, name.encode()) + _field(2, _feature(value))
    for name, value in features.items()
  ]
  return _field(1, b''.join(_field(1, entry) for entry in entries))


def _feature(value: str | int) -> bytes:
  """A BytesList or an Int64List, of one value."""
  if isinstance(value, int):
    return _field(3, _field(1, _varint(value)))
  return _field(1, _field(1, value.encode()))


def _field(number: int, data: bytes) -> bytes:
  """A field of a protocol buffer that holds bytes or a message."""
  return bytes([number << 3 | 2]) + _varint(len(data)) + data


def _varint(value: int) -> bytes:
  data = bytearray()
  while value > 127:
    data.append(value & 127 | 128)
    value >>= 7
  return bytes(data) + bytes([value])


def write_array_record(task: ShardTask) -> Marker:
  """Writes a shard as ArrayRecord."""
  return _write(task, '.array_record', _array_record)


def write_tfds(task: ShardTask) -> Marker:
  """Writes a shard of a TFDS dataset. Needs TensorFlow."""
  return _write(task, tfds_writer.EXTENSION, tfds_writer.write_records)


def check_array_record() -> None:
  """Raises `UserError` if ArrayRecord cannot be written."""
  try:
    from array_record.python import array_record_module as array_record
  except ImportError as error:
    raise UserError(
      f"export.formats='array_record' needs a package that cannot be imported "
      f'({error}): pip install array_record.'
    ) from None
  del array_record


def finish_tfds(
  artifact: artifacts.Artifact,
  name: str,
  markers: list[DocumentMarker],
  with_repeats: bool,
) -> dict[str, FileFacts]:
  """Writes the files by which TFDS opens a folder; returns their checksums."""
  counts = [marker['num_documents'] for marker in markers]
  sizes = [
    file['bytes'] for marker in markers for file in marker['files'].values()
  ]
  about = tfds_writer.metadata_files(name, counts, sum(sizes), with_repeats)
  # TFDS looks for these files beside the shards.
  named = {f'{DATA}/{file}': text for file, text in about.items()}
  return {
    name: files.write_text(
      os.path.join(artifact.path, name), text, artifact.write_file
    )
    for name, text in named.items()
  }


def _array_record(path: str, records: Iterable[bytes]) -> None:
  from array_record.python import array_record_module as array_record

  writer = array_record.ArrayRecordWriter(path, 'group_size:1')
  for record in records:
    writer.write(record)
  writer.close()


def _records(
  documents: Iterable[tuple[Document, int | None]],
) -> Iterator[bytes]:
  for document, repeats in documents:
    yield encode_example(
      id=document.example_id,
      source=document.source,
      text=document.text,
      **({} if repeats is None else {REPEATS: repeats}),
    )


def _write(
  task: ShardTask,
  extension: str,
  write_records: Callable[[str, Iterable[bytes]], None],
) -> Marker:
  """Writes a shard by a library that writes to a path of its own."""

  def write(file: Any) -> None:
    name = shard_name(task.shard, task.num_shards)
    name = task.artifact.temporary(name)
    # Beside the shard, because that disk has room for it.
    with files.scratch_folder(os.path.join(task.artifact.path, name)) as folder:
      path = os.path.join(folder, 'records')
      write_records(path, _records(task.documents_with_repeats()))
      files.copy_into(path, file)

  return task.finish({extension: write})
