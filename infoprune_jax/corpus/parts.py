"""Cuts long files into parts, so that several processes read one.

A part holds whole lines of JSONL, or row groups of Parquet. A file of JSONL that
is compressed can only be decoded from its start, or from that of a zstd frame.
"""

import dataclasses
import itertools
from collections.abc import Sequence
from typing import NamedTuple

from infoprune_jax.corpus import compressed, parquet, paths
from infoprune_jax.corpus.records import InputFile, Lines, RowGroups
from infoprune_jax.runtime import filesystems, workers
from infoprune_jax.runtime.progress import logger, quantity

PART_BYTES = 256 << 20
PACKED_PART_BYTES = 16 << 20  # of Parquet and zstd, as stored
_CHUNK = 4 << 20
# A compressed file is named in a warning if so many shards read it again.
_SHARDS_OF_A_LONG_FILE = 4

_Task = tuple[str, int, int]  # a path, and the bytes from start to end


class _Counts(NamedTuple):
  """What is in a range of a file of JSONL, in bytes of content."""

  num_bytes: int
  line_ends: int
  first_end: int  # the byte after the first line end; 0 if there is none
  ends_line: bool  # whether its last byte is a line end


def cut(
  files: Sequence[InputFile], num_shards: int, num_workers: int
) -> list[InputFile]:
  """The files, with parts in place of long ones, in the same order.

  Args:
    files: All files of a corpus.
    num_shards: The shards that they become. Warns of compressed files that many
      shards read from the start.
    num_workers: As for `workers.run_all`.

  Raises:
    UserError: a file cannot be read.
  """
  total = max(sum(file.size for file in files), 1)
  shards = [file.size * num_shards // total for file in files]
  parts: dict[int, list[InputFile]] = {}  # by position in `files`
  numbers = [n for n, f in enumerate(files) if _can_be_cut(f, shards[n])]
  tables = [n for n in numbers if files[n].config.format == 'parquet']
  made = workers.run_all(
    _row_group_parts, [files[n] for n in tables], num_workers
  )
  parts.update(zip(tables, made, strict=True))
  texts = [n for n in numbers if files[n].config.format == 'jsonl']
  ranges = list(
    workers.run_all(_ranges, [files[n] for n in texts], num_workers)
  )
  tasks = list(itertools.chain.from_iterable(ranges))
  counts = dict(
    zip(tasks, workers.run_all(_count, tasks, num_workers), strict=True)
  )
  for n, of_file in zip(texts, ranges, strict=True):
    parts[n] = _line_parts(files[n], of_file, [counts[t] for t in of_file])
  cut_files: list[InputFile] = []
  for n, file in enumerate(files):
    if parts.get(n):
      logger.info(
        'tokenize: reads %s (%s) in %d parts',
        *(file.path, quantity(file.size, 'B'), len(parts[n])),
      )
    else:
      _warn_if_compressed(file, shards[n])
    cut_files += parts.get(n) or [file]
  return cut_files


def is_continued(file: InputFile) -> bool:
  """Whether fingerprints leave out a part, as they name its file before it.

  They name each part of plain JSONL, and always did.
  """
  is_plain = file.config.format == 'jsonl' and not compressed.codec_of(
    file.path
  )
  return bool(file.part and file.part.start and not is_plain)


def _can_be_cut(file: InputFile, num_shards: int) -> bool:
  """Whether a file is long, and may be read from the middle."""
  if '::' in file.path or file.path.startswith('zip:'):
    return False
  codec = compressed.codec_of(file.path)
  if file.config.format == 'jsonl' and codec is None:
    return file.size >= 2 * PART_BYTES
  can_be_cut = file.config.format == 'parquet' or (
    file.config.format == 'jsonl' and codec == 'zstd'
  )
  # To look for frames takes time, which other files would not repay.
  return can_be_cut and file.size >= 2 * PACKED_PART_BYTES and num_shards > 1


def _warn_if_compressed(file: InputFile, num_shards: int) -> None:
  codec = compressed.codec_of(file.path)
  is_long = file.size >= PART_BYTES and num_shards >= _SHARDS_OF_A_LONG_FILE
  if codec and is_long:
    logger.warning(
      'tokenize: %s (%s) is compressed by %s, so each of its %d shards decodes '
      'it from the start: cut it into smaller files, decompress it, or compress '
      'it by pzstd, which makes a file that can be read from the middle',
      *(file.path, quantity(file.size, 'B'), codec, num_shards),
    )


def _row_group_parts(file: InputFile) -> list[InputFile]:
  """Parts of about equally many rows; none if it has one row group."""
  with (
    paths.read_error_as_user_error(file.path),
    filesystems.open_file(file.path) as raw,
    parquet.open_file(raw) as opened,
  ):
    metadata = opened.metadata
    rows = [
      metadata.row_group(n).num_rows for n in range(metadata.num_row_groups)
    ]
  before = [0, *itertools.accumulate(rows)]
  # Sizes are known for whole files alone: rows are taken to be equally long.
  offset = [file.size * count // max(before[-1], 1) for count in before]
  starts = _apart(range(len(rows)), offset, PACKED_PART_BYTES)
  return [
    dataclasses.replace(
      file,
      part=RowGroups(start, end, before[start]),
      size=offset[end] - offset[start],
    )
    for start, end in itertools.pairwise([*starts, len(rows)])
    if len(starts) > 1
  ]


def _ranges(file: InputFile) -> list[_Task]:
  """Ranges of a file of JSONL; none if there would be one."""
  if compressed.codec_of(file.path) is None:
    starts = list(range(0, file.size, PART_BYTES))
  else:
    with (
      paths.read_error_as_user_error(file.path),
      filesystems.open_file(file.path) as raw,
    ):
      # The first range begins before the first frame: others may be skipped.
      frames = [0, *itertools.islice(compressed.frame_starts(raw), 1, None)]
    starts = _apart(frames, frames, PACKED_PART_BYTES)
  return [
    (file.path, start, end)
    for start, end in itertools.pairwise([*starts, file.size])
    if len(starts) > 1
  ]


def _apart(
  starts: Sequence[int], offsets: Sequence[int], num_bytes: int
) -> list[int]:
  """The first start, and those that are so many bytes after the one before.

  Args:
    starts: Where parts may begin.
    offsets: In bytes, of each of them.
    num_bytes: How long a part is, at least.
  """
  chosen, last = [], -num_bytes
  for start, offset in zip(starts, offsets, strict=False):
    if offset - last >= num_bytes:
      chosen.append(start)
      last = offset
  return chosen


def _count(task: _Task) -> _Counts:
  """Reads a range of a file, to its end."""
  path, start, end = task
  num_bytes, line_ends, first_end, last = 0, 0, 0, b''
  with (
    paths.read_error_as_user_error(path),
    filesystems.open_file(path) as raw,
    compressed.open_stored(path, raw, start, end) as content,
  ):
    while chunk := content.read(_CHUNK):
      if not line_ends and b'\n' in chunk:
        first_end = num_bytes + chunk.index(b'\n') + 1
      line_ends += chunk.count(b'\n')
      num_bytes += len(chunk)
      last = chunk[-1:]
  return _Counts(num_bytes, line_ends, first_end, last == b'\n')


def _line_parts(
  file: InputFile, ranges: Sequence[_Task], counts: Sequence[_Counts]
) -> list[InputFile]:
  """Parts of a file: for each range, the lines that begin in it, if any."""
  bases = [0, *itertools.accumulate(count.num_bytes for count in counts)]
  befores = itertools.accumulate((c.line_ends for c in counts), initial=0)
  # The first line of each range. It may begin after the range, or be the end.
  firsts = [bases[-1]]
  for n in reversed(range(len(ranges))):
    if n == 0 or counts[n - 1].ends_line:
      firsts.append(bases[n])
    elif counts[n].first_end:
      firsts.append(bases[n] + counts[n].first_end)
    else:
      firsts.append(firsts[-1])
  parts = []
  limits = itertools.pairwise(reversed(firsts))
  for task, base, before, (first, end) in zip(
    ranges, bases, befores, limits, strict=False
  ):
    if first < end:
      skip = first - base
      parts.append(Lines(task[1], skip, end - base, before + (skip > 0)))
  starts = [*(part.start for part in parts), file.size]
  return [
    dataclasses.replace(file, part=part, size=after - part.start)
    for part, after in zip(parts, starts[1:], strict=True)
  ]
