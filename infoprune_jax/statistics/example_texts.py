"""Good and bad texts that the user names, to train a classifier on."""

import dataclasses
import fnmatch
import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from infoprune_jax.config.classifier import LABELS, ClassifierConfig
from infoprune_jax.config.corpus import SPLITS, SourceConfig
from infoprune_jax.config.validation import UserError
from infoprune_jax.corpus import sources
from infoprune_jax.corpus.records import BadRecord, InputFile
from infoprune_jax.runtime import files, filesystems, manifests
from infoprune_jax.runtime.hashing import content_hash, mix
from infoprune_jax.runtime.progress import logger
from infoprune_jax.statistics.classifier import Texts
from infoprune_jax.tokens import folds as folds_lib
from infoprune_jax.tokens.token_store import Shard, TokenStore
from infoprune_jax.tokens.vocabulary import Vocabulary

MIN_TEXTS = 10  # of each label
_BATCH = 256  # texts that are encoded in one call
_NAMED = 20  # sources that a message lists


@dataclasses.dataclass(frozen=True, eq=False)
class LabelledTexts:
  """Distinct texts in the order of their hashes, first the good ones."""

  texts: Texts  # D
  is_good: np.ndarray  # [D] bool
  is_heldout: np.ndarray  # [D] bool


def list_files(
  name: str, config: ClassifierConfig
) -> dict[str, list[InputFile]]:
  """The files of each label.

  Args:
    name: Of the classifier.
    config: The classifier.

  Raises:
    UserError: a path matches nothing, or both labels have a file.
  """
  listed = {}
  for label in LABELS:
    given: tuple[SourceConfig, ...] = getattr(config, label)
    listed[label] = sources.list_files(
      {str(number): source for number, source in enumerate(given)},
      f'classifiers.{name}.{label}',
    )
  paths = [{file.path for file in listed[label]} for label in LABELS]
  both = sorted(paths[0] & paths[1])
  if both:
    raise UserError(
      f'classifiers.{name}: {both[0]} is a file of both good and bad texts: '
      'name it in one of them.'
    )
  return listed


def digest(name: str, config: ClassifierConfig) -> str:
  """A digest of the content of all files, in their order.

  Raises:
    UserError: as `list_files`.
  """
  listed = list_files(name, config)
  return manifests.fingerprint(
    {
      label: [sha256_of(file.path) for file in listed[label]]
      for label in LABELS
    }
  )


def sha256_of(path: str) -> str:
  """The SHA-256 of a file, in hexadecimal digits."""
  if filesystems.is_local(path):
    return files.facts_of(path)['sha256']
  with filesystems.open_file(path) as file:
    stream: Any = file
    return hashlib.file_digest(stream, 'sha256').hexdigest()


def read(
  name: str,
  config: ClassifierConfig,
  store: TokenStore,
  words: Vocabulary,
  folds: int,
) -> LabelledTexts:
  """Reads the texts of both labels, and splits them.

  Args:
    name: Of the classifier.
    config: The classifier.
    store: The corpus, of which some sources may be examples.
    words: Its vocabulary.
    folds: Number of reference models.

  Raises:
    UserError: a record has no text, a pattern matches no source, or too few
      texts are left of a label.
  """
  listed = list_files(name, config)
  patterns = {label: getattr(config, f'{label}_sources') for label in LABELS}
  matched = _sources(name, patterns, store)
  by_label: dict[str, dict[int, np.ndarray]] = {}
  for label in LABELS:
    texts = _read_files(f'classifiers.{name}.{label}', listed[label], config)
    by_label[label] = {
      **_of_corpus(store, matched[label], config, folds),
      **_encoded(texts, words),
    }
  both = by_label['good'].keys() & by_label['bad'].keys()
  if both:
    logger.warning(
      'classify: %s: %d texts are both good and bad: they are left out',
      name,
      len(both),
    )
  chosen = []
  for label in LABELS:
    hashes = np.array(sorted(by_label[label].keys() - both), np.int64)
    if len(hashes) < MIN_TEXTS:
      raise UserError(
        f'classifiers.{name}: {len(hashes)} distinct texts are {label}'
        f'{" alone" if both else ""}, but a classifier needs at least '
        f'{MIN_TEXTS}: name more in `{label}` or `{label}_sources`.'
      )
    chosen.append(np.sort(_drawn(hashes, config.seed, config.max_texts)))
  return _joined(chosen, [by_label[label] for label in LABELS], config)


def _joined(
  chosen: Sequence[np.ndarray],
  tokens: Sequence[dict[int, np.ndarray]],
  config: ClassifierConfig,
) -> LabelledTexts:
  """The texts with these hashes, by label."""
  ids = [
    of_label[text]
    for hashes, of_label in zip(chosen, tokens, strict=True)
    for text in hashes.tolist()
  ]
  heldout = []
  for hashes in chosen:
    count = max(round(config.heldout_fraction * len(hashes)), 1)
    drawn = _drawn(hashes, config.seed + 1, count)
    heldout.append(np.isin(hashes, drawn))
  return LabelledTexts(
    Texts(np.concatenate(ids), np.array([len(one) for one in ids])),
    np.repeat([True, False], [len(hashes) for hashes in chosen]),
    np.concatenate(heldout),
  )


def _drawn(hashes: np.ndarray, seed: int, count: int) -> np.ndarray:
  """Some of these distinct hashes, by chance, [at most count]."""
  return hashes[np.argsort(mix(hashes, seed), kind='stable')[:count]]


def _read_files(
  field: str, listed: Sequence[InputFile], config: ClassifierConfig
) -> dict[int, str]:
  """The texts of files by their hash: those that the draw takes."""
  texts: dict[int, str] = {}
  for file in listed:
    for _, record in sources.read_records(file):
      if isinstance(record, BadRecord):
        raise UserError(
          f'{field}: {record}. Each record must have a text: fix the file, or '
          'name the column of the text with text_column.'
        )
      texts[content_hash(record.text)] = record.text
      if len(texts) >= 2 * config.max_texts:
        texts = _fewer(texts, config)
  return _fewer(texts, config)


def _fewer(texts: dict[int, str], config: ClassifierConfig) -> dict[int, str]:
  hashes = np.array(list(texts), np.int64)
  drawn = _drawn(hashes, config.seed, config.max_texts)
  return {text: texts[text] for text in drawn.tolist()}


def _encoded(texts: dict[int, str], words: Vocabulary) -> dict[int, np.ndarray]:
  """The token ids of each text."""
  hashes = list(texts)
  ids: list[np.ndarray] = []
  for start in range(0, len(hashes), _BATCH):
    batch = hashes[start : start + _BATCH]
    ids += words.encode_all([texts[text] for text in batch])
  return dict(zip(hashes, ids, strict=True))


def _sources(
  name: str, patterns: dict[str, Sequence[str]], store: TokenStore
) -> dict[str, set[str]]:
  """The sources of the corpus that the patterns of each label match."""
  matched: dict[str, set[str]] = {label: set() for label in LABELS}
  if not any(patterns.values()):
    return matched
  names = sorted(
    {
      source
      for number in range(store.num_shards)
      for source in store.shard(number)
      .table('source')['source']
      .unique()
      .to_pylist()
    }
  )
  for label, of_label in patterns.items():
    for pattern in of_label:
      # A name may hold what a pattern means otherwise.
      new = {
        s for s in names if s == pattern or fnmatch.fnmatchcase(s, pattern)
      }
      if not new:
        raise UserError(
          f'classifiers.{name}.{label}_sources: {pattern!r} matches no source '
          f'of the corpus. Its sources are {", ".join(names[:_NAMED])}'
          f'{", ..." if len(names) > _NAMED else ""}.'
        )
      matched[label] |= new
  both = sorted(matched['good'] & matched['bad'])
  if both:
    raise UserError(
      f'classifiers.{name}: the source {both[0]!r} is in both good_sources and '
      'bad_sources: name patterns that match different sources.'
    )
  return matched


def _of_corpus(
  store: TokenStore, names: set[str], config: ClassifierConfig, folds: int
) -> dict[int, np.ndarray]:
  """Token ids of texts of these sources, by hash: those that the draw takes."""
  if not names:
    return {}
  places: dict[int, tuple[int, int]] = {}
  for number in range(store.num_shards):
    shard = store.shard(number)
    documents = np.flatnonzero(_may_train(store, shard, folds))
    source = shard.table('source')['source'].take(documents).to_pylist()
    documents = documents[[one in names for one in source]]
    hashes = shard.column('content_hash')[documents]
    for text, document in zip(hashes.tolist(), documents.tolist(), strict=True):
      places.setdefault(text, (number, document))
  hashes = np.array(list(places), np.int64)
  drawn = _drawn(hashes, config.seed, config.max_texts)
  # In the order of the store, so that it is read once.
  where = sorted((places[text], text) for text in drawn.tolist())
  return {text: store.document(*place) for place, text in where}


def _may_train(store: TokenStore, shard: Shard, folds: int) -> np.ndarray:
  """The documents that a classifier may learn from, [documents] bool.

  They are not held out, and where possible not scored.
  """
  split = shard.column('split')
  if folds > 1:
    return split != SPLITS.index('heldout')
  wanted = 'reference' if folds_lib.has_reference(store) else 'scored'
  return split == SPLITS.index(wanted)
