"""Token stores of documents that a test makes up."""

import pathlib

import numpy as np

from infoprune_jax.config import corpus as corpus_config
from infoprune_jax.runtime import artifacts
from infoprune_jax.runtime.workdir import token_store_dir
from infoprune_jax.tokens import token_store
from infoprune_jax.tokens.token_store import TokenStore


def write(
  workdir: pathlib.Path, documents: list[list[int]], num_shards: int
) -> TokenStore:
  """A store of so many shards; every third document is held out."""
  artifact = artifacts.Artifact(
    token_store_dir(str(workdir)), 'token store', 'tokenize', {}, {}
  )
  rows = [
    {
      'example_id': str(n),
      'source': 'mine',
      'split': corpus_config.SPLITS.index(
        'heldout' if n % 3 == 2 else 'scored'
      ),
      'num_tokens': len(ids),
      'num_bytes': len(ids),
      'compressed_bytes': len(ids),
      'content_hash': n,
    }
    for n, ids in enumerate(documents)
  ]
  written, counts = {}, []
  for shard, chosen in enumerate(np.array_split(range(len(rows)), num_shards)):
    counts.append(len(chosen))
    marker = artifact.finish_shard(
      shard,
      num_shards,
      token_store.shard_files(
        shard,
        num_shards,
        [rows[n] for n in chosen],
        [np.array(documents[n], np.int64) for n in chosen],
        1000,
        np.uint16,
      ),
    )
    written |= marker['files']
  artifact.finish(
    written,
    num_shards=num_shards,
    documents_per_shard=counts,
    num_tokens=sum(map(len, documents)),
    vocab_size=1000,
  )
  return TokenStore.open(str(workdir))
