"""Checks a token store: its documents and tokens must match its manifest."""

import posixpath
from collections.abc import Iterator

import numpy as np
import pyarrow as pa

from infoprune_jax.config.corpus import SPLITS
from infoprune_jax.config.validation import UserError
from infoprune_jax.runtime import manifests
from infoprune_jax.runtime.workdir import data_file, shard_name
from infoprune_jax.tokens import growth
from infoprune_jax.tokens.token_store import (
  SCHEMA,
  TOKENS,
  UNIGRAMS,
  TokenStore,
  array_file,
)
from infoprune_jax.verify.artifacts import ArtifactStatus


def open_store(workdir: str) -> TokenStore | None:
  """The token store of a workdir; None if it is missing or damaged."""
  try:
    return TokenStore.open(workdir)
  except UserError:
    return None


def problems(status: ArtifactStatus, workdir: str) -> Iterator[str]:
  """Yields the problems with the content of a store."""
  store = TokenStore.open(workdir)
  try:
    growth.recorded(store.path, store.manifest)
  except UserError as error:
    yield str(error)
  totals = {name: np.zeros(3, np.int64) for name in SPLITS}
  for number in range(store.num_shards):
    shard = store.shard(number)
    if problem := _schema_problem(store, number):
      file = data_file(number, store.totals[number])
      where = posixpath.join(status.path, file)
      yield f'{where}{problem}. {status.repair_hint(file)}'
      continue
    yield from _shard_problems(status, store, number)
    split = shard.column('split')
    for index, name in enumerate(SPLITS):
      inside = split == index
      totals[name] += (
        inside.sum(),
        shard.column('num_tokens')[inside].sum(dtype=np.int64),
        shard.column('num_bytes')[inside].sum(dtype=np.int64),
      )
  for name, got in totals.items():
    units = ('documents', 'tokens', 'bytes')
    for unit, count in zip(units, got.tolist(), strict=True):
      expected = store.manifest['splits'][name][unit]
      if count != expected:
        yield (
          f'{status.path}: the {name} split has {count} {unit}, but its '
          f'manifest says {expected}. {status.repair_hint()}'
        )


def _schema_problem(store: TokenStore, number: int) -> str:
  """How the columns of a shard differ from those expected; '' if not."""
  expected = pa.schema([*SCHEMA, *store.kept_columns])
  schema = store.shard(number).table().schema
  if schema.equals(expected):
    return ''
  return f' has the columns {schema.names}, expected {expected.names}'


def _shard_problems(
  status: ArtifactStatus, store: TokenStore, number: int
) -> Iterator[str]:
  """Checks lengths, documents, ids and token counts of one shard."""
  shard = store.shard(number)
  total = store.totals[number]
  name = shard_name(number, total)
  tokens_file = array_file(TOKENS, number, total)
  lengths = shard.column('num_tokens')
  counted = np.bincount(
    shard.tokens[
      np.repeat(shard.column('split') == SPLITS.index('reference'), lengths)
    ]
    if lengths.sum() == len(shard.tokens)
    else np.zeros(0, np.int64),
    minlength=store.vocab_size,
  )
  unigrams = shard.array(UNIGRAMS)
  for what, got, expected, file in (
    (
      'documents',
      len(lengths),
      store.documents_per_shard[number],
      manifests.MANIFEST,
    ),
    ('tokens', len(shard.tokens), int(lengths.sum()), tokens_file),
    (
      'token ids below the size of the vocabulary',
      int((shard.tokens < store.vocab_size).sum()),
      len(shard.tokens),
      tokens_file,
    ),
    (
      'tokens of the reference split in the token counts',
      int(np.minimum(counted, unigrams).sum()),
      int(np.maximum(counted, unigrams).sum()),
      array_file(UNIGRAMS, number, total),
    ),
  ):
    if got != expected:
      yield (
        f'{posixpath.join(status.path, name)} has {got} {what}, expected '
        f'{expected}. {status.repair_hint(file)}'
      )
