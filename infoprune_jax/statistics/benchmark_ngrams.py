"""The n-grams of benchmarks: read from their files, and found in texts."""

import dataclasses
import functools
import re
from collections.abc import Iterator
from typing import Any

import numba
import numpy as np

from infoprune_jax.config.decontamination import BenchmarksConfig
from infoprune_jax.config.validation import UserError
from infoprune_jax.corpus import paths, records, sources, words
from infoprune_jax.runtime.progress import logger
from infoprune_jax.statistics.example_texts import sha256_of

INPUT = (
  'benchmark '  # what the names of inputs begin with, before a benchmark's
)
SEPARATOR = ', '  # between the names of benchmarks
_FIELD = 'select.decontaminate.paths'
_EXTENSIONS = ('.jsonl', '.json', '.ndjson')
# Bits of the filter for each n-gram: 1 of 32 or fewer is set.
_FILTER_BITS = 5


@dataclasses.dataclass(frozen=True, eq=False)
class BenchmarkNgrams:
  """The hashes of the n-grams of benchmarks, and where each is from."""

  names: tuple[str, ...]  # of the benchmarks
  hashes: np.ndarray  # [N] uint64, ascending; once for each benchmark
  owners: np.ndarray  # [N] int32, into `names`
  ngram: int  # words

  @functools.cached_property
  def _filter(self) -> np.ndarray:
    """A bit for each prefix of a hash, set if a hash has it; uint8.

    Most n-grams of a text have none of these prefixes, and are not looked up.
    """
    bits = max(len(self.hashes).bit_length() + _FILTER_BITS, 3)
    prefixes = np.unique(self.hashes >> np.uint64(64 - bits))
    is_set = np.zeros(1 << (bits - 3), np.uint8)
    bit = np.uint8(1) << (prefixes & np.uint64(7)).astype(np.uint8)
    np.bitwise_or.at(is_set, (prefixes >> np.uint64(3)).astype(np.int64), bit)
    return is_set

  def count(self, text: str) -> tuple[int, str]:
    """The n-grams of a text that are in a benchmark, and in which.

    Returns:
      Their number, where an n-gram counts as often as it occurs; and the names
      of the benchmarks, with `SEPARATOR` between them.
    """
    is_owner = np.zeros(len(self.names), np.bool_)
    hashes = words.hashes(text.encode(), self.ngram)
    count = _count(hashes, self._filter, self.hashes, self.owners, is_owner)
    names = [self.names[number] for number in np.flatnonzero(is_owner)]
    return int(count), SEPARATOR.join(names)


@numba.njit(cache=True, nogil=True)
def _count(hashes, is_set, known, owners, is_owner):
  """Counts the hashes that are known, and marks their owners in `is_owner`."""
  count, bits = 0, 3
  while 1 << (bits - 3) < len(is_set):
    bits += 1
  for value in hashes:
    prefix = value >> np.uint64(64 - bits)
    if not is_set[prefix >> np.uint64(3)] >> (prefix & np.uint64(7)) & 1:
      continue
    place = np.searchsorted(known, value)
    if place == len(known) or known[place] != value:
      continue
    count += 1
    while place < len(known) and known[place] == value:
      is_owner[owners[place]] = True
      place += 1
  return count


def list_files(config: BenchmarksConfig) -> dict[str, str]:
  """The file of each benchmark, by the benchmark's name.

  The name is that of the file, without what says that it is JSONL.

  Raises:
    UserError: a path matches nothing, or two files give one name.
  """
  is_data = functools.partial(paths.is_data, extensions=_EXTENSIONS)
  matches = [paths.matches(_FIELD, path, is_data) for path in config.paths]
  listed = list(dict.fromkeys(path for _, some in matches for path, _ in some))
  names = paths.relative_names(listed, [folder for folder, _ in matches])
  files: dict[str, str] = {}
  for name, path in zip(names, listed, strict=True):
    name = re.sub(r'\.(jsonl|json|ndjson)(\.\w+)?$', '', name)
    if SEPARATOR.strip() in name or name in files:
      other = f', as {files[name]} is' if name in files else ''
      raise UserError(
        f'{_FIELD}: {path} would be called {name!r}{other}. Each benchmark needs '
        'a name of its own, without commas: rename the file.'
      )
    files[name] = path
  return files


def digests(config: BenchmarksConfig) -> dict[str, str]:
  """The SHA-256 of the file of each benchmark, by the name of the input.

  Raises:
    UserError: a path matches nothing, or a file cannot be read.
  """
  inputs = {}
  for name, path in list_files(config).items():
    with paths.read_error_as_user_error(path):
      inputs[INPUT + name] = sha256_of(path)
  return inputs


def read(config: BenchmarksConfig) -> BenchmarkNgrams:
  """Reads all benchmarks.

  Raises:
    UserError: a path matches nothing, a file cannot be read or has no text, or
      no text has as many words as an n-gram.
  """
  listed = list_files(config)
  of_each = [_hashes(path, config) for path in listed.values()]
  ngram, names = config.ngram, tuple(listed)
  short = [n for n, h in zip(names, of_each, strict=True) if not len(h)]
  if len(short) == len(names):
    raise UserError(
      f'select.decontaminate.ngram is {ngram}, but no text of a benchmark has '
      f'{ngram} words ({", ".join(names[:5])}{", ..." * (len(names) > 5)}): '
      'give a smaller number.'
    )
  if short:
    logger.warning(
      'decontaminate: no text of %s has %d words: it is compared with nothing',
      ', '.join(short),
      ngram,
    )
  hashes = np.concatenate(of_each)
  owners = np.repeat(
    np.arange(len(names), dtype=np.int32), [*map(len, of_each)]
  )
  order = np.argsort(hashes, kind='stable')
  return BenchmarkNgrams(names, hashes[order], owners[order], ngram)


def _hashes(path: str, config: BenchmarksConfig) -> np.ndarray:
  """The distinct hashes of n-grams in a file, [n-grams] uint64."""
  some, has_text, line_number = [np.zeros(0, np.uint64)], False, 1
  try:
    for number, line in sources.read_lines(path):
      line_number = number
      for text in _texts(sources.json_object(line), config.text_columns):
        has_text |= bool(text.strip())
        some.append(words.hashes(records.encodable(text), config.ngram))
  except records.Bad as bad:
    raise UserError(
      f'{path}:{line_number}: {bad.args[0]} ({bad.args[1]}). A benchmark is '
      'JSONL, with an object on each line: fix the file, or name others in '
      f'{_FIELD}.'
    ) from None
  if not has_text:
    where = ', '.join(config.text_columns) or 'any field'
    raise UserError(
      f'{path} has no text in {where}: name its fields in '
      f'select.decontaminate.text_columns, or leave the file out of {_FIELD}.'
    )
  return np.unique(np.concatenate(some))


def _texts(record: dict[str, Any], columns: tuple[str, ...]) -> Iterator[str]:
  """The strings of a record; raises `Bad` if it lacks a column."""
  values = [records.column(record, name) for name in columns] or [record]
  while values:
    value = values.pop()
    if isinstance(value, str):
      yield value
    elif isinstance(value, list | dict):
      values += value.values() if isinstance(value, dict) else value
