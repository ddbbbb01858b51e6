"""The tables of scores and of statistics: Parquet with one document per example.

Both are in store order and hold the same examples. They hold sums and counts,
never means. Any Parquet reader opens them.
"""

from collections.abc import Callable, Sequence
from typing import Any, TypedDict

import numpy as np
import pyarrow as pa

from infoprune_jax.corpus import parquet
from infoprune_jax.runtime import manifests
from infoprune_jax.runtime.manifests import Manifest, Marker
from infoprune_jax.runtime.workdir import data_file

LOSS_SCHEMA = pa.schema(
  [
    ('shard', pa.int32()),
    ('doc_index', pa.int64()),
    ('example_id', pa.string()),
    ('source', pa.dictionary(pa.int32(), pa.string())),
    ('num_tokens', pa.int32()),
    ('num_bytes', pa.int32()),
    ('nll_sum', pa.float64()),  # nats
    ('content_hash', pa.int64()),
  ]
)
# Sums over the tokens of a document: -log frequency in nats, the frequency and
# its square. Frequencies are of the text that the reference model trains on.
TOKEN_SUMS = (
  'unigram_nll_sum',
  'unigram_frequency_sum',
  'unigram_frequency_square_sum',
)
STATISTICS_SCHEMA = pa.schema(
  [
    ('shard', pa.int32()),
    ('doc_index', pa.int64()),
    *((name, pa.float64()) for name in TOKEN_SUMS),
    ('compressed_bytes', pa.int32()),
  ]
)

NEAR_DUPLICATES_SCHEMA = pa.schema(
  [
    ('shard', pa.int32()),
    ('doc_index', pa.int64()),
    # The number in the store of the first document of its group, and how many
    # examples the group has; one where nothing is like it.
    ('near_duplicate_group', pa.int64()),
    ('near_duplicates', pa.int32()),
  ]
)


def score_schema(columns: Sequence[str]) -> pa.Schema:
  """Of a table by several models.

  Args:
    columns: The NLL of each, in nats; the first is 'nll_sum'.
  """
  return pa.schema(
    [
      *LOSS_SCHEMA,
      *((name, pa.float64()) for name in columns[1:]),
      ('fold', pa.int8()),  # of the reference model that scored it
    ]
  )


def example_schema(columns: Sequence[str]) -> pa.Schema:
  """Scores and statistics, side by side."""
  return pa.schema([*score_schema(columns), *list(STATISTICS_SCHEMA)[2:]])


def rule_schema(columns: Sequence[str]) -> pa.Schema:
  """What a rule may read: also the groups of near-duplicates."""
  return pa.schema(
    [*example_schema(columns), *list(NEAR_DUPLICATES_SCHEMA)[2:]]
  )


def shard_table(
  schema: pa.Schema,
  shard_index: int,
  doc_indices: np.ndarray,
  documents: pa.Table,
  **sums: np.ndarray,
) -> pa.Table:
  """The rows of a table for documents of one shard.

  Args:
    schema: Which columns, in which order.
    shard_index: The shard of the store.
    doc_indices: Which documents of it, [documents] int64.
    documents: The store's own columns, of all documents of the shard.
    **sums: Further columns, [documents] each.
  """
  taken = documents.take(pa.array(doc_indices))
  columns = {
    'shard': np.full(len(doc_indices), shard_index, np.int32),
    'doc_index': doc_indices,
    **{name: taken[name] for name in taken.column_names},
    **sums,
  }
  return pa.table([columns[name] for name in schema.names], schema=schema)


# Small row groups: a reader of a few examples need not read their whole shard.
GROUP_ROWS = 1 << 17


def write(made: pa.Table, file: Any) -> None:
  """Writes a shard as Parquet."""
  parquet.write_table(
    made,
    file,
    row_group_size=GROUP_ROWS,
    # Ascending numbers: differences take almost no space, and are read ten
    # times as fast.
    use_dictionary=[name for name in made.column_names if name != 'doc_index'],
    column_encoding={'doc_index': 'DELTA_BINARY_PACKED'},
  )


class TableMarker(Marker):
  """A part of a table that is done."""

  num_examples: int


class ScoreMarker(TableMarker):
  """A part of the score table that is done."""

  num_tokens: int
  num_bytes: int
  flops: float


class TrainingFacts(TypedDict):
  """What it took to train a model."""

  num_params: int
  step: int
  tokens: int
  flops: float


class TableManifest(Manifest):
  """A finished table of statistics or near-duplicates."""

  num_shards: int
  num_examples: int


class ScoreManifest(TableManifest):
  """A finished score table."""

  columns: list[str]  # those that hold sums of NLL
  reference: TrainingFacts  # of the models that score
  num_tokens: int
  num_bytes: int
  flops: float


def shard_file(
  table: pa.Table, shard: int, num_shards: int
) -> dict[str, Callable[[Any], None]]:
  """What writes a table as a shard, for `Artifact.finish_shard`."""
  name = data_file(shard, num_shards)
  return {name: lambda file: write(table, file)}


def read_table(path: str, columns: Sequence[str] | None = None) -> pa.Table:
  """All parts of a finished table as one, in order.

  Args:
    path: Its folder.
    columns: Names; all of them if None.

  Raises:
    UserError: the table is not finished, or a shard is missing or damaged.
  """
  manifest = manifests.open_finished(path, 'table', 'score or --job=evaluate')
  tables = [
    parquet.read_table(
      manifests.verified(path, manifest, name), columns or None
    )
    for name in sorted(manifest['files'])
  ]
  return pa.concat_tables(tables).unify_dictionaries().combine_chunks()
