"""Keep sets: one bit an example, in token-store order."""

import dataclasses
import functools
import io
import posixpath
from collections.abc import Sequence
from typing import Any, TypedDict, cast

import numpy as np

from infoprune_jax.config.selection import RuleConfig
from infoprune_jax.config.validation import UserError
from infoprune_jax.runtime import artifacts, files, manifests
from infoprune_jax.runtime.manifests import Manifest
from infoprune_jax.runtime.workdir import keep_set_dir
from infoprune_jax.tokens.token_store import TokenStore

FILE = 'keep.npy'  # [ceil(documents / 8)] uint8, most significant bit first
SUMMARY = 'summary.json'  # what it keeps, for the user and the report
# Kinds that draw anew for each seed of the training.
DRAWN = ('random', 'sample')


def draws(rules: Sequence[RuleConfig]) -> bool:
  """Whether each seed of the training gets a selection of its own."""
  return any(rule.keep in DRAWN for rule in rules)


def selection_name(rules: Sequence[RuleConfig], arm: str, seed: int) -> str:
  """The folder of an arm's keep set: one for all seeds unless rules draw."""
  return f'{arm}-seed-{seed}' if draws(rules) else arm


class Counts(TypedDict):
  """How much text there is."""

  examples: int
  tokens: int
  bytes: int


class KeepSetManifest(Manifest):
  """A finished keep set."""

  num_documents: int
  kept: Counts
  total: Counts


@dataclasses.dataclass(frozen=True, eq=False)
class KeepSet:
  """Which documents of a token store an arm trains on."""

  bits: np.ndarray  # [ceil(documents / 8)] uint8, in store order
  documents_per_shard: Sequence[int]
  manifest: KeepSetManifest

  @functools.cached_property
  def _offsets(self) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(self.documents_per_shard)])

  def doc_indices(self, shard: int) -> np.ndarray:
    """The documents of one shard that are kept, ascending, int64."""
    first, last = self._offsets[shard : shard + 2].tolist()
    # Whole bytes, which begin before the shard does.
    ones = np.flatnonzero(np.unpackbits(self.bits[first // 8 : -(-last // 8)]))
    doc_indices = ones - first % 8
    return doc_indices[(doc_indices >= 0) & (doc_indices < last - first)]

  def holds(self, index: np.ndarray) -> np.ndarray:
    """Whether documents are kept, by their numbers in the store, bool."""
    shift = (7 - index % 8).astype(np.uint8)
    return (self.bits[index // 8] >> shift & 1).astype(bool)

  @classmethod
  def open(cls, workdir: str, name: str, store: TokenStore) -> 'KeepSet':
    """The keep set `name` of a workdir.

    Raises:
      UserError: it is missing, was made for another store, or is damaged.
    """
    path = keep_set_dir(workdir, name)
    manifest = manifests.open_finished(path, f'keep set {name}', 'select')
    manifests.check_made_from(
      manifest, f'keep set {name}', 'token_store', store.manifest, 'token store'
    )
    manifests.check_sizes(path, manifest, 'keep set', 'select')
    file = posixpath.join(path, FILE)
    data = files.read_bytes(file)
    manifests.check_content(file, data, manifest['files'][FILE], 'select')
    bits = np.load(io.BytesIO(data))
    return cls(bits, store.documents_per_shard, cast(KeepSetManifest, manifest))


def read_summary(path: str) -> dict[str, Any] | None:
  """The selection report of the keep set in `path`, or None if there is none.

  Raises:
    UserError: it is damaged.
  """
  file = posixpath.join(path, SUMMARY)
  return files.read_record(
    file, f'Delete {file} and run --job=select again: it is made again.'
  )


def check_any(artifact: artifacts.Artifact, mask: np.ndarray) -> None:
  """Raises `UserError` where nothing is kept."""
  if not mask.any():
    raise UserError(
      f'The rules of {artifact.path} keep no example: raise the fraction, or '
      'widen low and high.'
    )


def write(
  artifact: artifacts.Artifact, mask: np.ndarray, **facts: Any
) -> KeepSetManifest:
  """Writes a keep set and its manifest.

  Args:
    artifact: Where, and what decided it.
    mask: [documents] bool, in store order.
    **facts: For the manifest.

  Raises:
    UserError: nothing is kept.
  """
  check_any(artifact, mask)
  written = artifact.write_file(
    posixpath.join(artifact.path, FILE),
    lambda file: np.save(file, np.packbits(mask)),
  )
  manifest = artifact.finish({FILE: written}, num_documents=len(mask), **facts)
  return cast(KeepSetManifest, manifest)
