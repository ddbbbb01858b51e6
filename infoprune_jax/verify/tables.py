"""Checks tables: every document once, in store order, with finite sums."""

import math
import posixpath
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any, NamedTuple, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from infoprune_jax.corpus import parquet
from infoprune_jax.runtime import files, manifests
from infoprune_jax.runtime.workdir import data_file, shard_name
from infoprune_jax.score import losses, scorer
from infoprune_jax.selection import join
from infoprune_jax.statistics import heldout_copies, signatures
from infoprune_jax.tokens import folds as folds_lib, tables, token_excess
from infoprune_jax.tokens.token_store import Shard, TokenStore
from infoprune_jax.verify import documents
from infoprune_jax.verify.artifacts import ArtifactStatus

_ROUNDING = 1e-6  # relative: a table adds up tokens, and losses their positions


class _Kind(NamedTuple):
  """What a table of one kind must hold."""

  schema: pa.Schema
  sums: Sequence[str]  # columns of finite numbers
  totals: Sequence[str]  # entries of the manifest to compare
  lowest: float = 0.0  # that a sum may be


_STATISTICS = _Kind(
  tables.STATISTICS_SCHEMA, tables.TOKEN_SUMS, ('num_examples',)
)
_NEAR_DUPLICATES = _Kind(
  tables.NEAR_DUPLICATES_SCHEMA,
  ('near_duplicate_group', 'near_duplicates'),
  ('num_examples',),
)
_HELDOUT_COPIES = _Kind(tables.HELDOUT_COPIES_SCHEMA, (), ('num_examples',))
_DUPLICATED_TEXT = _Kind(
  tables.DUPLICATED_TEXT_SCHEMA,
  ('duplicated_tokens', 'repeated_tokens'),
  ('num_examples', 'duplicated_tokens', 'repeated_tokens'),
)
_CONTAMINATION = _Kind(
  tables.CONTAMINATION_SCHEMA, ('contaminated_ngrams',), ('num_examples',)
)
_LOSSES = _Kind(tables.LOSS_SCHEMA, ('nll_sum',), ())


def score_problems(status: ArtifactStatus, workdir: str) -> Iterator[str]:
  """Yields the problems with a score table."""
  columns = cast(tables.ScoreManifest, status.finished)['columns']
  totals = ('num_examples', 'num_tokens', 'num_bytes')
  kind = _Kind(tables.score_schema(columns), columns, totals)
  is_sound = True
  for problem in _problems(status, workdir, kind, _folds_of(status)):
    is_sound = False
    yield problem
  store = documents.open_store(workdir)
  if store and status.finished['options'].get('token_excess'):
    yield from _excess_problems(status, store)
  # Older tables have no losses, and wrong documents explain wrong ones.
  if store and is_sound and 'losses' in status.finished:
    yield from _losses_problems(status, store)


def _losses_problems(
  status: ArtifactStatus, store: TokenStore
) -> Iterator[str]:
  """Checks that the losses in the manifest are those of its documents."""
  manifest = cast(Any, status.finished)
  where = f'{status.path}/{manifests.MANIFEST}: losses'
  of_shards = []
  for number in range(store.num_shards):
    name = shard_name(number, store.totals[number]) + manifests.DONE
    path = posixpath.join(status.path, name)
    marker = files.read_record(path, status.repair_hint(name))
    of_shards += [marker['losses']] if marker else []
  is_whole = len(of_shards) == store.num_shards
  if is_whole and losses.summary(losses.total(of_shards)) != manifest['losses']:
    yield (
      f'{where} is not what the markers of its shards add up to. '
      f'{status.repair_hint()}'
    )
  nll_columns = [n for n in manifest['columns'] if n.startswith('nll_sum')]
  table = tables.read_table(status.path, ['source', 'num_tokens', *nll_columns])
  names = np.asarray(table['source'].cast(pa.string()))
  for source, figures in manifest['losses']['sources'].items():
    own = table.filter(pa.array(names == source))
    expected = {'documents': own.num_rows}
    got = {'documents': figures['documents']}
    if not manifest['options'].get('max_document_tokens'):
      tokens = int(own['num_tokens'].to_numpy().sum(dtype=np.int64))
      expected['tokens'], got['tokens'] = tokens, figures['tokens']
      for name in nll_columns:
        mean = own[name].to_numpy().sum() / max(tokens, 1)
        loss = figures['losses'][name]['nats_per_token']
        is_close = math.isclose(mean, loss, rel_tol=_ROUNDING)
        expected[name], got[name] = (loss if is_close else mean), loss
    if got != expected:
      yield (
        f'{where} of {source!r} is {got}, but the documents of the table have '
        f'{expected}. {status.repair_hint()}'
      )


def _excess_problems(
  status: ArtifactStatus, store: TokenStore
) -> Iterator[str]:
  """Checks that each token that is scored has a level, and their counts."""
  manifest = cast(tables.ScoreManifest, status.finished)
  folds = manifest['options']['folds']
  counts = np.zeros((folds, token_excess.NUM_LEVELS), np.int64)
  for number in range(store.num_shards):
    name = token_excess.file(number, store.totals[number])
    where = posixpath.join(status.path, name)
    if name not in manifest['files']:
      yield f'{where} is not in the manifest. {status.remake()}'
      continue
    levels = np.load(manifests.verified(status.path, manifest, name))
    shard = store.shard(number)
    fold = folds_lib.fold_of_documents(shard, folds)
    fold = np.repeat(fold, shard.column('num_tokens'))
    if levels.shape != fold.shape or levels.dtype != np.uint8:
      yield (
        f'{where} has {levels.shape} levels of {levels.dtype}, expected '
        f'{fold.shape} of uint8. {status.repair_hint(name)}'
      )
      continue
    wrong = (levels != token_excess.NOT_SCORED) != (fold >= 0)
    if wrong.any():
      yield (
        f'{where}: {wrong.sum()} tokens have a level without a score, or none '
        f'with one; the first is {np.flatnonzero(wrong)[0]}. '
        f'{status.repair_hint(name)}'
      )
    for one in range(folds):
      counts[one] += token_excess.count(levels[fold == one])
  if counts.tolist() != manifest.get('excess_counts'):
    yield (
      f'{status.path}: excess_counts of its manifest are not the counts of its '
      f'levels. {status.repair_hint()}'
    )


def _of_scored(kind: _Kind) -> Callable[[ArtifactStatus, str], Iterator[str]]:
  """A function that yields the problems with a table of scored documents."""
  return lambda status, workdir: _problems(
    status, workdir, kind, _folds_of(status)
  )


statistics_problems = _of_scored(_STATISTICS)
near_duplicates_problems = _of_scored(_NEAR_DUPLICATES)
duplicated_text_problems = _of_scored(_DUPLICATED_TEXT)
contamination_problems = _of_scored(_CONTAMINATION)


def heldout_copies_problems(
  status: ArtifactStatus, workdir: str
) -> Iterator[str]:
  """Yields the problems with a table of near-copies."""
  problems = [*_problems(status, workdir, _HELDOUT_COPIES, _heldout_fold)]
  yield from problems
  store = documents.open_store(workdir)
  if problems or store is None:
    return
  others = signatures.numbers(store, heldout_copies.not_held_out)
  near_copy = tables.read_table(status.path, ('near_copy',))['near_copy']
  copies = near_copy.to_numpy()
  copies = copies[copies != heldout_copies.NONE]
  wrong = np.setdiff1d(copies, others)
  if len(wrong):
    yield (
      f'{status.path} names {wrong[0]} as a near-copy, which is no document that '
      f'is scored or trains the reference. {status.repair_hint()}'
    )
  said = cast(heldout_copies.CopiesManifest, status.finished)['with_near_copy']
  if len(copies) != said:
    yield (
      f'{status.path} has {len(copies)} documents with a near-copy, but its '
      f'manifest says {said}. {status.repair_hint()}'
    )


def joined_problems(status: ArtifactStatus, workdir: str) -> Iterator[str]:
  """Yields the problems with a joined table of the user's."""
  keys = list(tables.STATISTICS_SCHEMA)[:2]
  manifest = cast(join.JoinedManifest, status.finished)
  file = manifests.verified(status.path, manifest, min(manifest['files']))
  schema = pq.read_schema(file)
  expected = {field.name: str(field.type) for field in keys}
  expected |= manifest['columns']
  if {field.name: str(field.type) for field in schema} != expected:
    yield (
      f'{status.path} has the columns {schema.names}, but its manifest says '
      f'{[*expected]}. {status.remake()}'
    )
    return
  kind = _Kind(schema, (), ('num_examples',))
  yield from _problems(status, workdir, kind, _folds_of(status))


def classifier_problems(status: ArtifactStatus, workdir: str) -> Iterator[str]:
  """Yields the problems with the table of a classifier."""
  schema = tables.classifier_schema(posixpath.basename(status.path))
  kind = _Kind(schema, schema.names[2:], ('num_examples',), -math.inf)
  yield from _problems(status, workdir, kind, _folds_of(status))


def loss_problems(status: ArtifactStatus, workdir: str) -> Iterator[str]:
  """Yields the problems with the losses of a trained arm."""
  yield from _problems(status, workdir, _LOSSES, _heldout_fold)


def _folds_of(status: ArtifactStatus) -> Callable[[Shard], np.ndarray]:
  folds = status.finished['options']['folds']
  return lambda shard: folds_lib.fold_of_documents(shard, folds)


def _heldout_fold(shard: Shard) -> np.ndarray:
  """0 for held-out documents, otherwise -1: [documents] int8."""
  fold = np.full(len(shard.column('split')), -1, np.int8)
  fold[shard.documents_of('heldout')] = 0
  return fold


def _problems(
  status: ArtifactStatus,
  workdir: str,
  kind: _Kind,
  fold_of: Callable[[Shard], np.ndarray],
) -> Iterator[str]:
  """Yields the problems with a table.

  Args:
    status: The table.
    workdir: Where its token store is.
    kind: What it must hold.
    fold_of: The fold of each document of a shard, [documents]; the table has
      the documents of fold 0 and above.
  """
  store = documents.open_store(workdir)
  if store is None:
    yield (
      f'{status.path} cannot be compared: there is no sound token store in '
      f'{workdir}. Run --job=tokenize there.'
    )
    return
  counts = dict.fromkeys(kind.totals, 0)
  for number in range(store.num_shards):
    names = [
      data_file(number, total)
      for total in (store.totals[number], store.num_shards)
    ]
    name = next((n for n in names if n in status.finished['files']), names[-1])
    records = yield from _read_shard(status, name, kind.schema)
    if records is None:
      continue
    shard = store.shard(number)
    where = posixpath.join(status.path, name)
    for problem in _shard_problems(
      records, number, shard, fold_of(shard), kind
    ):
      yield f'{where}: {problem}. {status.repair_hint(name)}'
    for unit in kind.totals:
      counts[unit] += (
        records.num_rows
        if unit == 'num_examples'
        else int(records[unit].to_numpy().sum(dtype=np.int64))
      )
  for name in kind.totals:
    if counts[name] != status.finished[name]:
      yield (
        f'{status.path} has {name}={counts[name]}, but its manifest says '
        f'{status.finished[name]}. {status.repair_hint()}'
      )


def _read_shard(
  status: ArtifactStatus, name: str, schema: pa.Schema
) -> Generator[str, None, pa.Table | None]:
  """Reads one file of a table.

  Args:
    status: The table.
    name: The file, as in the manifest.
    schema: The columns that it must have.

  Yields:
    The problem with the file, if there is one.

  Returns:
    The records, or None if there is a problem.
  """
  where = posixpath.join(status.path, name)
  if name not in status.finished['files']:
    yield f'{where} is not in the manifest. {status.remake()}'
    return None
  file = manifests.verified(status.path, status.finished, name)
  records = parquet.read_table(file)
  if not records.schema.equals(schema):
    yield (
      f'{where} has the columns {records.schema.names} of '
      f'{[str(kind) for kind in records.schema.types]}, expected '
      f'{schema.names}. {status.repair_hint(name)}'
    )
    return None
  return records


def _shard_problems(
  rows: pa.Table,
  number: int,
  shard: Shard,
  folds: np.ndarray,
  kind: _Kind,
) -> Iterator[str]:
  """Yields the problems with the documents of one shard, without its path."""
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
  for name in kind.sums:
    values = rows[name].to_numpy()
    bad = np.flatnonzero(~(np.isfinite(values) & (values >= kind.lowest)))
    if len(bad):
      wrong, right = 'not finite', 'a number'
      if kind.lowest == 0.0:
        wrong, right = 'not finite or are negative', '0 or more'
      yield (
        f'{name} of doc_index {actual[bad[0]]} is {values[bad[0]]}, and {len(bad)} in '
        f'all are {wrong}; expected {right}'
      )


def _order_problem(actual: np.ndarray, expected: np.ndarray) -> str:
  """The difference between the examples and the expected ones; '' if none."""
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
  """Yields the first difference of each column from that of the store."""
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
