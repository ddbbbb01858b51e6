"""Keep sets: what they keep is scored, and is as much as they say."""

import io
import posixpath
from collections.abc import Iterator
from typing import Any, cast

import numpy as np

from infoprune_jax.config.corpus import SPLITS
from infoprune_jax.runtime import files, manifests
from infoprune_jax.runtime.workdir import scores_dir
from infoprune_jax.selection import keep_set
from infoprune_jax.tokens import folds as folds_lib
from infoprune_jax.tokens.token_store import TokenStore
from infoprune_jax.verify import documents
from infoprune_jax.verify.artifacts import ArtifactStatus


def problems(status: ArtifactStatus, workdir: str) -> Iterator[str]:
  """What is wrong with a keep set and its summary."""
  manifest = cast(keep_set.KeepSetManifest, status.finished)
  store = documents.open_store(workdir)
  where = posixpath.join(status.path, keep_set.FILE)
  if store is None:
    yield (
      f'{where} cannot be compared: there is no sound token store in '
      f'{workdir}. Run --job=tokenize there.'
    )
    return
  bits = np.load(io.BytesIO(files.read_bytes(where)))
  size = sum(store.documents_per_shard)
  if manifest['num_documents'] != size or len(bits) != -(-size // 8):
    yield (
      f'{where} is over {manifest["num_documents"]} documents in '
      f'{len(bits)} bytes, the token store has {size}. {status.remake()}'
    )
    return
  unpacked = np.unpackbits(bits).astype(bool)
  if unpacked[size:].any():
    yield f'{where} keeps what is beyond the last document. {status.remake()}'
  kept = unpacked[:size]
  yield from _document_problems(status, store, kept, where)
  yield from _summary_problems(status, workdir)


def _document_problems(
  status: ArtifactStatus, store: TokenStore, kept: np.ndarray, where: str
) -> Iterator[str]:
  """Which documents are kept, and how many tokens and bytes."""
  manifest = cast(keep_set.KeepSetManifest, status.finished)
  folds = manifest['options']['folds']
  rules = manifest['options']['rules']
  everything = any(rule['keep'] == 'all_plus_reference' for rule in rules)
  columns: dict[str, Any] = {}
  for name in ('split', 'num_tokens', 'num_bytes'):
    columns[name] = np.concatenate(
      [store.shard(p).column(name) for p in range(store.num_shards)]
    )
  scored = np.concatenate(
    [_scored(store, p, folds) for p in range(store.num_shards)]
  )
  allowed = (
    columns['split'] != SPLITS.index('heldout') if everything else scored
  )
  if (kept & ~allowed).any():
    yield (
      f'{where} keeps {int((kept & ~allowed).sum())} documents that were not '
      f'scored (the first is number {np.flatnonzero(kept & ~allowed)[0]} of '
      f'the store). {status.remake()}'
    )
  for what, mask in (('kept', kept & scored), ('total', scored)):
    got = {
      'examples': int(mask.sum()),
      'tokens': int(columns['num_tokens'][mask].sum(dtype=np.int64)),
      'bytes': int(columns['num_bytes'][mask].sum(dtype=np.int64)),
    }
    if got != manifest[what]:
      yield (
        f'{where}: {what} is {got}, its manifest says '
        f'{manifest[what]}. {status.remake()}'
      )


def _scored(store: TokenStore, number: int, folds: int) -> np.ndarray:
  shard = store.shard(number)
  scored = np.zeros(len(shard.column('split')), bool)
  for fold in range(folds):
    scored[folds_lib.scored_documents(shard, fold, folds)] = True
  return scored


def _summary_problems(status: ArtifactStatus, workdir: str) -> Iterator[str]:
  """The selection report is of this keep set and of the scores there are."""
  manifest = cast(keep_set.KeepSetManifest, status.finished)
  summary = keep_set.read_summary(status.path)
  name = posixpath.join(status.path, keep_set.SUMMARY)
  repair_hint = f'Delete {name} and run --job=select again.'
  if summary is None:
    yield f'{name} is missing. {repair_hint}'
    return
  for what in ('kept', 'total'):
    if summary[what] != manifest[what]:
      yield (
        f'{name}: {what} is {summary[what]}, the manifest says '
        f'{manifest[what]}. {repair_hint}'
      )
  scores = manifests.read_manifest(scores_dir(workdir), 'score')
  if scores and summary['scores'] != scores['fingerprint']:
    yield (
      f'{name} was made with the scores {summary["scores"]}, but the table '
      f'here is {scores["fingerprint"]}. {repair_hint}'
    )
