"""Cuts long files of JSONL into parts, so that several processes read one.

A part holds whole lines. A compressed file has no parts: it can only be decoded
from its start.
"""

import dataclasses
import itertools
from collections.abc import Iterator, Sequence

from infoprune_jax.corpus import compressed, paths
from infoprune_jax.corpus.records import InputFile, Part
from infoprune_jax.runtime import filesystems, workers
from infoprune_jax.runtime.progress import logger, quantity

PART_BYTES = 256 << 20
_CHUNK = 4 << 20
# A compressed file is named in a warning if so many shards read it again.
_SHARDS_OF_A_LONG_FILE = 4

_Task = tuple[str, int, int]  # a path, and the bytes from start to end


def cut(
  files: Sequence[InputFile], num_shards: int, num_workers: int
) -> list[InputFile]:
  """The files, with parts in place of long files of JSONL, in the same order.

  Args:
    files: All files of a corpus.
    num_shards: The shards that they become. Warns of compressed files that many
      shards would read from the start.
    num_workers: As for `workers.run_all`.

  Raises:
    UserError: a file cannot be read.
  """
  _warn_of_compressed(files, num_shards)
  tasks = [task for file in files for task in _ranges(file)]
  counts = dict(
    zip(tasks, workers.run_all(_count, tasks, num_workers), strict=True)
  )
  cut_files: list[InputFile] = []
  for file in files:
    parts = list(_parts(file, counts))
    if parts:
      logger.info(
        'tokenize: reads %s (%s) in %d parts',
        *(file.path, quantity(file.size, 'B'), len(parts)),
      )
    cut_files += [
      dataclasses.replace(file, part=part, size=part.end - part.start)
      for part in parts
    ] or [file]
  return cut_files


def _ranges(file: InputFile) -> list[_Task]:
  """Equal ranges of a file; none if it has no parts."""
  starts = range(0, file.size, PART_BYTES) if _can_be_cut(file) else ()
  return [
    (file.path, start, min(start + PART_BYTES, file.size)) for start in starts
  ]


def _can_be_cut(file: InputFile) -> bool:
  """Whether a file is long, and can be read from the middle."""
  inside_archive = '::' in file.path or file.path.startswith('zip:')
  return (
    file.config.format == 'jsonl'
    and file.size >= 2 * PART_BYTES
    and compressed.codec_of(file.path) is None
    and not inside_archive
  )


def _warn_of_compressed(files: Sequence[InputFile], num_shards: int) -> None:
  total = sum(file.size for file in files)
  for file in files:
    codec = compressed.codec_of(file.path)
    shards = file.size * num_shards // max(total, 1)
    if codec and file.size >= PART_BYTES and shards >= _SHARDS_OF_A_LONG_FILE:
      logger.warning(
        'tokenize: %s (%s) is compressed by %s, so each of its %d shards decodes '
        'it from the start: cut it into smaller files, or decompress it',
        *(file.path, quantity(file.size, 'B'), codec, shards),
      )


def _count(task: _Task) -> tuple[int, int]:
  """The line ends in a range of a file, and where its first line begins.

  A line that begins before the range belongs to an earlier one. The first line
  may begin after the range; at the end of the file if there is none.
  """
  path, start, end = task
  line_ends, first = 0, None if start else 0
  with (
    paths.read_error_as_user_error(path),
    filesystems.open_file(path) as raw,
  ):
    position = max(start - 1, 0)
    raw.seek(position)
    while position < end or first is None:
      chunk = raw.read(_CHUNK)
      if not chunk:
        break
      if first is None and (found := chunk.find(b'\n')) >= 0:
        first = position + found + 1
      inside = slice(max(start - position, 0), max(end - position, 0))
      line_ends += chunk[inside].count(b'\n')
      position += len(chunk)
  return line_ends, position if first is None else first


def _parts(
  file: InputFile, counts: dict[_Task, tuple[int, int]]
) -> Iterator[Part]:
  """The parts of a file that hold a line."""
  ranges = _ranges(file)
  firsts = [*(counts[task][1] for task in ranges), file.size]
  before = 0
  for task, (first, last) in zip(
    ranges, itertools.pairwise(firsts), strict=True
  ):
    if first < last:
      # If the first line begins late, the end of the one before is in the range.
      yield Part(first, last, before + (first > task[1]))
    before += counts[task][0]
