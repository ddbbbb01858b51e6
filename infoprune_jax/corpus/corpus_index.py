"""A first pass over the corpus, which decides what becomes of each record.

It is cheap compared with tokenizing. It finds bad input before any work starts,
draws a sample, splits by content, and cuts the corpus into shards.
"""

import collections
import contextlib
import dataclasses
import hashlib
from collections.abc import Iterator, Sequence

import numpy as np

from infoprune_jax.config.corpus import CorpusConfig
from infoprune_jax.config.validation import UserError
from infoprune_jax.corpus import (
  draw,
  file_index,
  generations as generations_lib,
  parts,
  sources,
)
from infoprune_jax.corpus.generations import Generation
from infoprune_jax.runtime import manifests, workers
from infoprune_jax.runtime.hashing import text_hash
from infoprune_jax.runtime.progress import Progress, logger, wipe


@dataclasses.dataclass(frozen=True)
class CorpusIndex:
  """The documents that the corpus keeps: equally long arrays, in its order."""

  files: tuple[sources.InputFile, ...]
  file: np.ndarray  # int32, into files
  line: np.ndarray  # int64, from 1
  num_bytes: np.ndarray  # int64
  content_hash: np.ndarray  # int64
  text_hash: np.ndarray  # int64, of the very text
  id_hash: np.ndarray  # int64
  split: np.ndarray  # int8, into SPLITS
  shard: np.ndarray  # int32, ascending
  bad_records: dict[str, int]
  # Of the whole corpus, and the generation of each of `files`.
  generations: tuple[Generation, ...] = ()
  file_generation: np.ndarray = dataclasses.field(
    default_factory=lambda: np.zeros(0, np.int32)
  )

  @property
  def generation(self) -> np.ndarray:
    """That of each document, ascending, [documents] int32."""
    return self.file_generation[self.file]

  def first(self, count: int) -> 'CorpusIndex':
    """The first generations: the corpus as it was before the others."""
    num_files = int(np.searchsorted(self.file_generation, count))
    chosen = np.arange(np.searchsorted(self.file, num_files))
    return dataclasses.replace(
      self._at(chosen),
      files=self.files[:num_files],
      generations=self.generations[:count],
      file_generation=self.file_generation[:num_files],
    )

  def without(self, left_out: np.ndarray, reason: str) -> 'CorpusIndex':
    """All but some documents (a mask), which are counted as bad records."""
    count = int(left_out.sum())
    if not count:
      return self
    bad = collections.Counter(self.bad_records)
    bad[reason] += count
    logger.warning('tokenize: dropped %d records: %s', count, reason)
    kept = self._at(np.flatnonzero(~left_out))
    return dataclasses.replace(kept, bad_records=dict(bad))

  def fingerprint(self) -> str:
    """A digest of the content, order, split and shard of every document."""
    digest = hashlib.sha256()
    for array in (
      self.line,
      self.num_bytes,
      self.content_hash,
      self.id_hash,
      self.split,
      self.shard,
    ):
      digest.update(np.ascontiguousarray(array).tobytes())
    names = [
      f'{file.source}/{file.name}'
      for file in self.files
      if not parts.is_continued(file)
    ]
    return manifests.fingerprint([digest.hexdigest(), names])

  def restricted_to(self, shard: int) -> 'CorpusIndex':
    """The documents of one shard, with the files they are in."""
    return self.only(np.flatnonzero(self.shard == shard))

  def only(self, chosen: np.ndarray) -> 'CorpusIndex':
    """The documents at these positions, with the files they are in."""
    used = np.unique(self.file[chosen])
    return dataclasses.replace(
      self._at(chosen),
      files=tuple(self.files[file] for file in used),
      file=np.searchsorted(used, self.file[chosen]).astype(np.int32),
      generations=(),  # They name all files.
      file_generation=self.file_generation[used],
    )

  def _at(self, chosen: np.ndarray) -> 'CorpusIndex':
    columns = ('file', 'line', 'num_bytes', 'content_hash', 'text_hash')
    columns += ('id_hash', 'split', 'shard')
    return dataclasses.replace(
      self, **{name: getattr(self, name)[chosen] for name in columns}
    )

  def documents(
    self, chosen: np.ndarray, whole: bool = False
  ) -> Iterator[sources.Document]:
    """Reads the chosen documents (a mask) again, in corpus order.

    Args:
      chosen: [documents] bool.
      whole: Whether documents have their `record`.

    Raises:
      UserError: a file has changed since it was indexed.
    """
    chosen = np.flatnonzero(chosen)
    configs = [self.files[n].config for n in np.unique(self.file[chosen])]
    if sources.needs_worker(*configs):
      shard = (self.only(chosen), whole)
      yield from next(
        workers.run_all(_read_all, [shard], 1, force_subprocess=True)
      )
      return
    for file in np.unique(self.file[chosen]).tolist():
      wanted = chosen[self.file[chosen] == file]
      lines = dict(
        zip(self.line[wanted].tolist(), wanted.tolist(), strict=True)
      )
      # Closed at once when the last wanted record is out, not when collected.
      with contextlib.closing(
        sources.read_records(self.files[file], lines, whole)
      ) as records:
        for line, record in records:
          index = lines.pop(line, None)
          if index is None:
            continue
          if isinstance(record, sources.BadRecord) or (
            text_hash(record.text) != self.text_hash[index]
          ):
            raise UserError(changed(self.files[file]))
          yield record
          if not lines:
            break
      if lines:
        raise UserError(f'{self.files[file].path} shrank while being read.')


def changed(file: sources.InputFile) -> str:
  """The message for a file whose text has changed since it was indexed."""
  return f'{file.path} {sources.FORMATS[file.config.format].changed_hint}'


def _read_all(task: tuple[CorpusIndex, bool]) -> list[sources.Document]:
  index, whole = task
  return list(index.documents(np.ones(len(index.split), bool), whole))


def build(
  config: CorpusConfig,
  job: str = 'tokenize',
  recorded: Sequence[Generation] = (),
  grow: bool = False,
) -> CorpusIndex:
  """Indexes, checks, draws, splits and cuts the corpus.

  Args:
    config: The corpus.
    job: The stage that the progress lines name.
    recorded: The generations that were tokenized; () for a corpus that is new.
    grow: Whether files that none of them has are one more generation. They are
      left out otherwise.

  Raises:
    UserError: a path matches nothing, a record is bad and records may not be
      dropped, or a split comes out empty.
  """
  listed = sources.list_files(config.sources)
  groups, new = generations_lib.grouped(listed, recorded)
  if grow or not recorded:
    groups.append(new)
  groups = [
    parts.cut(group, config.num_shards, config.num_workers) for group in groups
  ]
  files = [file for group in groups for file in group]
  indices = _file_indices(config, job, files)
  file_generation = np.repeat(
    np.arange(len(groups), dtype=np.int32), [len(group) for group in groups]
  )
  index = _assemble(config, tuple(files), indices, file_generation, recorded)
  ends = np.cumsum([len(group) for group in groups]).tolist()
  made = [
    Generation(
      num_shards,
      generations_lib.records(group, indices[end - len(group) : end]),
    )
    for num_shards, group, end in zip(
      _num_shards(config, index, recorded), groups, ends, strict=True
    )
  ]
  return dataclasses.replace(index, generations=tuple(made))


def _file_indices(
  config: CorpusConfig, job: str, files: list[sources.InputFile]
) -> list[file_index.FileIndex]:
  """The records of each file.

  Raises:
    UserError: as `build`.
  """
  total = sum(file.size for file in files)
  progress = Progress(f'{job}: index', 'B', total)
  indices = []
  force_subprocess = sources.needs_worker(*(file.config for file in files))
  file_indices = workers.run_all(
    file_index.index_file, files, config.num_workers, force_subprocess
  )
  of_file: list[file_index.FileIndex] = []
  following = [*files[1:], None]
  for index, file, after in zip(file_indices, files, following, strict=True):
    if index.bad_records and config.on_bad_record == 'refuse':
      raise UserError(
        f"{index.first_bad_record}. Fix it, or set corpus.on_bad_record='drop' to "
        'leave such records out and count them.'
      )
    indices.append(index)
    of_file.append(index)
    if not after or not after.part or after.path != file.path:
      file_index.check_some(file, of_file)
      of_file = []
    progress.add(file.size)
  wipe()
  file_index.check_kept(files, indices)
  return indices


def _assemble(
  config: CorpusConfig,
  files: tuple[sources.InputFile, ...],
  indices: list[file_index.FileIndex],
  file_generation: np.ndarray,
  recorded: Sequence[Generation],
) -> CorpusIndex:
  names = sorted({name for index in indices for name in index.source_names})
  column = _columns(names, indices)
  column['generation'] = file_generation[column['file']]
  bad = sum(
    (collections.Counter(i.bad_records) for i in indices), collections.Counter()
  )
  kept = _first_of_each_id(config, files, column, bad)
  for reason, count in sorted(bad.items()):
    logger.warning('tokenize: dropped %d records: %s', count, reason)
  column = {name: values[kept] for name, values in column.items()}
  taken = draw.drawn(config, files, column, names)
  column = {name: values[taken] for name, values in column.items()}
  if not taken.any():
    raise UserError('corpus.sources hold no document.')
  content = column['content_hash']
  index = CorpusIndex(
    files,
    column['file'],
    column['line'],
    column['num_bytes'],
    content,
    column['text_hash'],
    column['id_hash'],
    draw.split_all(config, files, column, lambda count: content[:count]),
    np.zeros(len(content), np.int32),
    dict(bad),
    file_generation=file_generation,
  )
  left_out = index.split == draw.LEFT_OUT
  index = index.without(left_out, 'copy of a training text')
  return dataclasses.replace(index, shard=_shards(config, index, recorded))


def _num_shards(
  config: CorpusConfig, index: CorpusIndex, recorded: Sequence[Generation]
) -> list[int]:
  """The number of shards up to each generation.

  Shards of a new one are about as large as those of the first.
  """
  generation = index.generation
  size = np.bincount(generation, index.num_bytes)
  ends = [one.num_shards for one in recorded]
  if not ends:
    ends.append(config.num_shards)
  for number in range(len(ends), index.file_generation[-1] + 1):
    if number >= len(size):
      raise UserError(
        'The new files of the corpus hold no document that it takes: all are '
        'copies of training texts, or beyond the limits of their sources '
        '(max_bytes, corpus.max_bytes_per_source). Remove these files.'
      )
    ends.append(ends[-1] + max(1, round(size[number] * ends[0] / size[0])))
  return ends


def _shards(
  config: CorpusConfig, index: CorpusIndex, recorded: Sequence[Generation]
) -> np.ndarray:
  """Contiguous shards of about equal size, whatever the number of workers."""
  shard, start = np.zeros(len(index.line), np.int32), 0
  generation = index.generation
  for number, end in enumerate(_num_shards(config, index, recorded)):
    here = generation == number
    size = index.num_bytes[here]
    before = np.cumsum(size) - size
    shard[here] = start + before * (end - start) // max(size.sum(), 1)
    start = end
  return shard


def _columns(
  names: list[str], indices: list[file_index.FileIndex]
) -> dict[str, np.ndarray]:
  """The documents of all files, with the indices of their files and sources."""
  number = {name: position for position, name in enumerate(names)}
  column = {
    name: np.concatenate([getattr(index, name) for index in indices])
    for name in ('line', 'num_bytes', 'content_hash', 'text_hash', 'id_hash')
  }
  column['file'] = np.repeat(
    np.arange(len(indices), dtype=np.int32), [len(i.line) for i in indices]
  )
  column['source'] = np.concatenate(
    [
      np.array([number[n] for n in index.source_names], np.int32)[index.source]
      for index in indices
    ]
  )
  return column


def _first_of_each_id(
  config: CorpusConfig,
  files: tuple[sources.InputFile, ...],
  column: dict[str, np.ndarray],
  bad: collections.Counter[str],
) -> np.ndarray:
  """A mask of documents whose id no earlier document of their source has."""
  id_hash, source = column['id_hash'], column['source']
  # Stable: of equal ids, the first document of the corpus comes first.
  order = np.lexsort((id_hash, source))
  before, after = order[:-1], order[1:]
  is_first = np.ones(len(order), bool)
  is_first[1:] = id_hash[before] != id_hash[after]
  is_first[1:] |= source[before] != source[after]
  kept = np.zeros(len(order), bool)
  kept[order[is_first]] = True
  if not kept.all():
    again = int(np.flatnonzero(~kept)[0])
    same = (id_hash == id_hash[again]) & (source == source[again])
    original = int(np.argmax(same))
    if config.on_bad_record == 'refuse':
      raise UserError(
        f'{_where(files, column, again)} has the id of '
        f'{_where(files, column, original)}, and ids must differ within a source. '
        f'{sources.about_ids(files[column["file"][again]].config)} or set '
        "corpus.on_bad_record='drop' to keep the first of each."
      )
    bad['duplicate id'] += int((~kept).sum())
  return kept


def _where(
  files: tuple[sources.InputFile, ...],
  column: dict[str, np.ndarray],
  index: int,
) -> str:
  file = files[column['file'][index]]
  if not sources.FORMATS[file.config.format].records_are_documents:
    return file.path
  return f'{file.path}:{int(column["line"][index])}'
