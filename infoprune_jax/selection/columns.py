"""The columns that rules may read, before there are examples."""

import re
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from infoprune_jax.config.experiment import Config
from infoprune_jax.config.validation import UserError
from infoprune_jax.runtime import manifests
from infoprune_jax.runtime.workdir import user_table_dir
from infoprune_jax.selection import join, user_tables
from infoprune_jax.tokens import tables, token_store

# Columns that exports add to those of examples.
_OF_EXPORTS = ('split', 'kept', 'file', 'line')


def rule_schema(config: Config, workdir: str) -> pa.Schema:
  """The columns that a rule may read.

  They are those of scores and statistics, the columns that sources keep, and
  those of tables of the user's.

  Args:
    config: The experiment.
    workdir: Where tables were joined, if their files are elsewhere.

  Raises:
    UserError: a table cannot be read, or two columns have the same name.
  """
  own = tables.rule_schema(config.score_columns, config.classifiers)
  kept = token_store.kept_fields(config.corpus.kept_columns)
  for field in kept:
    name = field.name
    is_taken = name.lower() in {*own.names, *_OF_EXPORTS}
    if is_taken or re.match('keep_|__', name, re.IGNORECASE):
      raise UserError(
        f'corpus.sources: keep_columns names {name!r}, the name of a column of '
        'ours: rename it in the files of the source.'
      )
  joined = [
    field.with_name(f'{table}.{field.name}')
    for table in config.select.tables
    for field in _joined_schema(config, workdir, table)
  ]
  both = {field.name for field in kept} & {field.name for field in joined}
  if both:
    raise UserError(
      f'keep_columns of a source and select.tables both have {min(both)!r}: '
      'rename the table.'
    )
  return pa.schema([*own, *joined, *kept])


def _joined_schema(config: Config, workdir: str, name: str) -> pa.Schema:
  """The columns of a table: of its files, or as they were joined.

  Raises:
    UserError: it cannot be read, and was not joined here.
  """
  section = config.select.tables[name]
  try:
    table = user_tables.open_table(name, section)
    user_tables.fills(table, section.missing)
    return table.schema
  except UserError:
    path = user_table_dir(workdir, name)
    manifest: Any = workdir and manifests.read_manifest(path, join.JOB)
    if not manifest:
      raise
    file = manifests.verified(path, manifest, min(manifest['files']))
    return pa.schema(list(pq.read_schema(file))[2:])
