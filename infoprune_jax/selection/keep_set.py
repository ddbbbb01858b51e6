"""Keep sets: a bit for each document, in token-store order, or a count.

The count of a document is how often an epoch uses it. Only arms with a rule
that repeats examples have counts.
"""

import dataclasses
import functools
import io
import posixpath
from collections.abc import Sequence
from typing import Any, TypedDict, cast

import numpy as np

from infoprune_jax.config.arms import SelectConfig
from infoprune_jax.config.selection import RuleConfig
from infoprune_jax.config.validation import UserError
from infoprune_jax.runtime import artifacts, files, manifests
from infoprune_jax.runtime.manifests import Manifest
from infoprune_jax.runtime.workdir import keep_set_dir
from infoprune_jax.tokens.token_store import TokenStore

FILE = 'keep.npy'  # [ceil(documents / 8)] uint8, most significant bit first
REPEATS_FILE = 'repeats.npy'  # of arms with counts: [documents] uint8
FILES = (FILE, REPEATS_FILE)  # A keep set has one of them.
SUMMARY = 'summary.json'  # what it keeps, for the user and the report


def draws(rules: Sequence[RuleConfig]) -> bool:
  """Whether each seed of training has its own selection."""
  return any(rule.draws for rule in rules)


def selection_name(select: SelectConfig, arm: str, seed: int) -> str:
  """The folder of an arm's keep set.

  There is one for all seeds, unless a rule draws at random or the arm scores
  with its own checkpoint, which is another one for each seed.
  """
  by_seed = draws(select.arms[arm]) or select.scores_itself(arm)
  return f'{arm}-seed-{seed}' if by_seed else arm


def selection_job(select: SelectConfig, arm: str) -> str:
  """The stage that writes the keep sets of an arm."""
  return 'own_scores' if select.scores_itself(arm) else 'select'


class Counts(TypedDict):
  """The size of the kept text; every copy of an example counts."""

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
  """The documents of a token store that an arm trains on."""

  data: np.ndarray  # as in FILE; as in REPEATS_FILE if it `has_repeats`
  documents_per_shard: Sequence[int]
  manifest: KeepSetManifest
  has_repeats: bool = False  # counts in place of bits

  @functools.cached_property
  def _offsets(self) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(self.documents_per_shard)])

  def of_shard(self, shard: int) -> np.ndarray:
    """How often an epoch uses each document of a shard, [documents] uint8."""
    first, last = self._offsets[shard : shard + 2].tolist()
    if self.has_repeats:
      return self.data[first:last]
    # Whole bytes, which begin before the shard does.
    bits = np.unpackbits(self.data[first // 8 : -(-last // 8)])
    return bits[first % 8 :][: last - first]

  def doc_indices(self, shard: int) -> np.ndarray:
    """What an epoch uses of a shard, ascending, int64; a copy is one entry."""
    repeats = self.of_shard(shard)
    used = np.flatnonzero(repeats)
    return np.repeat(used, repeats[used]) if self.has_repeats else used

  def of_shards(self) -> list[np.ndarray]:
    """`doc_indices` of each shard."""
    return [self.doc_indices(n) for n in range(len(self.documents_per_shard))]

  def of_documents(self, index: np.ndarray) -> np.ndarray:
    """How often an epoch uses documents of the store, by number, uint8."""
    if self.has_repeats:
      return self.data[index]
    shift = (7 - index % 8).astype(np.uint8)
    return self.data[index // 8] >> shift & 1

  @classmethod
  def open(
    cls, workdir: str, name: str, store: TokenStore, job: str = 'select'
  ) -> 'KeepSet':
    """The keep set `name` of a workdir, which the stage `job` writes.

    Raises:
      UserError: it is missing, was made for another store, or is damaged.
    """
    path = keep_set_dir(workdir, name)
    manifest = manifests.open_finished(path, f'keep set {name}', job)
    manifests.check_made_from(
      manifest, f'keep set {name}', 'token_store', store.manifest, 'token store'
    )
    manifests.check_sizes(path, manifest, 'keep set', job)
    has_repeats = REPEATS_FILE in manifest['files']
    name = REPEATS_FILE if has_repeats else FILE
    file = posixpath.join(path, name)
    data = files.read_bytes(file)
    manifests.check_content(file, data, manifest['files'][name], job)
    return cls(
      np.load(io.BytesIO(data)),
      store.documents_per_shard,
      cast(KeepSetManifest, manifest),
      has_repeats,
    )


def read_keep_set(
  workdir: str, arm: str, *, seed: int = 0, num_records: int = -1
) -> np.ndarray:
  """What an arm keeps, for other programs.

  Args:
    workdir: Where the stage `select` has run.
    arm: A name in `select.arms`.
    seed: Of the training; it matters for arms that draw at random.
    num_records: How many records the reader's data set has; -1 if unknown.

  Returns:
    [kept] int64, ascending: numbers of documents from 0 in the order of the
    corpus, without the records that `tokenize` left out. Where an arm repeats
    examples, a number is there once for each time that an epoch uses it.

  Raises:
    UserError: there is no such keep set, or the corpus has another number of
      documents than `num_records`.
  """
  store = TokenStore.open(workdir)
  drawn = f'{arm}-seed-{seed}'
  is_drawn = manifests.read_manifest(keep_set_dir(workdir, drawn), 'select')
  kept = KeepSet.open(workdir, drawn if is_drawn else arm, store)
  size = store.manifest['num_documents']
  if num_records not in (-1, size):
    left_out = sum(store.manifest['bad_records'].values())
    raise UserError(
      f'The corpus of {workdir} has {size} documents ({left_out} records were '
      f'left out), expected {num_records}: numbers of documents would name '
      'other records. Read the same files in the same order, or use '
      '--job=export.'
    )
  first = np.cumsum([0, *store.documents_per_shard])
  return np.concatenate(
    [first[n] + kept.doc_indices(n) for n in range(store.num_shards)]
  )


def read_summary(path: str) -> dict[str, Any] | None:
  """The selection report of the keep set in `path`, or None if there is none.

  Raises:
    UserError: it is damaged.
  """
  file = posixpath.join(path, SUMMARY)
  return files.read_record(
    file, f'Delete {file} and run --job=select again: it is made again.'
  )


def check_any(artifact: artifacts.Artifact, data: np.ndarray) -> None:
  """Raises `UserError` if no example is kept."""
  if not data.any():
    raise UserError(
      f'The rules of {artifact.path} keep no example: raise the fraction or '
      'the curve, or widen low and high.'
    )


def write(
  artifact: artifacts.Artifact, used: np.ndarray, **facts: Any
) -> KeepSetManifest:
  """Writes a keep set and its manifest.

  Args:
    artifact: The keep set, begun.
    used: In store order, [documents] bool; or counts, uint8.
    **facts: Further entries of the manifest.

  Raises:
    UserError: no example is kept.
  """
  is_mask = used.dtype == bool
  name, data = (FILE, np.packbits(used)) if is_mask else (REPEATS_FILE, used)
  return write_data(artifact, data, name, num_documents=len(used), **facts)


def write_data(
  artifact: artifacts.Artifact, data: np.ndarray, name: str, **facts: Any
) -> KeepSetManifest:
  """Writes a keep set and its manifest.

  Args:
    artifact: The keep set, begun.
    data: As in the file.
    name: Of the file, one of FILES.
    **facts: Further entries of the manifest, with `num_documents`.

  Raises:
    UserError: no example is kept.
  """
  check_any(artifact, data)
  written = artifact.write_file(
    posixpath.join(artifact.path, name), lambda file: np.save(file, data)
  )
  return cast(KeepSetManifest, artifact.finish({name: written}, **facts))
