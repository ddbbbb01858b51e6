"""Checks keep sets: their documents are scored, and their totals are right."""

import io
import posixpath
from collections.abc import Iterator
from typing import Any, cast

import numpy as np

from infoprune_jax.config.corpus import SPLITS
from infoprune_jax.config.selection import MAX_REPEATS
from infoprune_jax.runtime import files, manifests
from infoprune_jax.runtime.workdir import scores_dir
from infoprune_jax.selection import keep_set
from infoprune_jax.tokens import folds as folds_lib
from infoprune_jax.tokens.token_store import TokenStore
from infoprune_jax.verify import documents
from infoprune_jax.verify.artifacts import ArtifactStatus


def problems(status: ArtifactStatus, workdir: str) -> Iterator[str]:
  """Yields the problems with a keep set and its summary."""
  manifest = cast(keep_set.KeepSetManifest, status.finished)
  store = documents.open_store(workdir)
  has_repeats = keep_set.REPEATS_FILE in manifest['files']
  name = keep_set.REPEATS_FILE if has_repeats else keep_set.FILE
  where = posixpath.join(status.path, name)
  if store is None:
    yield (
      f'{where} cannot be compared: there is no sound token store in '
      f'{workdir}. Run --job=tokenize there.'
    )
    return
  stored = np.load(io.BytesIO(files.read_bytes(where)))
  size = sum(store.documents_per_shard)
  num_bytes = size if has_repeats else -(-size // 8)
  if manifest['num_documents'] != size or len(stored) != num_bytes:
    yield (
      f'{where} is over {manifest["num_documents"]} documents in '
      f'{len(stored)} bytes, but the token store has {size}. {status.remake()}'
    )
    return
  if has_repeats:
    repeats = stored
    yield from _repeats_problems(status, repeats, where)
  else:
    unpacked = np.unpackbits(stored)
    if unpacked[size:].any():
      yield f'{where} has bits beyond the last document. {status.remake()}'
    repeats = unpacked[:size]
  yield from _document_problems(status, store, repeats, where)
  yield from _summary_problems(status, workdir)


def _repeats_problems(
  status: ArtifactStatus, repeats: np.ndarray, where: str
) -> Iterator[str]:
  """Checks that no document is used more often than the rule allows."""
  manifest = cast(keep_set.KeepSetManifest, status.finished)
  rule = manifest['options']['rules'][-1]
  most = rule.get('max_repeats', MAX_REPEATS)  # At its default it is left out.
  if repeats.max(initial=0) > most:
    yield (
      f'{where} uses document {int(repeats.argmax())} of the store '
      f'{repeats.max()} times an epoch, but max_repeats is {most}. '
      f'{status.remake()}'
    )


def _document_problems(
  status: ArtifactStatus, store: TokenStore, repeats: np.ndarray, where: str
) -> Iterator[str]:
  """Checks which documents are kept, and their tokens and bytes.

  `repeats` is how often an epoch uses each document, [documents] uint8.
  """
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
  wrong = np.flatnonzero((repeats > 0) & ~allowed)
  if len(wrong):
    yield (
      f'{where} keeps {len(wrong)} documents that were not scored (the first '
      f'is number {wrong[0]} of the store). {status.remake()}'
    )
  for what, times in (('kept', repeats * scored), ('total', scored)):
    times = times.astype(np.int64)
    got = {
      'examples': int(times.sum()),
      'tokens': int((columns['num_tokens'] * times).sum()),
      'bytes': int((columns['num_bytes'] * times).sum()),
    }
    if got != manifest[what]:
      yield (
        f'{where}: {what} is {got}, but its manifest says '
        f'{manifest[what]}. {status.remake()}'
      )


def _scored(store: TokenStore, number: int, folds: int) -> np.ndarray:
  shard = store.shard(number)
  scored = np.zeros(len(shard.column('split')), bool)
  for fold in range(folds):
    scored[folds_lib.scored_documents(shard, fold, folds)] = True
  return scored


def _summary_problems(status: ArtifactStatus, workdir: str) -> Iterator[str]:
  """Checks that the summary belongs to this keep set and these scores."""
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
        f'{name}: {what} is {summary[what]}, but the manifest says '
        f'{manifest[what]}. {repair_hint}'
      )
  scores = manifests.read_manifest(scores_dir(workdir), 'score')
  if scores and summary['scores'] != scores['fingerprint']:
    yield (
      f'{name} was made with the scores {summary["scores"]}, but the table '
      f'here is {scores["fingerprint"]}. {repair_hint}'
    )
