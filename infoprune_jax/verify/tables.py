"""Tables of losses: every document once, in store order, with sound sums."""

import posixpath
from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

import numpy as np
import pyarrow as pa

from infoprune_jax.corpus import parquet
from infoprune_jax.runtime import manifests
from infoprune_jax.runtime.workdir import data_file
from infoprune_jax.score import scorer
from infoprune_jax.tokens import folds as folds_lib, tables
from infoprune_jax.tokens.token_store import Shard
from infoprune_jax.verify import documents
from infoprune_jax.verify.artifacts import ArtifactStatus

_TOTALS = ('num_examples', 'num_tokens', 'num_bytes')


def score_problems(status: ArtifactStatus, workdir: str) -> Iterator[str]:
  """What is wrong with a score table."""
  columns = cast(tables.ScoreManifest, status.finished)['columns']
  yield from _problems(
    status,
    workdir,
    _folds_of(status),
    tables.score_schema(columns),
    columns,
    _TOTALS,
  )


def statistics_problems(status: ArtifactStatus, workdir: str) -> Iterator[str]:
  """What is wrong with a table of statistics."""
  yield from _problems(
    status,
    workdir,
    _folds_of(status),
    tables.STATISTICS_SCHEMA,
    tables.TOKEN_SUMS,
    _TOTALS[:1],
  )


def near_duplicates_problems(
  status: ArtifactStatus, workdir: str
) -> Iterator[str]:
  """What is wrong with a table of near-duplicates."""
  yield from _problems(
    status,
    workdir,
    _folds_of(status),
    tables.NEAR_DUPLICATES_SCHEMA,
    ('near_duplicate_group', 'near_duplicates'),
    _TOTALS[:1],
  )


def _folds_of(status: ArtifactStatus) -> Callable[[Shard], np.ndarray]:
  folds = status.finished['options']['folds']
  return lambda shard: folds_lib.fold_of_documents(shard, folds)


def loss_problems(status: ArtifactStatus, workdir: str) -> Iterator[str]:
  """What is wrong with the losses of a trained arm."""

  def expected_folds(shard: Shard) -> np.ndarray:
    heldout = np.full(len(shard.column('split')), -1, np.int8)
    heldout[shard.documents_of('heldout')] = 0
    return heldout

  yield from _problems(
    status, workdir, expected_folds, tables.LOSS_SCHEMA, ('nll_sum',), ()
  )


def _problems(
  status: ArtifactStatus,
  workdir: str,
  expected_folds: Any,
  schema: pa.Schema,
  sums: Sequence[str],
  totals: Sequence[str],
) -> Iterator[str]:
  store = documents.open_store(workdir)
  if store is None:
    yield (
      f'{status.path} cannot be compared: there is no sound token store in '
      f'{workdir}. Run --job=tokenize there.'
    )
    return
  counts = dict.fromkeys(totals, 0)
  for number in range(store.num_shards):
    name = data_file(number, store.num_shards)
    where = posixpath.join(status.path, name)
    if name not in status.finished['files']:
      yield f'{where} is not in the manifest. {status.remake()}'
      continue
    rows = parquet.read_table(
      manifests.verified(status.path, status.finished, name)
    )
    if not rows.schema.equals(schema):
      yield (
        f'{where} has the columns {rows.schema.names} of '
        f'{[str(kind) for kind in rows.schema.types]}, expected '
        f'{schema.names}. {status.repair_hint(name)}'
      )
      continue
    for problem in _shard_problems(
      rows,
      number,
      store.shard(number),
      expected_folds(store.shard(number)),
      sums,
    ):
      yield f'{where}: {problem}. {status.repair_hint(name)}'
    for unit in totals:
      counts[unit] += (
        rows.num_rows
        if unit == 'num_examples'
        else int(rows[unit].to_numpy().sum(dtype=np.int64))
      )
  for name in totals:
    if counts[name] != status.finished[name]:
      yield (
        f'{status.path} has {name}={counts[name]}, its manifest says '
        f'{status.finished[name]}. {status.repair_hint()}'
      )


def _shard_problems(
  rows: pa.Table,
  number: int,
  shard: Shard,
  folds: np.ndarray,
  sums: Sequence[str],
) -> Iterator[str]:
  """What is wrong with the documents of one shard, without where it is."""
  expected = np.flatnonzero(folds >= 0)
  actual = rows['doc_index'].to_numpy()
  if not np.array_equal(actual, expected):
    yield _order_problem(actual, expected)
    return
  if (rows['shard'].to_numpy() != number).any():
    yield f'column shard is not {number} everywhere'
  shared = (*scorer.DOCUMENT_COLUMNS, 'compressed_bytes')
  theirs = shard.table(*shared).take(pa.array(expected))
  columns = {n: theirs[n] for n in shared if n in rows.column_names}
  if 'fold' in rows.column_names:
    columns['fold'] = pa.chunked_array([pa.array(folds[expected])])
  for name, values in columns.items():
    yield from _column_problems(name, actual, rows[name], values)
  for name in sums:
    values = rows[name].to_numpy()
    bad = np.flatnonzero(~(np.isfinite(values) & (values >= 0)))
    if len(bad):
      yield (
        f'{name} of doc_index {actual[bad[0]]} is {values[bad[0]]}, and {len(bad)} in '
        'all are not finite or are negative; expected 0 or more'
      )


def _order_problem(actual: np.ndarray, expected: np.ndarray) -> str:
  """How the examples differ from those that should be there."""
  missing = np.setdiff1d(expected, actual)
  extra = np.setdiff1d(actual, expected)
  values, times = np.unique(actual, return_counts=True)
  twice = values[times > 1]
  details = [
    f'{len(which)} {what} (the first is doc_index {which[0]})'
    for what, which in (
      ('missing', missing),
      ('twice', twice),
      ('that should not be there', extra),
    )
    if len(which)
  ]
  return (
    f'{len(actual)} examples, expected {len(expected)}, each once and in store '
    f'order: {", ".join(details) or "they are out of order"}'
  )


def _column_problems(
  name: str,
  doc_index: np.ndarray,
  ours: pa.ChunkedArray,
  theirs: pa.ChunkedArray,
) -> Iterator[str]:
  """Where a column first differs from the store's."""
  if pa.types.is_dictionary(ours.type):
    value_type = ours.type.value_type
    ours, theirs = ours.cast(value_type), theirs.cast(value_type)
  if ours.equals(theirs.cast(ours.type)):
    return
  values = list(zip(ours.to_pylist(), theirs.to_pylist(), strict=True))
  bad = [number for number, (our, their) in enumerate(values) if our != their]
  yield (
    f'{name} of doc_index {doc_index[bad[0]]} is {values[bad[0]][0]!r}, expected '
    f'{values[bad[0]][1]!r} as in the token store; {len(bad)} differ'
  )
