"""What is kept, in the order of the token store, as keep sets have it."""

from typing import Any

import numpy as np

from infoprune_jax.config.corpus import SPLITS
from infoprune_jax.selection.arrays import scratch, steps
from infoprune_jax.selection.computed import HERE, Column
from infoprune_jax.selection.examples import Examples
from infoprune_jax.tokens.token_store import TokenStore


def counts(examples: Examples, kept: Column, size: int) -> np.ndarray:
  """How often an epoch uses each document of the store, [size] uint8."""
  [result] = examples.map(_own_counts, HERE, kept, size)
  return result


def _own_counts(examples: Examples, kept: np.ndarray, size: int) -> np.ndarray:
  result = np.zeros(size, np.uint8)
  for some in steps(len(kept)):
    result[examples.index[some]] = kept[some]
  return result


def bits(examples: Examples, kept: Column, size: int) -> np.ndarray:
  """A bit for each document of the store, as in a keep set."""
  result = scratch(-(-size // 8), np.uint8)
  for first, own in examples.map(_own_bits, HERE, kept):
    result[first : first + len(own)] |= own
  return result


def _own_bits(examples: Examples, kept: np.ndarray) -> tuple[int, np.ndarray]:
  """The bits of a part, and the byte of the store's bits at which they begin."""
  index = examples.index  # It ascends.
  if not len(index):
    return 0, np.zeros(0, np.uint8)
  first = int(index[0]) // 8
  mask = np.zeros(int(index[-1]) + 1 - 8 * first, bool)
  for some in steps(len(kept)):
    mask[index[some] - 8 * first] = kept[some]
  return first, np.packbits(mask)


def with_reference_split(
  store: TokenStore, kept: np.ndarray
) -> tuple[dict[str, Any], np.ndarray]:
  """Adds the reference split to a keep set: all documents that are not held out.

  Args:
    store: The token store, of D documents.
    kept: As from `bits`.

  Returns:
    The counts of the added documents, in all and by source; and the new
    keep set.
  """
  shards = [store.shard(number) for number in range(store.num_shards)]
  split, tokens, size = (
    np.concatenate([shard.column(name) for shard in shards])
    for name in ('split', 'num_tokens', 'num_bytes')
  )
  mask = np.unpackbits(kept, count=len(split)).astype(bool)
  added = (split != SPLITS.index('heldout')) & ~mask
  sources = np.concatenate(
    [shard.table('source')['source'].to_pylist() for shard in shards]
  )
  names, code = np.unique(sources[added], return_inverse=True)
  by_source = np.bincount(code, tokens[added], len(names))
  return {
    'examples': int(added.sum()),
    'tokens': int(tokens[added].sum()),
    'bytes': int(size[added].sum()),
    'sources': {
      str(name): int(count)
      for name, count in zip(names, by_source, strict=True)
    },
  }, np.packbits(mask | added)
