"""The excess loss of each token, and which tokens count in the loss of an arm.

The excess is the NLL by a model of `reference.extra_models` minus that by the
reference model: how much the one has to learn that the other knows. Tokens with
a high excess are those that Rho-1 trains on (arXiv 2404.07965).

Beside the score table, `token_excess/part-*.npy` has a level for each token of
a shard of the token store, in its order: uint8, 0 for documents that are not
scored.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import numpy as np

from infoprune_jax.runtime import manifests
from infoprune_jax.runtime.hashing import uniform
from infoprune_jax.runtime.workdir import data_file, scores_dir
from infoprune_jax.tokens import folds as folds_lib
from infoprune_jax.tokens.token_store import TokenStore

FOLDER = 'token_excess'
NUM_LEVELS = 256
NOT_SCORED = 0
# Levels are closest near zero, where most tokens are: 0.0009 nats apart. At 1
# nat they are 0.06 nats apart. An excess beyond 18 nats has the last level.
_ZERO, _SCALE, _FINENESS = 128, 18.0, 64.0
_SEED = 0  # of the order of tokens with one level
_MAX_SHARD_TOKENS = 1 << 40


def file(shard: int, num_shards: int) -> str:
  """The path of the levels of a shard in the score table."""
  return data_file(shard, num_shards, '.npy', FOLDER)


def levels(excess: np.ndarray) -> np.ndarray:
  """The level of each excess, from 1 to 255: ascending, 128 for zero.

  Args:
    excess: [tokens] float32, nats.

  Returns:
    [tokens] uint8.

  >>> levels(np.array([-50.0, -0.1, 0.0, 0.001, 0.1, 1.0, 50.0])).tolist()
  [1, 92, 128, 129, 164, 203, 255]
  """
  size = np.rint(_SCALE * np.log1p(_FINENESS * np.abs(excess)))
  most = NUM_LEVELS - 1 - _ZERO
  return (_ZERO + np.copysign(np.minimum(size, most), excess)).astype(np.uint8)


def count(of_tokens: np.ndarray) -> np.ndarray:
  """The number of tokens at each level, [NUM_LEVELS] int64."""
  return np.bincount(of_tokens, minlength=NUM_LEVELS)


def cut(counts: np.ndarray, fraction: float) -> tuple[int, float]:
  """Where the tokens with the highest levels begin.

  Args:
    counts: [NUM_LEVELS] int, the number of tokens at each level.
    fraction: Of all tokens, in (0, 1].

  Returns:
    The lowest level of which tokens belong to the fraction, and the fraction of
    the tokens at this level that do.

  >>> cut(np.array([0, 4, 4, 2]), 0.5)
  (2, 0.75)
  """
  wanted = fraction * counts.sum()
  at_least = np.cumsum(counts[::-1])[::-1]
  level = int(np.flatnonzero(at_least >= wanted)[-1])
  above = at_least[level] - counts[level]
  return level, float((wanted - above) / max(counts[level], 1))


@dataclasses.dataclass(frozen=True, eq=False)
class CountedTokens:
  """The tokens that count in a loss: a fraction of all that were scored.

  Those with the highest excess count. With two folds, the fraction is taken
  within each fold, because the excess is by other models. Among tokens of one
  level, a hash of their place decides.
  """

  store: TokenStore
  path: str  # of the score table
  manifest: Mapping[str, Any]  # of the score table
  level: np.ndarray  # [folds] uint8, from `cut`
  ties: np.ndarray  # [folds] float64, from `cut`

  @classmethod
  def open(
    cls, workdir: str, store: TokenStore, fraction: float
  ) -> 'CountedTokens':
    """The tokens that count, by the score table of a workdir.

    Raises:
      UserError: the table is missing, or was made for another token store.
    """
    path, kind = scores_dir(workdir), 'score table'
    manifest: Any = manifests.open_finished(path, kind, 'score')
    manifests.check_made_from(
      manifest, kind, 'token_store', store.manifest, 'token store'
    )
    manifests.check_sizes(path, manifest, kind, 'score')
    counts = np.array(manifest['excess_counts'])
    level, ties = zip(*[cut(one, fraction) for one in counts], strict=True)
    return cls(store, path, manifest, np.array(level, np.uint8), np.array(ties))

  def __call__(
    self, shard: int, doc_index: np.ndarray, token: np.ndarray
  ) -> np.ndarray:
    """Whether tokens of a shard count, [tokens] bool.

    Args:
      shard: The shard.
      doc_index: The document of each, [tokens] int.
      token: Its place in `Shard.tokens`, [tokens] int.
    """
    own, fold = self._levels(shard)[token], self._fold(shard)[doc_index]
    counts = own > self.level[fold]
    tied = np.flatnonzero(own == self.level[fold])
    order = uniform(shard * _MAX_SHARD_TOKENS + token[tied], _SEED)
    counts[tied] = order < self.ties[fold[tied]]
    return counts

  @functools.lru_cache(maxsize=64)  # noqa: B019  As those of the token store.
  def _levels(self, shard: int) -> np.ndarray:
    name = file(shard, self.store.totals[shard])
    local = manifests.verified(self.path, self.manifest, name)
    return np.load(local, mmap_mode='r')

  @functools.lru_cache(maxsize=64)  # noqa: B019
  def _fold(self, shard: int) -> np.ndarray:
    folds = self.manifest['options']['folds']
    return folds_lib.fold_of_documents(self.store.shard(shard), folds)
