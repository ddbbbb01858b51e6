"""A first pass over the corpus: which records it has, and what becomes of each.

Cheap beside tokenizing. It finds bad input before any work starts, draws a
sample, splits by content, and cuts the corpus into shards.
"""

import collections
import contextlib
import dataclasses
import hashlib
from collections.abc import Iterator

import numpy as np

from infoprune_jax.config.corpus import SPLITS, CorpusConfig
from infoprune_jax.config.validation import UserError
from infoprune_jax.corpus import sources
from infoprune_jax.runtime import manifests, workers
from infoprune_jax.runtime.hashing import (
  content_hash,
  mix,
  text_hash,
  uniform,
  utf8_hash,
)
from infoprune_jax.runtime.progress import Progress, logger

REFERENCE, SCORED, HELDOUT = range(len(SPLITS))


@dataclasses.dataclass(frozen=True)
class FileIndex:
  """The documents of one file: equally long arrays, in the file's order."""

  line: np.ndarray  # int64, from 1
  num_bytes: np.ndarray  # int64, of the text in UTF-8
  content_hash: np.ndarray  # int64
  text_hash: np.ndarray  # int64, of the very text
  id_hash: np.ndarray  # int64
  source: np.ndarray  # int32, into source_names
  source_names: tuple[str, ...]
  bad_records: dict[str, int]  # by reason
  first_bad_record: str  # '' where there is none


def index_file(file: sources.InputFile) -> FileIndex:
  """Reads a file once."""
  records, bad, first_bad = [], collections.Counter(), ''
  names: dict[str, int] = {}
  for line, record in sources.read_records(file):
    if isinstance(record, sources.BadRecord):
      bad[record.reason] += 1
      first_bad = first_bad or str(record)
      continue
    data = record.text.encode()
    source = names.setdefault(record.source, len(names))
    records.append(
      (
        line,
        len(data),
        content_hash(record.text),
        utf8_hash(data),
        text_hash(record.example_id),
        source,
      )
    )
  line, num_bytes, content, utf8, example, source = (
    np.array(records, np.int64).reshape(-1, 6).T
  )
  return FileIndex(
    line,
    num_bytes,
    content,
    utf8,
    example,
    source.astype(np.int32),
    tuple(names),
    dict(bad),
    first_bad,
  )


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

  def fingerprint(self) -> str:
    """A digest of the content, the order and the fate of every document."""
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
    names = [file.source + '/' + file.name for file in self.files]
    return manifests.fingerprint([digest.hexdigest(), names])

  def restricted_to(self, shard: int) -> 'CorpusIndex':
    """The documents of one shard, with the files they are in."""
    return self.only(np.flatnonzero(self.shard == shard))

  def only(self, chosen: np.ndarray) -> 'CorpusIndex':
    """The documents at these positions, with the files they are in."""
    used = np.unique(self.file[chosen])
    return dataclasses.replace(
      self,
      files=tuple(self.files[file] for file in used),
      file=np.searchsorted(used, self.file[chosen]).astype(np.int32),
      line=self.line[chosen],
      num_bytes=self.num_bytes[chosen],
      content_hash=self.content_hash[chosen],
      text_hash=self.text_hash[chosen],
      id_hash=self.id_hash[chosen],
      split=self.split[chosen],
      shard=self.shard[chosen],
    )

  def documents(
    self, chosen: np.ndarray, whole: bool = False
  ) -> Iterator[sources.Document]:
    """Reads the chosen documents (a mask) again, in corpus order.

    Args:
      chosen: [documents] bool.
      whole: Whether they come with their `record`.

    Raises:
      UserError: a file is no longer what was indexed.
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
  """What to tell of a file whose text is not what was indexed."""
  return f'{file.path} {sources.FORMATS[file.config.format].changed_hint}'


def _read_all(task: tuple[CorpusIndex, bool]) -> list[sources.Document]:
  index, whole = task
  return list(index.documents(np.ones(len(index.split), bool), whole))


def build(config: CorpusConfig, job: str = 'tokenize') -> CorpusIndex:
  """Indexes, checks, draws, splits and cuts the corpus.

  Args:
    config: The corpus.
    job: Who says how far it is.

  Raises:
    UserError: a path matches nothing, a record is bad and records may not be
      dropped, or a split comes out empty.
  """
  files = sources.list_files(config.sources)
  total = sum(file.size for file in files)
  progress = Progress(f'{job}: index', 'B', total)
  indices = []
  force_subprocess = sources.needs_worker(*(file.config for file in files))
  file_indices = workers.run_all(
    index_file, files, config.num_workers, force_subprocess
  )
  for index, file in zip(file_indices, files, strict=True):
    if index.bad_records and config.on_bad_record == 'refuse':
      raise UserError(
        f"{index.first_bad_record}. Fix it, or set corpus.on_bad_record='drop' to "
        'leave such records out and count them.'
      )
    _check_some(file, index)
    indices.append(index)
    progress.add(file.size)
  return _assemble(config, tuple(files), indices)


# Records of which nothing is lost: they were read, and hold no text.
_EMPTY = {'empty text', 'empty compressed file'}
# What even one record is called only where the file is no JSONL.
_NO_JSONL = {'broken JSON', 'not a JSON object'}


def _check_some(file: sources.InputFile, index: FileIndex) -> None:
  """Raises `UserError` for a file that is dropped whole, record by record.

  It would be a wrong kind of file, or a column of another name.
  """
  bad = sum(index.bad_records.values())
  reasons = set(index.bad_records) - _EMPTY
  kind = sources.FORMATS[file.config.format]
  if kind.dataset or not kind.records_are_documents:
    return
  if len(index.line) or not reasons:
    return
  if bad > 1 or reasons & _NO_JSONL:
    raise UserError(
      f'{file.path} gives no document: all records are bad ({bad}). The first: '
      f"{index.first_bad_record}. corpus.on_bad_record='drop' leaves out records, not "
      f'whole files: fix the file, or name other files or columns in '
      f'corpus.sources.{file.source}.'
    )


def _assemble(
  config: CorpusConfig,
  files: tuple[sources.InputFile, ...],
  indices: list[FileIndex],
) -> CorpusIndex:
  names = sorted({name for index in indices for name in index.source_names})
  column = _columns(names, indices)
  bad = sum(
    (collections.Counter(i.bad_records) for i in indices), collections.Counter()
  )
  kept = _first_of_each_id(config, files, column, bad)
  for reason, count in sorted(bad.items()):
    logger.warning('tokenize: dropped %d records: %s', count, reason)
  if config.max_bytes_per_source:
    kept = _draw(config, column, kept, names)
  if not kept.any():
    raise UserError('corpus.sources hold no document.')
  column = {name: values[kept] for name, values in column.items()}
  # Contiguous shards of about equal size, whatever the number of workers.
  before = np.cumsum(column['num_bytes']) - column['num_bytes']
  shard = before * config.num_shards // max(column['num_bytes'].sum(), 1)
  return CorpusIndex(
    files,
    column['file'],
    column['line'],
    column['num_bytes'],
    column['content_hash'],
    column['text_hash'],
    column['id_hash'],
    _split(config, column['content_hash']),
    shard.astype(np.int32),
    dict(bad),
  )


def _columns(
  names: list[str], indices: list[FileIndex]
) -> dict[str, np.ndarray]:
  """The documents of all files, with the number of file and source."""
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
  """A mask of documents whose id no earlier document has."""
  _, first, inverse = np.unique(
    column['id_hash'], return_index=True, return_inverse=True
  )
  kept = np.zeros(len(inverse), bool)
  kept[first] = True
  if not kept.all():
    again = int(np.flatnonzero(~kept)[0])
    original = int(first[inverse[again]])
    if config.on_bad_record == 'refuse':
      raise UserError(
        f'{_where(files, column, again)} has the id of '
        f'{_where(files, column, original)}. '
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


def _draw(
  config: CorpusConfig,
  column: dict[str, np.ndarray],
  kept: np.ndarray,
  names: list[str],
) -> np.ndarray:
  """A mask of a seeded draw of whole documents, about the limit a source."""
  limit = config.max_bytes_per_source
  source = column['source']
  fits = np.flatnonzero(kept & (column['num_bytes'] <= limit))
  for missing in np.setdiff1d(source[kept], source[fits]):
    logger.warning(
      'tokenize: no document of source %s is as short as '
      'corpus.max_bytes_per_source=%d: none is drawn',
      names[missing],
      limit,
    )
  keys = mix(column['id_hash'][fits], config.seed)
  order = fits[np.lexsort((keys, source[fits]))]
  size = column['num_bytes'][order]
  before = np.cumsum(size) - size
  starts = np.flatnonzero(np.diff(source[order], prepend=-1))
  counts = np.diff(starts, append=len(order))
  before -= np.repeat(before[starts], counts)
  drawn = np.zeros(len(source), bool)
  # The last document is in if that brings the source closer to the limit.
  drawn[order] = before + size // 2 <= limit
  if not drawn.any():
    raise UserError(
      f'corpus.max_bytes_per_source={limit} is less than any document has: '
      'raise it, or set it to 0 for everything.'
    )
  return drawn


def _split(config: CorpusConfig, hashes: np.ndarray) -> np.ndarray:
  """The split of each document, by its content: copies fall on one side."""
  point = uniform(hashes, config.seed)
  split = np.full(len(hashes), SCORED, np.int8)
  split[point < config.reference_fraction + config.heldout_fraction] = HELDOUT
  split[point < config.reference_fraction] = REFERENCE
  for number, name in enumerate(SPLITS):
    if not (split == number).any():
      raise UserError(
        f'The {name} split is empty: {len(split)} documents are too few for '
        f'corpus.reference_fraction={config.reference_fraction} and '
        f'corpus.heldout_fraction={config.heldout_fraction}.'
      )
  return split
