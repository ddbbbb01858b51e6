"""Tables of the user's, joined with the examples."""

import json
import pathlib
from unittest import mock

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from changed_artifacts import PART, reseal, rewrite, with_value
from made_scores import write_scores

from configs import base
from infoprune_jax import stage, stages
from infoprune_jax.config import experiment as config_lib
from infoprune_jax.config.selection import RuleConfig
from infoprune_jax.config.validation import UserError
from infoprune_jax.export import decisions
from infoprune_jax.runtime.workdir import keep_set_dir, user_table_dir
from infoprune_jax.selection import (
  join,
  partitioned_join,
  rule_inputs,
  select,
)
from infoprune_jax.selection.examples import ExampleShards
from infoprune_jax.selection.keep_set import KeepSet, read_summary
from infoprune_jax.statistics import statistics
from infoprune_jax.tokens import tables, tokenize
from infoprune_jax.tokens.token_store import TokenStore
from infoprune_jax.verify import workdir as verify


def documents(workdir: str) -> pa.Table:
  """Every document of the store, and made-up columns of a table."""
  store = TokenStore.open(workdir)
  rows = [
    {**row, 'shard': shard, 'doc_index': n}
    for shard in range(store.num_shards)
    for n, row in enumerate(store.shard(shard).table().to_pylist())
  ]
  rng = np.random.default_rng(0)
  made = pa.Table.from_pylist(rows)
  made = made.append_column('score', pa.array(rng.permutation(len(rows)) / 2))
  labels = [f'label {n % 3}' if n % 7 else None for n in range(len(rows))]
  made = made.append_column('label', pa.array(labels).dictionary_encode())
  return made.take(pa.array(rng.permutation(len(rows))))


def write(table: pa.Table, path: pathlib.Path) -> str:
  if path.suffix == '.parquet':
    pq.write_table(table, path, row_group_size=17)
  elif path.suffix == '.arrow':
    with pa.ipc.new_file(str(path), table.schema) as file:
      file.write_table(table, max_chunksize=13)
  else:
    path.write_text(''.join(json.dumps(r) + '\n' for r in table.to_pylist()))
  return str(path)


def config(edits, **named) -> config_lib.Config:
  edits = edits.copy_and_resolve_references()
  edits.select.tables.update(named)
  return config_lib.from_mapping(edits)


def joined(workdir: str, name: str = 'quality') -> pa.Table:
  store = TokenStore.open(workdir)
  examples = ExampleShards(workdir, store, [name])
  return examples.table()


@pytest.mark.parametrize(
  ('on', 'suffix'),
  [
    ('example_id', '.parquet'),
    (('source', 'example_id'), '.jsonl'),
    ('content_hash', '.arrow'),
    (('shard', 'doc_index'), '.parquet'),
  ],
)
@pytest.mark.parametrize('per_partition', [7, 1 << 18])
def test_each_example_has_the_columns_of_its_record(
  experiment, workdir, tmp_path, on, suffix, per_partition
):
  made = documents(workdir)
  keys = [on] if isinstance(on, str) else [*on]
  table = made.select([*keys, 'score', 'label'])
  half = table.num_rows // 2
  for n, some in enumerate((table.slice(0, half), table.slice(half))):
    write(some, tmp_path / f'{n}{suffix}')
  quality = base.table(str(tmp_path / f'*{suffix}'), on=on)
  with mock.patch.object(partitioned_join, '_PER_PARTITION', per_partition):
    join.run(config(experiment, quality=quality), workdir)
  expected = {
    row['example_id']: (row['score'], row['label']) for row in made.to_pylist()
  }
  rows = joined(workdir).to_pylist()
  assert len(rows) > 100
  assert {
    row['example_id']: (row['quality.score'], row['quality.label'])
    for row in rows
  } == {row['example_id']: expected[row['example_id']] for row in rows}
  for status, problems in verify.check(workdir):
    assert not problems, status


def test_a_source_in_the_table_must_be_that_of_the_example(
  experiment, workdir, tmp_path
):
  made = documents(workdir).select(['example_id', 'source', 'score'])
  path = write(made, tmp_path / 'x.parquet')
  made = config(experiment, q=base.table(path, on='example_id'))
  join.run(made, workdir)
  assert 'q.source' not in joined(workdir, 'q').column_names
  other = pq.read_table(path).drop(['source'])
  other = other.append_column('source', pa.array(['x'] * other.num_rows))
  write(other, tmp_path / 'x.parquet')
  with pytest.raises(UserError, match='no record has the source, example_id'):
    join.run(
      config(experiment, other=base.table(path, on='example_id')), workdir
    )


def without(table: pa.Table, workdir: str) -> pa.Table:
  """Without the first scored example."""
  first = ExampleShards(workdir, TokenStore.open(workdir)).table()
  ids = first['example_id'][:1].to_pylist()
  return table.filter([i not in ids for i in table['example_id'].to_pylist()])


@pytest.mark.parametrize(
  ('change', 'fields', 'message'),
  [
    (without, {}, r"no record of 1 examples that were scored, such as '\d+'"),
    (
      lambda table, _: pa.concat_tables([table, table.slice(3, 1)]),
      {},
      r"two records have the example_id '\d+': record 3 .* and record \d+",
    ),
    (
      lambda table, _: table.set_column(
        0, 'example_id', pa.array(range(10_000, 10_000 + table.num_rows))
      ),
      {},
      'no record has the example_id of a scored example: .10000. in the table',
    ),
    (
      lambda table, _: table.rename_columns(['id', 'score', 'label']),
      {},
      "no column 'example_id'",
    ),
    (
      lambda table, _: table,
      {'columns': ('scor',)},
      "no column 'scor'. Did you mean 'score'",
    ),
    (without, {'missing': 'none'}, "missing is 'none', which is no value of"),
    (
      lambda table, _: table.select(['example_id']).append_column(
        'vector', pa.array([[1.0]] * table.num_rows)
      ),
      {},
      r'columns beside example_id are vector \(list<',
    ),
  ],
  ids=['missing', 'twice', 'keys', 'key', 'column', 'value', 'list'],
)
def test_what_cannot_be_joined_is_refused(
  experiment, workdir, tmp_path, change, fields, message
):
  table = documents(workdir).select(['example_id', 'score', 'label'])
  path = write(change(table, workdir), tmp_path / 'x.parquet')
  quality = base.table(path, on='example_id', **fields)
  with pytest.raises(UserError, match=message):
    join.run(config(experiment, quality=quality), workdir)
  folder = pathlib.Path(user_table_dir(workdir, 'quality'))
  # Nothing is begun: with another table, the stage runs.
  assert {path.name for path in folder.rglob('*')} <= {'.lock'}


def test_examples_without_a_record_get_a_value(experiment, workdir, tmp_path):
  table = without(documents(workdir), workdir).select(['example_id', 'score'])
  path = write(table, tmp_path / 'x.parquet')
  quality = base.table(path, on='example_id', missing=-1)
  join.run(config(experiment, quality=quality), workdir)
  scores = joined(workdir)['quality.score'].to_pylist()
  assert scores[0] == -1.0 and scores.count(-1.0) == 1


def test_no_table_is_without_records_or_files(experiment, workdir, tmp_path):
  quality = base.table(str(tmp_path / '*.parquet'), on='example_id')
  with pytest.raises(UserError, match=r'tables\.quality\.paths: no file match'):
    stages.check(config(experiment, quality=quality), 'select')
  (tmp_path / 'x.csv').write_text('1')
  quality.paths = (str(tmp_path / 'x.csv'),)
  with pytest.raises(UserError, match=r'x\.csv is none of \.parquet'):
    stages.check(config(experiment, quality=quality), 'select')


def test_rules_read_it_and_a_changed_file_makes_keep_sets_stale(
  experiment, workdir, tmp_path
):
  made = documents(workdir)
  path = write(made.select(['example_id', 'score']), tmp_path / 'x.parquet')
  edits = experiment.copy_and_resolve_references()
  edits.select.arms = {
    'good': base.arm('top', 'QUALITY.Score', fraction=0.5),
    'random': base.arm('random', fraction=0.5),
  }
  resolved = config(edits, quality=base.table(path, on='example_id'))
  for run in (join.run, select.run):
    run(resolved, workdir)
  store = TokenStore.open(workdir)
  kept = KeepSet.open(workdir, 'good', store)
  assert 'tables/quality' in kept.manifest['inputs']
  first = np.cumsum([0, *store.documents_per_shard])
  rows = joined(workdir).to_pylist()
  numbers = [first[row['shard']] + row['doc_index'] for row in rows]
  holds = kept.of_documents(np.array(numbers)) > 0
  scores = np.array([row['quality.score'] for row in rows])
  assert scores[holds].min() > scores[~holds].max()

  def causes() -> dict:
    _, _, states = stage.compare(stages.STAGES, resolved, workdir, ['select'])
    return {p: one.causes for p, one in states.items() if one.causes}

  name = keep_set_dir(workdir, 'good')
  why = ('select.tables.quality.paths: the files have changed',)
  assert not any(why[0] in one for one in causes().values())
  halved = made.set_column(
    made.column_names.index('score'),
    'score',
    pa.array(np.array(made['score']) / 2),
  )
  write(halved.select(['example_id', 'score']), tmp_path / 'x.parquet')
  after = causes()
  assert after[user_table_dir(workdir, 'quality')] == why
  assert why[0] in after[name]
  random = keep_set_dir(workdir, 'random-seed-0')
  assert why[0] not in after.get(random, ())
  # A file that was only copied has not changed.
  write(made.select(['example_id', 'score']), tmp_path / 'x.parquet')
  assert user_table_dir(workdir, 'quality') not in causes()


def test_a_column_that_is_not_there_is_refused_with_near_names(
  experiment, workdir, tmp_path
):
  table = documents(workdir).select(['example_id', 'score'])
  path = write(table, tmp_path / 'x.parquet')
  edits = experiment.copy_and_resolve_references()
  edits.select.arms.good = base.arm('top', 'quality.scor', fraction=0.5)
  resolved = config(edits, quality=base.table(path, on='example_id'))
  with pytest.raises(UserError, match="'quality.scor' perhaps 'quality.score'"):
    stages.check(resolved, 'select')


def test_a_killed_join_starts_again(experiment, workdir, tmp_path):
  table = documents(workdir).select(['example_id', 'score'])
  path = write(table, tmp_path / 'x.parquet')
  resolved = config(experiment, q=base.table(path, on='example_id'))
  join.run(resolved, workdir)
  whole = verify_digest(workdir)
  folder = pathlib.Path(user_table_dir(workdir, 'q'))
  (folder / 'manifest.json').unlink()
  for left in folder.glob('part-00001*'):
    left.unlink()
  (folder / 'scratch').mkdir()
  (folder / 'scratch' / 'left').write_text('x')
  join.run(resolved, workdir)
  assert verify_digest(workdir) == whole
  assert not (folder / 'scratch').exists()


def verify_digest(workdir: str) -> dict[str, bytes]:
  folder = pathlib.Path(user_table_dir(workdir, 'q'))
  return {
    str(path): path.read_bytes()
    for path in folder.rglob('*')
    if path.is_file() and path.name != '.lock'
  }


def test_the_name_of_a_table_stands_before_columns(experiment):
  for name in ('Quality', 'scores', 'a-b'):
    with pytest.raises(UserError, match='lower-case letters, digits'):
      config(experiment, **{name: base.table('x', on='example_id')})
  with pytest.raises(UserError, match="on must be one of .* mean 'example_id'"):
    config(experiment, q=base.table('x', on='exmple_id'))


def test_what_reads_a_table():
  rule = RuleConfig(**base.arm('top', 'a.x + 1', fraction=0.5, per='b.y'))
  assert rule_inputs.tables_read([rule], ['a', 'b', 'c']) == ('a', 'b')


def test_summaries_know_the_table(experiment, workdir, tmp_path):
  table = documents(workdir).select(['example_id', 'score'])
  path = write(table, tmp_path / 'x.parquet')
  resolved = config(experiment, q=base.table(path, on='example_id'))
  join.run(resolved, workdir)
  select.run(resolved, workdir)
  written = read_summary(keep_set_dir(workdir, 'full'))
  assert set(written['tables']) == {'q'}
  assert written['drawn']['kept'][0]['columns'].keys() == {'q.score'}
  assert tables.read_table(user_table_dir(workdir, 'q')).num_rows > 0


def test_kept_and_joined_columns_are_in_rules_and_exports(experiment, tmp_path):
  workdir = str(tmp_path / 'work')
  edits = experiment.copy_and_resolve_references()
  edits.corpus.sources.mine.keep_columns = ('id',)
  edits.select.arms = {
    'low': base.arm(
      'bottom',
      'CAST(id AS DOUBLE) + 0 * quality.score',
      fraction={'1': 0.5, '*': 1.0},
      per='ntile(2, CAST(id AS DOUBLE))',
      unit='examples',
    )
  }
  edits.report.baseline = 'low'
  table = pa.table({'example_id': range(200), 'score': np.arange(200) / 2})
  path = write(table, tmp_path / 'x.parquet')
  resolved = config(edits, quality=base.table(path, on='example_id'))
  stages.check(resolved, 'select')
  for module in (tokenize, statistics, join):
    module.run(resolved, workdir)
  write_scores(workdir)
  select.run(resolved, workdir)
  tables_of = decisions.Tables(workdir, ('low',), ('quality',))
  assert 'tables/quality' in tables_of.inputs()
  rows = [
    row
    for shard in range(TokenStore.open(workdir).num_shards)
    for row in decisions.shard_table(tables_of, shard).to_pylist()
  ]
  assert all(row['id'] == row['example_id'] for row in rows)
  scored = sorted(
    (row for row in rows if row['split'] == 'scored'),
    key=lambda row: int(row['id']),
  )
  assert all(r['quality.score'] == int(r['id']) / 2 for r in scored)
  assert {r['quality.score'] for r in rows if r['split'] != 'scored'} == {None}
  half = -(-len(scored) // 2)
  expected = [n < half // 2 or n >= half for n in range(len(scored))]
  assert [row['keep_low'] for row in scored] == expected


def test_verify_names_what_is_wrong_with_a_table(experiment, workdir, tmp_path):
  table = documents(workdir).select(['example_id', 'score'])
  path = write(table, tmp_path / 'x.parquet')
  resolved = config(experiment, q=base.table(path, on='example_id'))
  join.run(resolved, workdir)
  folder = pathlib.Path(user_table_dir(workdir, 'q'))
  shard = (folder / PART).read_bytes()
  for change, expected in (
    (lambda rows: rows.slice(1), '1 missing (the first is doc_index'),
    (lambda rows: rows.drop(['score']), 'has the columns'),
    (with_value('shard', 0, 2), 'column shard is not 1'),
  ):
    rewrite(folder, change)
    found = {status.path: lines for status, lines in verify.check(workdir)}
    assert any(expected in line for line in found[str(folder)])
    reseal(folder, PART, shard)
