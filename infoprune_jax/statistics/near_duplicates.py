"""The stage that finds groups of near-duplicate documents. No JAX.

MinHash signatures (by `datasketch`) are cut into bands. Documents whose
signatures agree in all rows of a band are joined, and so are those joined to
them. Shingles are n-grams of token ids, as in RefinedWeb (arXiv 2306.01116).
The defaults for shingles, bands and rows are those of FineWeb (arXiv
2406.17557), for documents with three quarters in common. As in FineWeb, no pair
is compared again, unless the config says so: see `verified_groups`.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np

from infoprune_jax.config.experiment import Config
from infoprune_jax.config.selection import NearDuplicatesConfig
from infoprune_jax.runtime import (
  artifacts,
  files,
  filesystems,
  manifests,
  resumable,
  workers,
)
from infoprune_jax.runtime.hashing import offset, scramble
from infoprune_jax.runtime.manifests import Manifest, Marker
from infoprune_jax.runtime.options import options_of
from infoprune_jax.runtime.progress import Progress, logger
from infoprune_jax.runtime.workdir import data_file, near_duplicates_dir
from infoprune_jax.statistics import verified_groups
from infoprune_jax.tokens import folds as folds_lib, tables
from infoprune_jax.tokens.token_store import TokenStore

JOB = 'near_duplicates'
# The hash of `datasketch`: (a h + b) mod 2^32, the same on any machine.
_SCHEME = 'affine32'
_PIECE = 1024  # shingles hashed at once; their hashes stay in the cache
_BANDS = 'bands'  # a folder of arrays
_CACHED = 256  # documents whose shingles stay in memory


def run(config: Config, workdir: str) -> None:
  """Writes the group of every scored example.

  Raises:
    UserError: the token store is missing, or the table there has other inputs.
  """
  store = TokenStore.open(workdir)
  artifact = describe(config, workdir, {'token_store': store.fingerprint})
  signatures = dataclasses.replace(
    artifact, path=f'{artifact.path}/signatures', kind='signatures'
  )
  with files.lock(artifact.path):
    if artifact.finished():
      logger.info('%s: finished before, skipped', JOB)
      return
    artifact = artifact.begin()
    with workers.shared_pool(config.corpus, workdir, JOB):
      _write_signatures(config, workdir, store, signatures)
      columns = _groups(config, store, signatures)
      _write_table(config, workdir, store, artifact, columns)
    # Signatures are much larger than the table, and no longer needed.
    filesystems.delete_folder(signatures.path)


def describe(
  config: Config, workdir: str, inputs: Mapping[str, str]
) -> artifacts.Artifact:
  """The table, made from these inputs."""
  options = {
    **options_of(config.near_duplicates),
    'scheme': _SCHEME,
    'folds': config.reference.folds,
  }
  return artifacts.Artifact(
    near_duplicates_dir(workdir),
    'table of near-duplicates',
    JOB,
    options,
    inputs,
    sections={'': 'near_duplicates', 'folds': 'reference.folds'},
  )


def shingles(tokens: np.ndarray, ngram: int) -> np.ndarray:
  """A hash of each n-gram, or of the whole text if it is shorter than one.

  Args:
    tokens: [T], ids.
    ngram: Tokens of an n-gram.

  Returns:
    [max(T - ngram + 1, 1)] uint32; [0] if T is 0.
  """
  width = min(ngram, len(tokens))
  hashes = np.zeros(len(tokens) - width + 1 if width else 0, np.uint64)
  for first in range(width):
    ids = tokens[first : first + len(hashes)].astype(np.uint64)
    hashes = scramble(hashes + ids + offset(0))
  return (hashes >> np.uint64(32)).astype(np.uint32)


def band_keys(signatures: np.ndarray, bands: int) -> np.ndarray:
  """A hash of each band of each signature.

  Args:
    signatures: [documents, bands * rows_per_band] uint32.
    bands: Number of bands.

  Returns:
    [bands, documents] uint64.
  """
  banded = signatures.reshape(len(signatures), bands, -1).astype(np.uint64)
  keys = np.zeros(banded.shape[:2], np.uint64)
  for row in range(banded.shape[2]):
    keys = scramble(keys + banded[:, :, row] + offset(0))
  return np.ascontiguousarray(keys.T)


def joined(pairs: np.ndarray, count: int) -> np.ndarray:
  """The connected components of a graph.

  Args:
    pairs: The edges, [2, pairs] int64, of nodes below `count`.
    count: N, the number of nodes.

  Returns:
    The first node of each node's component, [N] int64.
  """
  from scipy import sparse

  group = np.arange(count)
  if pairs.size:
    nodes, numbers = np.unique(pairs, return_inverse=True)
    first, second = numbers.reshape(2, -1)
    graph = sparse.coo_array(
      (np.ones(len(first), np.int8), (first, second)), (len(nodes), len(nodes))
    )
    _, label = sparse.csgraph.connected_components(graph, directed=False)
    _, first_of_label = np.unique(label, return_index=True)
    group[nodes] = nodes[first_of_label[label]]
  return group


class _SignaturesManifest(Manifest):
  examples_per_shard: list[int]


@dataclasses.dataclass(frozen=True)
class _ShardTask:
  """What a worker needs to write one shard."""

  artifact: artifacts.Artifact
  workdir: str
  shard: int
  folds: int
  config: NearDuplicatesConfig
  columns: dict[str, np.ndarray]  # of the table: [documents] each


@functools.lru_cache(maxsize=1)
def _opened(workdir: str) -> TokenStore:
  return TokenStore.open(workdir)


def _doc_indices(store: TokenStore, shard: int, folds: int) -> np.ndarray:
  """The documents of a shard in the table, the same as in the score table."""
  return np.flatnonzero(
    folds_lib.fold_of_documents(store.shard(shard), folds) >= 0
  )


def _sign_shard(task: _ShardTask) -> Marker:
  """Writes the keys of the bands of one shard, and returns its marker."""
  import datasketch

  store = _opened(task.workdir)
  shard = store.shard(task.shard)
  config = task.config
  blank = datasketch.MinHash(
    config.bands * config.rows_per_band,
    seed=config.seed,
    hashfunc=int,  # Shingles are hashes already.
    scheme=_SCHEME,
  )
  doc_indices = _doc_indices(store, task.shard, task.folds)
  signatures = np.zeros((len(doc_indices), len(blank)), np.uint32)
  for number, doc_index in enumerate(doc_indices):
    sketch = blank.copy()
    hashes = shingles(
      shard.tokens[shard.offsets[doc_index] : shard.offsets[doc_index + 1]],
      config.ngram,
    )
    for start in range(0, len(hashes), _PIECE):
      sketch.update_batch(hashes[start : start + _PIECE].tolist())
    signatures[number] = sketch.hashvalues
  keys = band_keys(signatures, config.bands)
  return task.artifact.finish_shard(
    task.shard,
    store.num_shards,
    {
      data_file(task.shard, store.num_shards, '.npy', _BANDS): (
        lambda file: np.save(file, keys)
      )
    },
    num_examples=len(doc_indices),
  )


def _write_signatures(
  config: Config,
  workdir: str,
  store: TokenStore,
  artifact: artifacts.Artifact,
) -> None:
  """Writes the signatures of shards that have none yet."""
  if artifact.finished():
    return
  artifact = artifact.begin()
  folds = config.reference.folds
  tasks = [
    _ShardTask(artifact, workdir, shard, folds, config.near_duplicates, {})
    for shard in range(store.num_shards)
  ]
  work = resumable.ShardWork(
    f'{JOB}: signatures',
    _sign_shard,
    tasks,
    'documents',
    store.documents_per_shard,
  )
  markers = resumable.write_missing_shards(
    artifact, work, config.corpus.num_workers
  )
  resumable.finish_from_markers(
    artifact,
    markers,
    examples_per_shard=[marker['num_examples'] for marker in markers],
  )


def _keys(path: str, manifest: Manifest, band: int) -> np.ndarray:
  """The keys of all documents in one band, [documents] uint64."""
  return np.concatenate(
    [
      np.load(manifests.verified(path, manifest, name), mmap_mode='r')[band]
      for name in sorted(manifest['files'])
    ]
  )


def _pairs(task: tuple[str, Manifest, int]) -> np.ndarray:
  """Neighbours of equal keys in one band, [2, pairs] int64."""
  keys = _keys(*task)
  order = np.argsort(keys, kind='stable')
  same = np.flatnonzero(keys[order[1:]] == keys[order[:-1]])
  return np.stack([order[same], order[same + 1]])


def _buckets(task: tuple[str, Manifest, int]) -> np.ndarray:
  return verified_groups.buckets(_keys(*task))


def _groups(
  config: Config, store: TokenStore, signatures: artifacts.Artifact
) -> dict[str, np.ndarray]:
  """The table's columns: the first document of each group, and its size."""
  manifest = signatures.finished()
  assert manifest is not None  # `_write_signatures` has finished it.
  settings = config.near_duplicates
  tasks = [(signatures.path, manifest, band) for band in range(settings.bands)]
  folds = config.reference.folds
  shards = range(store.num_shards)
  doc_indices = [_doc_indices(store, shard, folds) for shard in shards]
  if settings.min_jaccard or settings.groups == 'star':
    group = _verified(config, store, doc_indices, tasks)
  else:
    count = sum(cast(_SignaturesManifest, manifest)['examples_per_shard'])
    group = _unverified(config, tasks, count)
  logger.info(
    '%s: %d of %d examples are near-duplicates of an earlier one',
    *(JOB, np.count_nonzero(group != np.arange(len(group))), len(group)),
  )
  first = np.cumsum([0, *store.documents_per_shard])
  document = np.concatenate(
    [first[shard] + doc_indices[shard] for shard in shards]
  )
  return {
    'near_duplicate_group': document[group],
    'near_duplicates': np.bincount(group)[group].astype(np.int32),
  }


def _unverified(config: Config, tasks: list[Any], count: int) -> np.ndarray:
  """The first document of each group of documents that bands join."""
  progress = Progress(f'{JOB}: groups', 'bands', len(tasks))
  pairs = np.zeros((2, 0), np.int64)
  for of_band in workers.run_all(_pairs, tasks, config.corpus.num_workers):
    # Most pairs are in many bands.
    pairs = np.unique(np.concatenate([pairs, of_band], axis=1), axis=1)
    progress.add(1)
  progress.finish()
  return joined(pairs, count)


def _verified(
  config: Config,
  store: TokenStore,
  doc_indices: Sequence[np.ndarray],
  tasks: list[Any],
) -> np.ndarray:
  """The first document of each group of documents that are compared."""
  settings, num_workers = config.near_duplicates, config.corpus.num_workers
  ends = np.cumsum([len(some) for some in doc_indices])

  @functools.lru_cache(_CACHED)
  def shingles_of(number: int) -> np.ndarray:
    shard_index = int(np.searchsorted(ends, number, side='right'))
    shard = store.shard(shard_index)
    doc_index = doc_indices[shard_index][number - ends[shard_index]]
    tokens = shard.tokens[
      shard.offsets[doc_index] : shard.offsets[doc_index + 1]
    ]
    return np.unique(shingles(tokens, settings.ngram))

  texts = np.concatenate(
    [
      store.shard(shard_index).column('content_hash')[some]
      for shard_index, some in enumerate(doc_indices)
    ]
  )
  _, first, inverse = np.unique(texts, return_index=True, return_inverse=True)
  groups = verified_groups.Groups(
    shingles_of, settings.min_jaccard, settings.groups == 'star'
  )
  by_band = list(workers.run_all(_buckets, tasks, num_workers))
  return groups.find(by_band, first[inverse], f'{JOB}: compared')


def _write_shard(task: _ShardTask) -> Marker:
  """Writes one shard of the table, and returns its marker."""
  store = _opened(task.workdir)
  made = tables.shard_table(
    tables.NEAR_DUPLICATES_SCHEMA,
    task.shard,
    _doc_indices(store, task.shard, task.folds),
    store.shard(task.shard).table('num_tokens'),
    **task.columns,
  )
  return tables.write_shard(task.artifact, made, task.shard, store.num_shards)


def _write_table(
  config: Config,
  workdir: str,
  store: TokenStore,
  artifact: artifacts.Artifact,
  columns: dict[str, np.ndarray],
) -> None:
  """Writes the missing shards, then the manifest."""
  folds = config.reference.folds
  tasks, start = [], 0
  for shard in range(store.num_shards):
    end = start + len(_doc_indices(store, shard, folds))
    own = {name: values[start:end] for name, values in columns.items()}
    tasks.append(
      _ShardTask(artifact, workdir, shard, folds, config.near_duplicates, own)
    )
    start = end
  groups = columns['near_duplicate_group']
  work = resumable.ShardWork(
    JOB, _write_shard, tasks, 'documents', store.documents_per_shard
  )
  markers = resumable.write_missing_shards(
    artifact, work, config.corpus.num_workers
  )
  resumable.finish_from_markers(
    artifact,
    markers,
    num_examples=len(groups),
    num_groups=len(np.unique(groups)),
  )
