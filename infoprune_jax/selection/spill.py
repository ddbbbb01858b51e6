"""Tables that do not fit in memory, in partitions in a scratch folder."""

import posixpath
import threading
from collections.abc import Iterable
from typing import Any

import numpy as np
import pyarrow as pa

from infoprune_jax.runtime import files, filesystems


class Spill:
  """A scratch folder, and the most bytes that it has held."""

  def __init__(self, folder: str):
    self.folder, self.peak = folder, 0
    self._bytes = 0
    self.lock = threading.Lock()

  def add(self, num_bytes: int) -> None:
    """Counts bytes that were written, or (negative) deleted."""
    self._bytes += num_bytes
    self.peak = max(self.peak, self._bytes)


class Partitions:
  """Tables in files of a scratch folder, to which batches are added."""

  def __init__(self, spill: Spill, name: str, count: int):
    self.count = count
    self._spill, self._name = spill, name
    self._files: dict[int, Any] = {}

  def _path(self, number: int) -> str:
    return posixpath.join(self._spill.folder, f'{self._name}-{number}')

  def add(self, number: int, batch: pa.RecordBatch) -> None:
    """Adds records to one partition."""
    with self._spill.lock:
      if number not in self._files:
        self._files[number] = pa.ipc.new_stream(
          self._path(number), batch.schema
        )
      self._files[number].write_batch(batch)
      self._spill.add(batch.nbytes)

  def cut(self, batch: pa.RecordBatch, words: np.ndarray) -> None:
    """Adds each record to the partition of the first word of its key."""
    number = (words[0] >> np.uint64(32)) * np.uint64(self.count)
    number = (number >> np.uint64(32)).astype(np.uint8)
    order = np.argsort(number, kind='stable')
    ends = np.cumsum(np.bincount(number, minlength=self.count))
    batch, start = batch.take(pa.array(order)), 0
    for partition, end in enumerate(ends.tolist()):
      if start < end:
        self.add(partition, batch.slice(start, end - start))
      start = end

  def close(self) -> None:
    """Ends writing."""
    for file in self._files.values():
      file.close()

  def pop(self, number: int) -> pa.Table | None:
    """Reads a partition and deletes its file; None if it is empty."""
    if number not in self._files:
      return None
    path = self._path(number)
    with filesystems.open_file(path) as raw, pa.ipc.open_stream(raw) as file:
      table = file.read_all()
    files.remove(path)
    with self._spill.lock:
      self._spill.add(-table.nbytes)
    return table


def plain(column: pa.ChunkedArray) -> pa.Array:
  """A column of a batch as one array without a dictionary."""
  if pa.types.is_dictionary(column.type):
    column = column.cast(column.type.value_type)
  return (
    pa.concat_arrays(column.chunks)
    if column.num_chunks
    else (pa.array([], column.type))
  )


def unnamed(types: list[pa.DataType]) -> pa.Schema:
  """Columns that are known by their order."""
  return pa.schema([(str(number), kind) for number, kind in enumerate(types)])


def nothing(types: list[pa.DataType]) -> pa.Table:
  """A table of such columns without a record."""
  arrays = [pa.array([], kind) for kind in types]
  return pa.Table.from_arrays(arrays, schema=unnamed(types))


def batch_of(columns: Iterable[pa.Array]) -> pa.RecordBatch:
  """A batch of columns that are known by their order."""
  columns = list(columns)
  return pa.RecordBatch.from_arrays(
    columns, schema=unnamed([column.type for column in columns])
  )
