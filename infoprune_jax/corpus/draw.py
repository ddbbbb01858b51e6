"""Which documents the corpus takes, and the split of each, by seeded hashes.

Neither depends on the order of files. Copies of a text are in one split.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from infoprune_jax.config.corpus import SPLITS, CorpusConfig
from infoprune_jax.config.validation import UserError
from infoprune_jax.corpus.records import InputFile
from infoprune_jax.runtime.hashing import mix, uniform
from infoprune_jax.runtime.progress import logger

REFERENCE, SCORED, HELDOUT = range(len(SPLITS))
# Of a document that is new, and a copy of a reference text, or of a scored one
# although its source is held out.
LEFT_OUT = -1
# Equally long arrays of documents, as in `CorpusIndex`, and `source`, the
# number of the name of its source; `generation`, ascending. For `split`, also
# `split_key`, int64: documents with the same one are in one split.
Columns = Mapping[str, np.ndarray]


def _at(column: Columns, chosen: Any) -> dict[str, np.ndarray]:
  return {name: values[chosen] for name, values in column.items()}


def drawn(
  config: CorpusConfig,
  files: Sequence[InputFile],
  column: Columns,
  names: Sequence[str],
) -> np.ndarray:
  """A mask of the documents within the limits of their sources.

  Each generation is drawn from what earlier ones leave of the limits.

  Args:
    config: Whose seed decides, and which has a limit for all sources.
    files: With the limits of their sources.
    column: The documents.
    names: Of sources.

  Returns:
    [documents] bool.

  Raises:
    UserError: the limits leave no document.
  """
  generation = column['generation']
  taken = np.zeros(len(generation), bool)
  for number in np.unique(generation):
    here = generation == number
    own, earlier = _at(column, here), _at(column, taken)
    taken[here] = _drawn(config, files, own, names, earlier)
  return taken


def _drawn(
  config: CorpusConfig,
  files: Sequence[InputFile],
  column: Columns,
  names: Sequence[str],
  earlier: Columns,
) -> np.ndarray:
  """As `drawn`, of one generation.

  Args:
    config: As for `drawn`.
    files: As for `drawn`.
    column: The documents of the generation.
    names: As for `drawn`.
    earlier: The documents that are taken of earlier generations.

  Returns:
    [documents] bool.

  Raises:
    UserError: the limits leave no document.
  """
  size = column['num_bytes']
  longest = _of_files(files, column, 'max_document_bytes')
  taken = (longest == 0) | (size <= longest)
  if too_long := np.count_nonzero(~taken):
    logger.info(
      'tokenize: leaves out %d documents above max_document_bytes', too_long
    )
  own = _of_files(files, column, 'max_bytes')
  limit = np.where(own > 0, own, config.max_bytes_per_source)
  sources, group = _limited_groups(files, column, names)
  _, earlier_group = _limited_groups(files, earlier, names)
  key = np.where(
    own > 0,
    # Mixed again: the split goes by the first hash.
    mix(mix(column['content_hash'], config.seed), config.seed),
    # Unique in a group. Sources with the same ids draw the same ones first.
    mix(column['id_hash'], config.seed),
  )
  limited = np.flatnonzero(taken & (limit > 0))
  left = _left(limit, group, earlier_group, earlier['num_bytes'])
  taken[limited] = _up_to_limit(
    group[limited], key[limited], size[limited], left[limited]
  )
  _warn_of_lost_copies(size[limited], taken[limited])
  names = [*names, *sources]
  for missing in np.setdiff1d(group, group[taken]):
    logger.warning(
      'tokenize: no document of source %s is within max_document_bytes and '
      'max_bytes (corpus.max_bytes_per_source): none is drawn',
      names[missing],
    )
  if len(taken) and not taken.any() and not len(earlier['num_bytes']):
    raise UserError(
      f'corpus.max_bytes_per_source={config.max_bytes_per_source}, or max_bytes '
      'or max_document_bytes of the sources, is less than any document needs: '
      'raise it, or set it to 0 for everything.'
    )
  return taken


def _warn_of_lost_copies(size: np.ndarray, taken: np.ndarray) -> None:
  """Warns that a draw leaves few near-copies."""
  if not taken.all():
    logger.warning(
      'tokenize: draws %.3g %% of the bytes of the sources that have a limit '
      '(max_bytes or corpus.max_bytes_per_source). Near-copies are not drawn '
      'together, so there are fewer near-copies than in the whole corpus, and '
      'deduplication gains less. To keep them, name some of the files instead',
      100.0 * size[taken].sum() / size.sum(),
    )


def _limited_groups(
  files: Sequence[InputFile], column: Columns, names: Sequence[str]
) -> tuple[list[str], np.ndarray]:
  """The sources of files, and the number of the limit of each document.

  A source with a limit of its own is one group, whatever its records name.
  """
  sources, group = _sources(files, column)
  has_own = _of_files(files, column, 'max_bytes') > 0
  return sources, np.where(has_own, len(names) + group, column['source'])


def _left(
  limit: np.ndarray,
  group: np.ndarray,
  earlier_group: np.ndarray,
  earlier_size: np.ndarray,
) -> np.ndarray:
  """What earlier documents leave of the limits of groups, [N] int64."""
  size = max(group.max(initial=0), earlier_group.max(initial=0)) + 1
  used = np.zeros(size, np.int64)
  np.add.at(used, earlier_group, earlier_size)
  return np.maximum(limit - used[group], 0)


def split_all(
  config: CorpusConfig,
  files: Sequence[InputFile],
  column: Columns,
  split_key: Callable[[int], np.ndarray],
) -> np.ndarray:
  """The split of each document of all generations.

  That of a generation does not depend on later ones. Only the first has
  reference text.

  Args:
    config: The fractions and the seed.
    files: With the limits of their sources.
    column: The documents.
    split_key: The `split_key` of the first documents, as many as it is given.

  Returns:
    [documents] int8, into SPLITS, or LEFT_OUT.

  Raises:
    UserError: as `split`.
  """
  generation = column['generation']
  result = np.full(len(generation), LEFT_OUT, np.int8)
  for number in np.unique(generation):
    end = np.searchsorted(generation, number, 'right')
    start = np.searchsorted(generation, number)
    key, here = split_key(end), slice(start, end)
    own = {**_at(column, here), 'split_key': key[here]}
    if not start:
      result[here] = split(config, files, own)
      continue
    before = np.flatnonzero(result[:start] != LEFT_OUT)
    earlier = {**_at(column, before), 'split_key': key[before]}
    result[here] = _split_of_new(config, files, own, earlier, result[before])
  return result


def _split_of_new(
  config: CorpusConfig,
  files: Sequence[InputFile],
  column: Columns,
  earlier: Columns,
  earlier_split: np.ndarray,
) -> np.ndarray:
  """The split of documents that are added to others: never reference.

  A document goes where an earlier one with its key is. Copies of reference texts
  are left out: the reference model knows them. So are copies of scored texts in a
  source that is held out: arms may train on them.
  """
  key, size = column['split_key'], column['num_bytes']
  point = uniform(key, config.seed) - config.reference_fraction
  of_heldout = _of_files(files, column, 'heldout') > 0
  is_heldout = (point >= 0) & (point < config.heldout_fraction) | of_heldout
  result = np.where(is_heldout, HELDOUT, SCORED).astype(np.int8)
  there = earlier_split == HELDOUT
  _, group = _sources(files, column)
  _, earlier_group = _sources(files, earlier)
  limit = _of_files(files, column, 'max_heldout_bytes')
  left = _left(limit, group, earlier_group[there], earlier['num_bytes'][there])
  limited = np.flatnonzero((result == HELDOUT) & (limit > 0))
  within = _up_to_limit(
    group[limited], mix(key[limited], config.seed), size[limited],
    left[limited],
  )  # fmt: skip
  result[limited[~within]] = SCORED
  result[np.isin(key, key[result == HELDOUT])] = HELDOUT
  for number, new in (
    (SCORED, SCORED),
    (HELDOUT, HELDOUT),
    (REFERENCE, LEFT_OUT),
  ):
    result[np.isin(key, earlier['split_key'][earlier_split == number])] = new
  result[of_heldout & (result == SCORED)] = LEFT_OUT
  return result


def split(
  config: CorpusConfig, files: Sequence[InputFile], column: Columns
) -> np.ndarray:
  """The split of each document of the first generation, by its `split_key`.

  Args:
    config: The fractions and the seed.
    files: With the limits of their sources.
    column: The documents.

  Returns:
    [documents] int8, into SPLITS.

  Raises:
    UserError: a split is empty whose fraction is not 0.
  """
  key, size = column['split_key'], column['num_bytes']
  point = uniform(key, config.seed)
  result = np.full(len(key), SCORED, np.int8)
  result[point < config.reference_fraction + config.heldout_fraction] = HELDOUT
  result[point < config.reference_fraction] = REFERENCE
  result[_of_files(files, column, 'heldout') > 0] = HELDOUT
  limit = _of_files(files, column, 'max_heldout_bytes')
  limited = np.flatnonzero((result == HELDOUT) & (limit > 0))
  _, group = _sources(files, column)
  within = _up_to_limit(
    group[limited], mix(key[limited], config.seed), size[limited],
    limit[limited],
  )  # fmt: skip
  result[limited[~within]] = SCORED
  # A text that one source holds out is held out in all of them.
  result[np.isin(key, key[result == HELDOUT])] = HELDOUT
  fractions = {
    'reference': config.reference_fraction,
    'heldout': config.heldout_fraction,
  }
  for number, name in enumerate(SPLITS):
    if fractions.get(name) != 0 and not (result == number).any():
      raise UserError(
        f'The {name} split is empty: {len(result)} documents are too few for '
        f'corpus.reference_fraction={config.reference_fraction} and '
        f'corpus.heldout_fraction={config.heldout_fraction}.'
      )
  return result


def _of_files(
  files: Sequence[InputFile], column: Columns, option: str
) -> np.ndarray:
  """An option of each document's source, [documents] int64."""
  values = np.array([getattr(file.config, option) for file in files], np.int64)
  return values[column['file']]


def _sources(
  files: Sequence[InputFile], column: Columns
) -> tuple[list[str], np.ndarray]:
  """The sources that files belong to, and the number of each document's."""
  names = sorted({file.source for file in files})
  number = {name: position for position, name in enumerate(names)}
  of_files = np.array([number[file.source] for file in files], np.int64)
  return names, of_files[column['file']]


def _up_to_limit(
  group: np.ndarray, key: np.ndarray, size: np.ndarray, limit: np.ndarray
) -> np.ndarray:
  """A mask of whole texts, in the order of keys, up to the limit of each group.

  Documents of one group and key are one text, taken together or not at all. A
  text above the limit is passed over. The last text is taken if that brings the
  group closer to its limit.

  Args:
    group: [N] int.
    key: [N] uint64.
    size: [N] int64, of documents.
    limit: [N] int64, the same throughout a group, in the unit of sizes.

  Returns:
    [N] bool.
  """
  if not len(group):
    return np.zeros(0, bool)
  order = np.lexsort((key, group))
  key, group = key[order], group[order]
  new_group = np.diff(group, prepend=-1) != 0
  texts = np.flatnonzero(new_group | np.append(True, key[1:] != key[:-1]))
  text_size = np.add.reduceat(size[order], texts)
  text_limit = limit[order[texts]]
  text_size[text_size > text_limit] = 0
  before = np.cumsum(text_size) - text_size
  first = np.flatnonzero(new_group[texts])
  before -= np.repeat(before[first], np.diff(first, append=len(texts)))
  within = (text_size > 0) & (before + text_size // 2 <= text_limit)
  taken = np.zeros(len(order), bool)
  taken[order] = np.repeat(within, np.diff(texts, append=len(order)))
  return taken
