"""Parquet with checksums of its pages: always written, verified if present.

By default pyarrow does neither, and reads a flipped bit as other text.
"""

from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

_NEXT_INT32 = b'\x15'  # the header of a field, in Thrift's compact protocol


def write_table(table: pa.Table, file: Any, **options: Any) -> None:
  """Writes a table; options are those of `pyarrow.parquet.write_table`."""
  pq.write_table(table, file, write_page_checksum=True, **options)


def writer(file: Any, schema: pa.Schema, **options: Any) -> pq.ParquetWriter:
  """A writer of several tables to one file; options are those of pyarrow."""
  return pq.ParquetWriter(file, schema, write_page_checksum=True, **options)


def read_table(path: str, columns: Sequence[str] | None = None) -> pa.Table:
  """The table in a local file.

  Args:
    path: The file.
    columns: Names; all of them if None.
  """
  return pq.read_table(
    path,
    columns=None if columns is None else list(columns),
    page_checksum_verification=True,
  )


def open_file(file: Any, **options: Any) -> pq.ParquetFile:
  """Opens a path or file to read in batches; options are those of pyarrow."""
  return pq.ParquetFile(file, page_checksum_verification=True, **options)


def has_checksums(file: Any) -> bool:
  """Whether the first page of an open file has one; True if it has no page."""
  metadata = pq.read_metadata(file)
  if not metadata.num_rows or not metadata.num_columns:
    return True
  column = metadata.row_group(0).column(0)
  starts = (column.dictionary_page_offset, column.data_page_offset)
  file.seek(min(start for start in starts if start is not None))
  # A page begins with a struct: type, sizes before and after compression, and
  # then the checksum or what follows it. Each is a header, which says how far
  # the number of the field is from the one before, and of which type it is.
  for _ in range(3):
    file.read(1)
    while file.read(1) >= b'\x80':  # The bytes of one integer.
      pass
  return file.read(1) == _NEXT_INT32
