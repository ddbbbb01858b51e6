"""MinHash signatures of all documents of a token store, as keys of their bands.

Shingles are n-grams of token ids, as in RefinedWeb (arXiv 2306.01116).
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from infoprune_jax.config.selection import NearDuplicatesConfig
from infoprune_jax.corpus import minhash
from infoprune_jax.runtime import artifacts, manifests, resumable
from infoprune_jax.runtime.manifests import Manifest, Marker
from infoprune_jax.runtime.workdir import data_file
from infoprune_jax.tokens.token_store import Shard, TokenStore

_BANDS = 'bands'  # a folder of arrays
_CACHED = 256  # documents whose shingles stay in memory

# The indices of some documents of a shard, ascending int64; it must pickle.
Documents = Callable[[Shard], np.ndarray]


@functools.lru_cache(maxsize=1)
def opened(workdir: str) -> TokenStore:
  """The token store of a workdir, which a worker opens once."""
  return TokenStore.open(workdir)


def numbers(store: TokenStore, documents: Documents) -> np.ndarray:
  """The numbers of some documents in the whole store, [documents] int64."""
  first = np.cumsum([0, *store.documents_per_shard])
  return np.concatenate(
    [
      first[shard] + documents(store.shard(shard))
      for shard in range(store.num_shards)
    ]
  )


@dataclasses.dataclass(frozen=True)
class Signatures:
  """The finished signatures of the documents of a store."""

  workdir: str  # of the store
  path: str
  manifest: Manifest
  bands: int

  def keys(self, band: int, documents: Documents) -> np.ndarray:
    """The keys of some documents in one band, [documents] uint64."""
    store = opened(self.workdir)
    of_shards = []
    for shard in range(store.num_shards):
      name = data_file(shard, store.num_shards, '.npy', _BANDS)
      file = manifests.verified(self.path, self.manifest, name)
      keys = np.load(file, mmap_mode='r')[band]
      of_shards.append(keys[documents(store.shard(shard))])
    return np.concatenate(of_shards)


def write(
  artifact: artifacts.Artifact,
  workdir: str,
  store: TokenStore,
  config: NearDuplicatesConfig,
  num_workers: int,
) -> Signatures:
  """Writes the signatures of shards that have none yet.

  Args:
    artifact: The signatures.
    workdir: Of the token store.
    store: The token store.
    config: The shingles and bands.
    num_workers: Processes; 0 for one per core.
  """
  manifest: Any = artifact.finished()
  if manifest is None:
    artifact = artifact.begin()
    tasks = [
      _ShardTask(artifact, workdir, shard, config)
      for shard in range(store.num_shards)
    ]
    work = resumable.ShardWork(
      f'{artifact.job}: signatures',
      _write_shard,
      tasks,
      'documents',
      store.documents_per_shard,
    )
    markers = resumable.write_missing_shards(artifact, work, num_workers)
    manifest = resumable.finish_from_markers(artifact, markers)
  return Signatures(workdir, artifact.path, manifest, config.bands)


@dataclasses.dataclass(frozen=True)
class _ShardTask:
  """What a worker needs to write one shard."""

  artifact: artifacts.Artifact
  workdir: str
  shard: int
  config: NearDuplicatesConfig


def _write_shard(task: _ShardTask) -> Marker:
  """Writes the keys of the bands of one shard, and returns its marker."""
  store = opened(task.workdir)
  shard = store.shard(task.shard)
  signer = minhash.Signer(task.config)
  count = len(shard.offsets) - 1
  keys = np.zeros((task.config.bands, count), np.uint64)
  for doc_index in range(count):
    tokens = tokens_of(shard, doc_index)
    keys[:, doc_index] = signer.keys(
      minhash.shingles(tokens, task.config.ngram)
    )
  return task.artifact.finish_shard(
    task.shard,
    store.num_shards,
    {
      data_file(task.shard, store.num_shards, '.npy', _BANDS): (
        lambda file: np.save(file, keys)
      )
    },
  )


def tokens_of(shard: Shard, doc_index: int) -> np.ndarray:
  """The token ids of a document, [T]."""
  return shard.tokens[shard.offsets[doc_index] : shard.offsets[doc_index + 1]]


def shingle_reader(
  store: TokenStore, ngram: int
) -> Callable[[int], np.ndarray]:
  """A function that reads the shingles of a document by its number in the store.

  Its result has the distinct shingles in ascending order, [shingles] uint32.
  """
  ends = np.cumsum(store.documents_per_shard)

  @functools.lru_cache(_CACHED)
  def shingles_of(number: int) -> np.ndarray:
    shard = int(np.searchsorted(ends, number, side='right'))
    doc_index = number - int(ends[shard]) + store.documents_per_shard[shard]
    tokens = tokens_of(store.shard(shard), doc_index)
    return np.unique(minhash.shingles(tokens, ngram))

  return shingles_of
