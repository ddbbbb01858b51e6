"""ArrayRecord and TFDS: records of tf.train.Example with id, source and text.

A tf.train.Example is two levels of a map from names to lists of bytes, which
is encoded here, so that no TensorFlow is needed: MaxText's Grain pipeline
reads `text` of ArrayRecord (its ParseFeatures), groups of one record being
what Grain's random access asks for.
"""

# pyright does not see into array_record, a compiled module.
# pyright: reportAttributeAccessIssue=false

import os
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from infoprune_jax.config.validation import UserError
from infoprune_jax.corpus.records import Document
from infoprune_jax.export import tfds_writer
from infoprune_jax.export.documents import DocumentMarker, ShardTask
from infoprune_jax.runtime import artifacts, files
from infoprune_jax.runtime.files import FileFacts
from infoprune_jax.runtime.manifests import Marker
from infoprune_jax.runtime.workdir import DATA, shard_name


def encode_example(**features: str) -> bytes:
  r"""A serialized tf.train.Example, each feature one string of bytes.

  >>> encode_example(a='b')
  b'\n\x0c\n\n\n\x01a\x12\x05\n\x03\n\x01b'
  """
  entries = [
    # Of the map: the name, and a Feature with a BytesList.
    _field(1, name.encode()) + _field(2, _field(1, _field(1, text.encode())))
    for name, text in features.items()
  ]
  return _field(1, b''.join(_field(1, entry) for entry in entries))


def _field(number: int, data: bytes) -> bytes:
  """A field of a protocol buffer that holds bytes or a message."""
  length, size = len(data), bytearray([number << 3 | 2])
  while length > 127:
    size.append(length & 127 | 128)
    length >>= 7
  return bytes(size) + bytes([length]) + data


def write_array_record(task: ShardTask) -> Marker:
  """Writes a shard as ArrayRecord."""
  return _write(task, '.array_record', _array_record)


def write_tfds(task: ShardTask) -> Marker:
  """Writes a shard as a shard of a TFDS dataset. Needs TensorFlow."""
  return _write(task, tfds_writer.EXTENSION, tfds_writer.write_records)


def check_array_record() -> None:
  """Raises `UserError` where ArrayRecord cannot be written."""
  try:
    from array_record.python import array_record_module as array_record
  except ImportError as error:
    raise UserError(
      f"export.formats='array_record' needs a package that cannot be imported "
      f'({error}): pip install array_record.'
    ) from None
  del array_record


def finish_tfds(
  artifact: artifacts.Artifact, name: str, markers: list[DocumentMarker]
) -> dict[str, FileFacts]:
  """Writes what TFDS opens a folder by, and returns the files' checksums."""
  counts = [marker['num_documents'] for marker in markers]
  sizes = [
    file['bytes'] for marker in markers for file in marker['files'].values()
  ]
  about = tfds_writer.metadata_files(name, counts, sum(sizes))
  # TFDS looks for them beside the shards.
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


def _records(documents: Iterable[Document]) -> Iterator[bytes]:
  for document in documents:
    yield encode_example(
      id=document.example_id, source=document.source, text=document.text
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
    # Beside the shard, where there is room for it.
    with files.scratch_folder(os.path.join(task.artifact.path, name)) as folder:
      path = os.path.join(folder, 'records')
      write_records(path, _records(task.documents()))
      files.copy_into(path, file)

  return task.finish({extension: write})
