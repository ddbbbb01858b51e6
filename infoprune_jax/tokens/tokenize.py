"""The stage that turns a corpus into a vocabulary and a token store."""

import dataclasses
import functools
import time
from collections.abc import Iterable, Iterator
from typing import Any, cast

import numpy as np
import pyarrow as pa

from infoprune_jax.config.corpus import SPLITS
from infoprune_jax.config.experiment import Config
from infoprune_jax.config.validation import UserError
from infoprune_jax.corpus import corpus_index, sources
from infoprune_jax.corpus.corpus_index import CorpusIndex
from infoprune_jax.corpus.sources import Document
from infoprune_jax.runtime import (
  artifacts,
  files,
  hashing,
  manifests,
  resumable,
  workers,
)
from infoprune_jax.runtime.options import options_of
from infoprune_jax.runtime.progress import Progress, alive, logger
from infoprune_jax.runtime.workdir import token_store_dir, vocabulary_dir
from infoprune_jax.tokens import token_store, vocabulary, vocabulary_files
from infoprune_jax.tokens.token_store import StoreManifest, StoreMarker, Totals

# The score table counts tokens and bytes of a document in int32.
MAX_DOCUMENT_BYTES = 2**31 - 1
# The most that is encoded in one call. More is not faster, and takes memory.
BATCH_DOCUMENTS, BATCH_BYTES = 256, 1 << 20


def run(config: Config, workdir: str) -> None:
  """Tokenizes the corpus, or returns at once where that is done.

  Raises:
    UserError: the input is bad, or what is there was made from another.
  """
  path = token_store_dir(workdir)
  with files.lock(path):
    if _is_finished(config, workdir):
      return
    with workers.shared_pool(config.corpus, workdir, 'tokenize'):
      index = corpus_index.build(config.corpus)
      words = _vocabulary(config, workdir, index)
      store = _token_store(
        config,
        path,
        {'corpus': index.fingerprint(), 'vocabulary': words.hash},
      )
      _write(config, store, index, words)


def _is_finished(config: Config, workdir: str) -> bool:
  """Whether there is a token store of this config, with its vocabulary.

  Raises:
    UserError: the token store was made from something else.
  """
  path = token_store_dir(workdir)
  manifest = manifests.read_manifest(path, 'tokenize')
  vocabulary_manifest = manifests.read_manifest(
    vocabulary_dir(workdir), 'tokenize'
  )
  if manifest is None or vocabulary_manifest is None:
    return False
  # The corpus may no longer be there: only the options for it are compared.
  inputs = dict(manifest['inputs'])
  if config.vocabulary.path:
    inputs['vocabulary'] = vocabulary_files.open_given(config.vocabulary).hash
  _token_store(config, path, inputs).finished()
  logger.info(
    'tokenize: finished before (%d documents), skipped',
    cast(StoreManifest, manifest)['num_documents'],
  )
  return True


def _token_store(
  config: Config, path: str, inputs: dict[str, str]
) -> artifacts.Artifact:
  return artifacts.Artifact(
    path, 'token store', 'tokenize', store_options(config), inputs
  )


def store_options(config: Config) -> dict[str, Any]:
  """What of the config decides the bytes of the store."""
  corpus = options_of(config.corpus)
  del corpus['num_workers'], corpus['beam_options']
  return {'corpus': corpus, 'vocabulary': config.vocabulary}


def _vocabulary(
  config: Config, workdir: str, index: CorpusIndex
) -> vocabulary.Vocabulary:
  """The vocabulary: read from the workdir, given by the config, or trained."""
  given = None
  if config.vocabulary.path:
    given = vocabulary_files.open_given(config.vocabulary)
    _warn(given, config.vocabulary.path)
  inputs = {'model': given.hash} if given else {'corpus': index.fingerprint()}
  path = vocabulary_dir(workdir)
  artifact = artifacts.Artifact(
    path, 'vocabulary', 'tokenize', config.vocabulary, inputs
  )
  if artifact.finished():
    return vocabulary.Vocabulary.load(path)
  words = given or _train_vocabulary(config, index)
  words.save(artifact)
  return words


def _warn(given: vocabulary.Vocabulary, path: str) -> None:
  """Warns if a given vocabulary changes text, or has odd special tokens."""
  if given.is_lossy:
    logger.warning(
      'tokenize: the vocabulary %s does not keep every text as it is (it '
      'normalises, or has no byte fallback): lost text is not scored',
      path,
    )
  for id_ in given.reachable_from_text:
    logger.warning(
      'tokenize: the id %d marks where documents start or end, but the '
      'vocabulary %s also encodes some text with it',
      id_,
      path,
    )


def _train_vocabulary(
  config: Config, index: CorpusIndex
) -> vocabulary.Vocabulary:
  """Trains a vocabulary on a seeded sample of the reference split."""
  start = time.monotonic()
  reference = np.flatnonzero(index.split == corpus_index.REFERENCE)
  keys = hashing.mix(index.content_hash[reference], config.corpus.seed + 1)
  order = reference[np.argsort(keys, kind='stable')]
  size = index.num_bytes[order]
  drawn = order[np.cumsum(size) - size < config.vocabulary.train_bytes]
  chosen = np.zeros(len(index.split), bool)
  chosen[drawn] = True

  progress = Progress('tokenize: vocabulary', 'B', size[: len(drawn)].sum())

  def lines() -> Iterator[str]:
    for document in index.documents(chosen):
      yield from document.text.splitlines(keepends=True)
      progress.add(len(document.text.encode()))

  kind = config.vocabulary.type
  with alive(
    f'tokenize: trains a {kind} vocabulary of {config.vocabulary.size}'
  ):
    words = vocabulary.train(config.vocabulary, lines())
  logger.info(
    'tokenize: trained a vocabulary of %d on %d reference documents in %.0f s',
    words.size,
    len(drawn),
    time.monotonic() - start,
  )
  return words


@dataclasses.dataclass(frozen=True)
class _ShardTask:
  """What a worker needs to write a shard."""

  store: artifacts.Artifact
  shard: int
  num_shards: int
  index: CorpusIndex  # of this part alone
  words: vocabulary.Vocabulary


@functools.lru_cache(maxsize=1)
def _opened(words: vocabulary.Vocabulary) -> vocabulary.Vocabulary:
  """The same object for equal vocabularies, so that a worker opens it once."""
  return words


def _batches(documents: Iterable[Document]) -> Iterator[list[Document]]:
  """Documents to encode in one call, which is faster than one at a time."""
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
  """Tokenizes and writes one part of the corpus, and returns its marker."""
  every = np.ones(len(task.index.split), bool)
  texts = ShardTexts(
    task.index.documents(every), task.index.split, task.index.content_hash
  )
  words = _opened(task.words)
  return write_shard(task.store, task.shard, task.num_shards, words, texts)


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
        }
      )
  files = token_store.shard_files(
    number, num_shards, documents, tokens, words.size, words.token_dtype
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
  num_shards = config.corpus.num_shards
  store = store.begin()
  tasks = [
    _ShardTask(store, shard, num_shards, index.restricted_to(shard), words)
    for shard in range(num_shards)
  ]
  size = [int(task.index.num_bytes.sum()) for task in tasks]
  work = resumable.ShardWork('tokenize', _write_shard, tasks, 'B', size)
  force_subprocess = sources.needs_worker(
    *(file.config for file in index.files)
  )
  markers = resumable.write_missing_shards(
    store, work, config.corpus.num_workers, force_subprocess
  )
  manifest = finish(store, markers, words, index.bad_records)
  logger.info('tokenize: %d tokens', manifest['num_tokens'])


def finish(
  store: artifacts.Artifact,
  markers: list[StoreMarker],
  words: vocabulary.Vocabulary,
  bad_records: dict[str, int],
) -> StoreManifest:
  """Writes the manifest of a store whose shards are done, and returns it.

  Args:
    store: The token store.
    markers: The markers of all shards, in order.
    words: The vocabulary that encoded the texts.
    bad_records: How many documents were left out, by reason.
  """
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
  )
