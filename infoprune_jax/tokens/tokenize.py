"""The stage that turns a corpus into a vocabulary and a token store."""

import dataclasses
import functools
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, cast

import numpy as np
import pyarrow as pa

from infoprune_jax.config.corpus import SPLITS
from infoprune_jax.config.experiment import Config
from infoprune_jax.config.validation import UserError
from infoprune_jax.corpus import sources, split_groups
from infoprune_jax.corpus.corpus_index import CorpusIndex
from infoprune_jax.corpus.sources import Document
from infoprune_jax.runtime import (
  artifacts,
  files,
  manifests,
  resumable,
  workers,
)
from infoprune_jax.runtime.options import options_of
from infoprune_jax.runtime.progress import logger, quantity
from infoprune_jax.runtime.workdir import token_store_dir, vocabulary_dir
from infoprune_jax.tokens import (
  growth,
  own_vocabulary,
  token_store,
  vocabulary,
  vocabulary_files,
)
from infoprune_jax.tokens.token_store import StoreManifest, StoreMarker, Totals

# The score table counts tokens and bytes of a document in int32.
MAX_DOCUMENT_BYTES = 2**31 - 1
# The most that is encoded in one call. More is not faster, and takes memory.
BATCH_DOCUMENTS, BATCH_BYTES = 256, 1 << 20


def run(config: Config, workdir: str, *, extend: bool = False) -> None:
  """Tokenizes the corpus; returns at once if that is done.

  Args:
    config: The experiment.
    workdir: Where the token store is.
    extend: Whether files that were added to the corpus become further shards of
      a finished token store.

  Raises:
    UserError: the input is bad, or the token store is that of another config.
  """
  path = token_store_dir(workdir)
  with files.lock(path):
    manifest = manifests.read_manifest(path, 'tokenize')
    is_done = manifest is not None and _is_done(
      config, workdir, manifest, extend
    )
    if is_done:
      return
    is_whole = manifests.read_manifest(vocabulary_dir(workdir), 'tokenize')
    grown = manifest if extend and is_whole else None
    begun = manifests.read_begun(path, 'tokenize')
    # Without one, the corpus as it is now must be the one that was begun.
    is_grown = grown or (begun and begun.get('generations'))
    old = growth.recorded(path, grown or begun) if is_grown else []
    with workers.shared_pool(config.corpus, workdir, 'tokenize'):
      index = split_groups.build(
        config.corpus, config.split_groups, 'tokenize', old, grown is not None
      )
      growth.check_files(index, old)
      words = own_vocabulary.open_or_make(config, workdir, index.first(1))
      inputs = {'corpus': index.fingerprint(), 'vocabulary': words.hash}
      store = store_artifact(config, workdir, inputs)
      if grown:
        growth.check_same(grown, index.first(len(old)), words.hash)
        # First: once the store has begun to grow, its new files are known.
        growth.record(store.take_over(), index, len(old))
        store = store.begin(grown)
      else:
        store = store.begin()
        growth.record(store, index, len(old))
      _write(config, store, index, words)


def _is_done(
  config: Config, workdir: str, manifest: manifests.Manifest, extend: bool
) -> bool:
  """Whether a finished token store is that of this config, with its vocabulary.

  Args:
    config: The experiment.
    workdir: Where the token store is.
    manifest: Of the token store.
    extend: Whether the corpus must have no further files.

  Raises:
    UserError: the token store was made from other options.
  """
  if manifests.read_manifest(vocabulary_dir(workdir), 'tokenize') is None:
    return False
  # The corpus may no longer be there: only the options for it are compared.
  inputs = dict(manifest['inputs'])
  given = vocabulary_files.of_config(config)
  if given:
    inputs['vocabulary'] = given.hash
  store = store_artifact(config, workdir, inputs)
  new = growth.pending(config, store, manifest) if extend else ''
  if new:
    logger.info('tokenize: %s', new)
    return False
  store.finished()
  logger.info(
    'tokenize: finished before (%d documents), skipped',
    cast(StoreManifest, manifest)['num_documents'],
  )
  return True


def store_artifact(
  config: Config, workdir: str, inputs: Mapping[str, str]
) -> artifacts.Artifact:
  """The token store, made from these inputs."""
  return artifacts.Artifact(
    token_store_dir(workdir),
    'token store',
    'tokenize',
    store_options(config),
    inputs,
    sections={'': ''},
  )


def store_options(config: Config) -> dict[str, Any]:
  """The options of the config that decide the bytes of the store."""
  corpus = options_of(config.corpus)
  del corpus['num_workers'], corpus['beam_options']
  options = {'corpus': corpus, 'vocabulary': config.vocabulary}
  if config.split_groups:
    groups = options_of(config.split_groups)
    del groups['min_jaccard'], groups['groups']  # No pair is compared.
    options['near_duplicates'] = groups
  return options


@dataclasses.dataclass(frozen=True)
class _ShardTask:
  """What a worker needs to write a shard."""

  store: artifacts.Artifact
  shard: int
  num_shards: int
  index: CorpusIndex  # of this shard alone
  words: vocabulary.Vocabulary
  kept_columns: tuple[str, ...]  # of all sources


@functools.lru_cache(maxsize=1)
def _opened(words: vocabulary.Vocabulary) -> vocabulary.Vocabulary:
  """The same object for equal vocabularies, so that a worker opens it once."""
  return words


def _batches(documents: Iterable[Document]) -> Iterator[list[Document]]:
  """Groups of documents to encode in one call, which is faster."""
  batch, size = [], 0
  for document in documents:
    num_bytes = len(document.text.encode())
    if num_bytes > MAX_DOCUMENT_BYTES:
      raise UserError(
        f'Document {document.example_id!r} has {num_bytes} bytes, but a '
        f'document may have at most {MAX_DOCUMENT_BYTES}: cut it into shorter '
        'documents.'
      )
    batch.append(document)
    size += num_bytes
    if len(batch) == BATCH_DOCUMENTS or size >= BATCH_BYTES:
      yield batch
      batch, size = [], 0
  if batch:
    yield batch


def _write_shard(task: _ShardTask) -> StoreMarker:
  """Tokenizes and writes one shard of the corpus, and returns its marker."""
  every = np.ones(len(task.index.split), bool)
  texts = ShardTexts(
    task.index.documents(every), task.index.split, task.index.content_hash
  )
  words = _opened(task.words)
  return write_shard(
    task.store, task.shard, task.num_shards, words, texts, task.kept_columns
  )


@dataclasses.dataclass(frozen=True)
class ShardTexts:
  """The D documents of a shard, in order."""

  documents: Iterable[Document]
  split: np.ndarray  # [D] int, into SPLITS
  content_hash: np.ndarray  # [D] int64, by `hashing.content_hash`


def write_shard(
  store: artifacts.Artifact,
  number: int,
  num_shards: int,
  words: vocabulary.Vocabulary,
  texts: ShardTexts,
  kept_columns: tuple[str, ...] = (),
) -> StoreMarker:
  """Tokenizes documents, writes them as a shard, and returns its marker.

  Raises:
    UserError: a document is too long for the columns of the score table.
  """
  codec = pa.Codec('zstd', compression_level=3)
  documents: list[dict[str, Any]] = []
  tokens: list[np.ndarray] = []
  for batch in _batches(texts.documents):
    encoded = words.encode_all([document.text for document in batch])
    for document, ids in zip(batch, encoded, strict=True):
      position = len(documents)
      data = document.text.encode()
      tokens.append(ids)
      documents.append(
        {
          'example_id': document.example_id,
          'source': document.source,
          'split': int(texts.split[position]),
          'num_tokens': len(ids),
          'num_bytes': len(data),
          'compressed_bytes': len(codec.compress(data, asbytes=True)),
          'content_hash': int(texts.content_hash[position]),
          **{name: document.kept.get(name) for name in kept_columns},
        }
      )
  files = token_store.shard_files(
    number,
    num_shards,
    documents,
    tokens,
    words.size,
    words.token_dtype,
    kept_columns,
  )
  marker = store.finish_shard(
    number,
    num_shards,
    files,
    splits=_totals(documents),
    num_documents=len(documents),
  )
  return cast(StoreMarker, marker)


def _totals(documents: list[dict[str, Any]]) -> dict[str, Totals]:
  """Documents, tokens and bytes of each split."""
  totals = {name: Totals(documents=0, tokens=0, bytes=0) for name in SPLITS}
  for document in documents:
    total = totals[SPLITS[document['split']]]
    total['documents'] += 1
    total['tokens'] += document['num_tokens']
    total['bytes'] += document['num_bytes']
  return totals


def _write(
  config: Config,
  store: artifacts.Artifact,
  index: CorpusIndex,
  words: vocabulary.Vocabulary,
) -> None:
  """Writes the shards that are not done, then the manifest."""
  kept_columns = config.corpus.kept_columns
  totals: list[int] = []
  for generation in index.generations:
    end = generation.num_shards
    totals += [end] * (end - len(totals))
  tasks = [
    _ShardTask(
      store, shard, total, index.restricted_to(shard), words, kept_columns
    )
    for shard, total in enumerate(totals)
  ]
  size = [int(task.index.num_bytes.sum()) for task in tasks]
  work = resumable.ShardWork('tokenize', _write_shard, tasks, 'B', size, totals)
  force_subprocess = sources.needs_worker(
    *(file.config for file in index.files)
  )
  markers = resumable.write_missing_shards(
    store, work, config.corpus.num_workers, force_subprocess
  )
  manifest = finish(store, markers, words, index.bad_records, kept_columns)
  logger.info(
    'tokenize: %s (%s)',
    quantity(manifest['num_tokens'], 'tokens'),
    ', '.join(
      f'{name} {quantity(counts["tokens"])}'
      for name, counts in manifest['splits'].items()
    ),
  )


def finish(
  store: artifacts.Artifact,
  markers: list[StoreMarker],
  words: vocabulary.Vocabulary,
  bad_records: dict[str, int],
  kept_columns: tuple[str, ...] = (),
) -> StoreManifest:
  """Writes the manifest of a store whose shards are done, and returns it.

  Args:
    store: The token store.
    markers: The markers of all shards, in order.
    words: The vocabulary that encoded the texts.
    bad_records: How many documents were left out, by reason.
    kept_columns: Those that sources keep.
  """
  kept: dict[str, Any] = {}
  if kept_columns:
    kept['kept_columns'] = list(kept_columns)
  splits = {
    name: {
      unit: sum(marker['splits'][name][unit] for marker in markers)
      for unit in ('documents', 'tokens', 'bytes')
    }
    for name in SPLITS
  }
  return resumable.finish_from_markers(
    store,
    markers,
    documents_per_shard=[marker['num_documents'] for marker in markers],
    num_documents=sum(s['documents'] for s in splits.values()),
    num_tokens=sum(s['tokens'] for s in splits.values()),
    num_bytes=sum(s['bytes'] for s in splits.values()),
    splits=splits,
    bad_records=bad_records,
    vocab_size=words.size,
    bos_id=words.bos_id,
    eos_id=words.eos_id,
    **kept,
  )
