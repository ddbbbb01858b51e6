"""The tables of scores and of statistics: Parquet with one record per example.

Both are in store order and hold the same examples. They hold sums and counts,
never means. Any Parquet reader opens them.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NotRequired, TypedDict

import numpy as np
import pyarrow as pa

from infoprune_jax.config.classifier import PREFIX
from infoprune_jax.corpus import parquet
from infoprune_jax.runtime import manifests
from infoprune_jax.runtime.artifacts import Artifact
from infoprune_jax.runtime.manifests import Manifest, Marker
from infoprune_jax.runtime.workdir import DATA, data_file

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
    # The store-wide number of the first document of its group, and the number
    # of examples in the group: 1 if there are no near-duplicates.
    ('near_duplicate_group', pa.int64()),
    ('near_duplicates', pa.int32()),
  ]
)

HELDOUT_COPIES_SCHEMA = pa.schema(
  [
    ('shard', pa.int32()),
    ('doc_index', pa.int64()),
    ('content_hash', pa.int64()),
    # The store-wide number of the first document outside of the held-out split
    # that is a near-copy; -1 if there is none.
    ('near_copy', pa.int64()),
  ]
)

CONTAMINATION_SCHEMA = pa.schema(
  [
    ('shard', pa.int32()),
    ('doc_index', pa.int64()),
    # How many of its n-grams occur in a benchmark, and the names of these
    # benchmarks with ', ' between them.
    ('contaminated_ngrams', pa.int32()),
    ('contaminated_by', pa.dictionary(pa.int32(), pa.string())),
  ]
)

DUPLICATED_TEXT_SCHEMA = pa.schema(
  [
    ('shard', pa.int32()),
    ('doc_index', pa.int64()),
    # How many of its tokens lie in windows that occur elsewhere in the scored
    # examples, too; and in windows that have occurred before, in their order.
    ('duplicated_tokens', pa.int32()),
    ('repeated_tokens', pa.int32()),
  ]
)


def score_schema(columns: Sequence[str]) -> pa.Schema:
  """The schema of a score table.

  Args:
    columns: Sums of the statistics of each, as `ScoringConfig.columns`; the
      first is 'nll_sum'.
  """
  return pa.schema(
    [
      *LOSS_SCHEMA,
      *((name, pa.float64()) for name in columns[1:]),
      ('fold', pa.int8()),  # of the reference model that scored it
    ]
  )


def example_schema(columns: Sequence[str]) -> pa.Schema:
  """The columns of scores and statistics together."""
  return pa.schema([*score_schema(columns), *list(STATISTICS_SCHEMA)[2:]])


def classifier_schema(name: str) -> pa.Schema:
  """The table of a classifier."""
  return pa.schema(
    [
      ('shard', pa.int32()),
      ('doc_index', pa.int64()),
      (PREFIX + name, pa.float64()),  # log odds, in nats
    ]
  )


def rule_schema(
  columns: Sequence[str], classifiers: Iterable[str] = ()
) -> pa.Schema:
  """The columns that a rule may read.

  Args:
    columns: As for `score_schema`.
    classifiers: Their names.
  """
  return pa.schema(
    [
      *example_schema(columns),
      *list(NEAR_DUPLICATES_SCHEMA)[2:],
      *list(CONTAMINATION_SCHEMA)[2:],
      *list(DUPLICATED_TEXT_SCHEMA)[2:],
      *(classifier_schema(name).field(2) for name in classifiers),
    ]
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
    schema: The columns, in order.
    shard_index: The shard of the store.
    doc_indices: The documents of the shard, [documents] int64.
    documents: The columns of the store, for all documents of the shard.
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


# Row groups are small, so that reading a few examples does not read a shard.
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
  """A finished shard of a table."""

  num_examples: int


class ScoreMarker(TableMarker):
  """A finished shard of the score table."""

  num_tokens: int
  num_bytes: int
  flops: float


class TrainingFacts(TypedDict):
  """The training of a model: its tokens, parameters and cost."""

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

  columns: list[str]  # sums of statistics, as `ScoringConfig.columns`
  # `score.losses.Summary`; older versions wrote none.
  losses: NotRequired[Mapping[str, Any]]
  reference: TrainingFacts  # of the models that score
  # Path and step of models that were trained elsewhere, by column, as the config
  # named them; older versions wrote none.
  given_paths: NotRequired[Mapping[str, Any]]
  # With `score.token_excess`: the number of tokens by fold and level.
  excess_counts: NotRequired[list[list[int]]]
  num_tokens: int
  num_bytes: int
  flops: float


def shard_file(
  table: pa.Table, shard: int, num_shards: int
) -> dict[str, Callable[[Any], None]]:
  """The writer of a table as a shard, for `Artifact.finish_shard`."""
  name = data_file(shard, num_shards)
  return {name: lambda file: write(table, file)}


def write_shard(
  artifact: Artifact, table: pa.Table, shard: int, num_shards: int
) -> Marker:
  """Writes a shard of a table with a record for each example.

  Args:
    artifact: The table that is being written.
    table: The records of the shard.
    shard: Its number.
    num_shards: Of the table.

  Returns:
    Its marker.

  Raises:
    UserError: as `Artifact.write_file`.
  """
  written = shard_file(table, shard, num_shards)
  return artifact.finish_shard(
    shard, num_shards, written, num_examples=table.num_rows
  )


def data_files(manifest: Manifest) -> list[str]:
  """The files of a finished table, in the order of its shards."""
  return sorted(n for n in manifest['files'] if n.startswith(f'{DATA}/'))


def read_table(path: str, columns: Sequence[str] | None = None) -> pa.Table:
  """All shards of a finished table as one, in order.

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
    for name in data_files(manifest)
  ]
  return pa.concat_tables(tables).unify_dictionaries().combine_chunks()
