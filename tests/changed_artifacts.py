"""Artifacts made wrong on purpose, with checksums as if they were meant."""

import io
import os
import pathlib
from collections.abc import Callable

import pyarrow as pa
import pyarrow.parquet as pq

from infoprune_jax.runtime import artifacts, files, manifests
from infoprune_jax.verify import workdir as verify

PART = 'data/part-00001-of-00003.parquet'  # of every table of the small corpus


def reseal(folder: pathlib.Path, name: str, data: bytes, **facts) -> None:
  """Writes a file, and all that vouches for it, as if it were meant."""
  written = files.write_file(str(folder / name), lambda file: file.write(data))
  marker = folder / f'{pathlib.Path(name).stem}{manifests.DONE}'
  if marker.exists():
    record = files.read_record(str(marker), '')
    record['files'][name] = written
    files.write_record(str(marker), record)
  remake_manifest(folder, {name: written}, **facts)


def remake_manifest(folder: pathlib.Path, written: dict, **facts) -> None:
  manifest = manifests.read_manifest(str(folder), 'x')
  sections = {n: manifest.pop(n) for n in ('kind', 'job', 'options', 'inputs')}
  for name in ('format_version', 'fingerprint'):
    del manifest[name]
  sections |= {n: facts.pop(n) for n in list(facts) if n in sections}
  artifacts.Artifact(path=str(folder), **sections).finish(
    {**manifest.pop('files'), **written}, **{**manifest, **facts}
  )


def rewrite(folder: pathlib.Path, change: Callable[[pa.Table], pa.Table]):
  """Writes another table in place of a shard, with the right checksums."""
  file = io.BytesIO()
  pq.write_table(change(pq.read_table(folder / PART)), file)
  reseal(folder, PART, file.getvalue())


def with_value(name: str, row: int, value) -> Callable[[pa.Table], pa.Table]:
  """Puts one value into a column."""

  def change(rows: pa.Table) -> pa.Table:
    index = rows.schema.get_field_index(name)
    column = rows[name]
    if pa.types.is_dictionary(column.type):
      column = column.cast(column.type.value_type)
    values = column.to_pylist()
    values[row] = value
    changed = pa.array(values, column.type).cast(rows.schema.types[index])
    return rows.set_column(index, name, changed)

  return change


def wrong(workdir: pathlib.Path) -> dict[str, str]:
  """What is wrong, by artifact."""
  return {
    os.path.relpath(found.path, workdir): '\n'.join(problems)
    for found, problems in verify.check(str(workdir))
    if problems
  }
