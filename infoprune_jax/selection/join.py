"""The stage that joins tables of the user's with the scored examples. No JAX."""

import itertools
import posixpath
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from infoprune_jax.config.experiment import Config
from infoprune_jax.runtime import artifacts, files, manifests, resumable
from infoprune_jax.runtime.options import options_of
from infoprune_jax.runtime.progress import counted, logger, quantity
from infoprune_jax.runtime.workdir import user_table_dir
from infoprune_jax.selection import partitioned_join, user_tables
from infoprune_jax.selection.arrays import side_by_side
from infoprune_jax.selection.partitioned_join import Join
from infoprune_jax.selection.spill import Partitions, Spill, plain
from infoprune_jax.selection.user_tables import UserTable
from infoprune_jax.tokens import tables
from infoprune_jax.tokens.token_store import TokenStore

JOB = 'join'


class JoinedManifest(tables.TableManifest):
  """A table of the user's, joined."""

  columns: dict[str, str]  # the type of each
  # Size, time of change and SHA-256 of each file that was read, by name.
  table_files: dict[str, dict[str, Any]]


def run(config: Config, workdir: str) -> None:
  """Joins each table of `select.tables`; finished ones are skipped.

  Raises:
    UserError: the token store is missing, a table cannot be read, has a key
      twice, or has no record of an example.
  """
  store = TokenStore.open(workdir)
  for name, section in config.select.tables.items():
    table = user_tables.open_table(name, section)
    facts = files_facts(workdir, table)
    inputs = {
      'token_store': store.fingerprint,
      'files': user_tables.digest(facts),
    }
    artifact = describe(config, workdir, name, inputs)
    with files.lock(artifact.path):
      if artifact.finished():
        logger.info('join: %s finished before, skipped', name)
      else:
        join = Join(store, config.reference.folds, table, section.missing)
        _write(artifact, join, facts)


def describe(
  config: Config, workdir: str, name: str, inputs: Mapping[str, str]
) -> artifacts.Artifact:
  """The joined table, made from these inputs."""
  options = options_of(config.select.tables[name])
  del options['paths']  # The files count, and not where they are.
  where = f'select.tables.{name}'
  return artifacts.Artifact(
    user_table_dir(workdir, name),
    f'table {name}',
    JOB,
    {**options, 'folds': config.reference.folds},
    inputs,
    sections={
      '': where,
      'folds': 'reference.folds',
      'inputs.files': f'{where}.paths',
    },
  )


def files_facts(workdir: str, table: UserTable) -> dict[str, dict[str, Any]]:
  """`user_tables.files_facts`, which reads only files that have changed."""
  path = user_table_dir(workdir, table.name)
  manifest: Any = manifests.read_manifest(path, JOB) or {}
  return user_tables.files_facts(table, manifest.get('table_files', {}))


def _write(
  artifact: artifacts.Artifact, join: Join, facts: Mapping[str, Any]
) -> None:
  """Writes the shards that are not done, then the manifest."""
  num_shards, name = join.store.num_shards, f'join: {join.table.name}'
  scratch = posixpath.join(artifact.path, 'scratch')
  with files.scratch_folder(scratch) as folder:
    logger.info('%s: its partitions are in %s meanwhile', name, folder)
    spill = Spill(folder)
    joined = join.partitions(spill)
    # A table that cannot be joined is refused before the artifact is begun.
    artifact = artifact.begin()
    markers = resumable.finished_shards(artifact, num_shards, name)
    written = side_by_side(
      lambda n: _write_partition(artifact, join, joined, n, markers),
      range(joined.count),
    )
  markers |= dict(itertools.chain.from_iterable(map(dict.items, written)))
  logger.info(
    '%s: the partitions took up to %s', name, quantity(spill.peak, 'B')
  )
  manifest = resumable.finish_from_markers(
    artifact,
    [markers[shard] for shard in range(num_shards)],
    sums=['num_examples'],
    columns={one.name: str(one.type) for one in join.table.columns},
    table_files=facts,
  )
  logger.info(
    '%s: %s of %s',
    name,
    counted(len(join.table.columns), 'column'),
    counted(manifest['num_examples'], 'example'),
  )


def _write_partition(
  artifact: artifacts.Artifact,
  join: Join,
  joined: Partitions,
  number: int,
  done: Mapping[int, Any],
) -> dict[int, Any]:
  """Writes the missing shards of a partition; returns their markers."""
  first = partitioned_join.shards_of(join.store.num_shards, joined.count)
  table = joined.pop(number)
  markers = {}
  for shard in range(first[number], first[number + 1]):
    if shard not in done:
      records = _in_order(join, table, shard)
      markers[shard] = tables.write_shard(
        artifact, records, shard, join.store.num_shards
      )
  return markers


def _in_order(join: Join, table: pa.Table | None, shard: int) -> pa.Table:
  """The records of a shard, in store order."""
  doc_indices = join.doc_indices(shard)
  columns = [pa.array([], kind) for kind in join.table.schema.types]
  if table is not None:
    position = table.column(0).to_numpy() - join.offsets[shard]
    inside = np.flatnonzero(
      (position >= 0) & (position < join.store.documents_per_shard[shard])
    )
    place = np.zeros(join.store.documents_per_shard[shard], np.int64)
    place[position[inside]] = inside
    order = pa.array(place[doc_indices])
    columns = [plain(column).take(order) for column in table.columns[1:]]
  return pa.table(
    {
      'shard': pa.array(np.full(len(doc_indices), shard, np.int32)),
      'doc_index': pa.array(doc_indices),
      **dict(zip(join.table.schema.names, columns, strict=True)),
    }
  )
