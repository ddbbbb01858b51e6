"""What a keep set keeps of a token store, as token ids for other trainers.

Documents follow each other in store order. A document that an epoch uses n
times is there n times.
"""

import dataclasses
import functools

import numpy as np

from infoprune_jax.runtime.artifacts import Artifact
from infoprune_jax.selection.keep_set import KeepSet
from infoprune_jax.tokens.token_store import TokenStore


@dataclasses.dataclass(frozen=True)
class KeptTokens:
  """The documents of a keep set, each with EOS after it."""

  workdir: str
  selection: str  # the folder of the keep set
  fingerprint: str  # of the keep set, because the caches below go by it
  with_bos: bool  # whether BOS is before each document

  def ends(self, shard: int) -> np.ndarray:
    """Where each document of a shard ends, in tokens, [documents] int64."""
    return _layout(self, shard)[1]

  def read(self, shard: int, first: int, last: int, dtype: str) -> np.ndarray:
    """The tokens of a shard from number `first` up to `last`, [tokens]."""
    store, _ = _opened(self)
    stored = store.shard(shard)
    documents, ends = _layout(self, shard)
    low = int(np.searchsorted(ends, first, 'right'))
    high = int(np.searchsorted(ends, last)) + 1
    begin = int(ends[low - 1]) if low else 0
    inside = ends[low:high] - begin
    tokens = np.full(inside[-1], store.eos_id, dtype)
    for document, end in zip(documents[low:high], inside.tolist(), strict=True):
      start, stop = stored.offsets[document : document + 2].tolist()
      tokens[end - 1 - (stop - start) : end - 1] = stored.tokens[start:stop]
    if self.with_bos:
      tokens[np.concatenate([[0], inside[:-1]])] = store.bos_id
    return tokens[first - begin : last - begin]


@functools.lru_cache(maxsize=1)
def _opened(kept: KeptTokens) -> tuple[TokenStore, KeepSet]:
  store = TokenStore.open(kept.workdir)
  return store, KeepSet.open(kept.workdir, kept.selection, store)


@functools.lru_cache(maxsize=2)
def _layout(kept: KeptTokens, shard: int) -> tuple[np.ndarray, np.ndarray]:
  """The index of each document in its shard, and where it ends, int64."""
  store, chosen = _opened(kept)
  documents = chosen.doc_indices(shard)
  lengths = store.shard(shard).column('num_tokens')[documents].astype(np.int64)
  return documents, np.cumsum(lengths + 1 + kept.with_bos)


@dataclasses.dataclass(frozen=True)
class TokenTask:
  """What a worker needs to write the kept tokens of one shard."""

  artifact: Artifact
  shard: int
  num_shards: int
  kept: KeptTokens
  vocab_size: int
