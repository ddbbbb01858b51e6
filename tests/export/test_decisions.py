"""Tables of all documents: what the store, the scores and keep sets say."""

import gzip
import json
import os
import pathlib
import shutil
import types

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from infoprune_jax.config import experiment as config_lib
from infoprune_jax.export import decisions
from infoprune_jax.export.decisions import KEEP
from infoprune_jax.runtime.workdir import scores_dir, statistics_dir
from infoprune_jax.tokens import tables
from infoprune_jax.tokens.token_store import TokenStore

SELECTIONS = ('random-seed-0', 'random-seed-1', 'top', 'everything')


def read(folder: pathlib.Path) -> pa.Table:
  return pa.concat_tables(
    pq.read_table(path) for path in sorted(folder.glob('part-*.parquet'))
  ).unify_dictionaries()


def test_every_document_is_there_with_its_scores(export, selected, kept_ids):
  found = read(export('scores', 'every-arm'))
  store = TokenStore.open(selected)
  ids = found['example_id'].to_pylist()
  assert ids == [
    example_id
    for number in range(store.num_shards)
    for example_id in store.shard(number)
    .table('example_id')['example_id']
    .to_pylist()
  ]
  for name in SELECTIONS:
    kept = found[KEEP + name.replace('-', '_')].to_numpy()
    assert np.array(ids)[kept].tolist() == kept_ids(name)
  scored = found.filter(
    pa.compute.equal(found['split'].cast(pa.string()), 'scored')
  )
  for path in (scores_dir, statistics_dir):
    expected = tables.read_table(path(selected))
    assert expected.num_rows == scored.num_rows < found.num_rows
    for name in expected.column_names:
      assert scored[name].to_pylist() == expected[name].to_pylist(), name
  assert found['nll_sum'].null_count == found.num_rows - scored.num_rows


@pytest.mark.parametrize('arm', ['top', 'random-seed-1', 'everything'])
def test_a_keep_set_is_a_table(arm, export, kept_ids):
  """That of all arms has the same documents, in the same order."""
  found = read(export('keep_set', arm))
  assert found.column_names == [
    *('example_id', 'source', 'split', 'shard', 'doc_index', 'kept'),
  ]
  kept = found.filter(found['kept'])
  assert kept['example_id'].to_pylist() == kept_ids(arm)
  every = read(export('scores', 'every-arm'))
  expected = every.select(found.column_names[:-1]).append_column(
    'kept', every[KEEP + arm.replace('-', '_')]
  )
  assert found.equals(expected)


def test_a_keep_set_needs_no_scores(export, workdir, kept_ids):
  for folder in (scores_dir(workdir), statistics_dir(workdir)):
    shutil.rmtree(folder)
  assert sum(read(export('keep_set'))['kept'].to_pylist()) == len(
    kept_ids('top')
  )


@pytest.mark.parametrize(
  'format, arm', [('scores', 'every-arm'), ('keep_set', 'top')]
)
def test_places_are_where_the_documents_are(format, arm, export, corpus):
  found = read(export(format, arm, include_locations=True)).to_pylist()
  for record in found:
    path = pathlib.Path(record['file'])
    if record['source'] == 'news':
      line = gzip.decompress(path.read_bytes()).splitlines()[record['line'] - 1]
      assert json.loads(line)['id'] == record['example_id']
    elif record['source'] == 'books':
      assert record['example_id'] == f'books/books.parquet:{record["line"]}'
    else:
      assert record['example_id'] == f'notes/{path.name}'
      assert record['line'] == 1


def test_without_places_no_corpus_is_needed(edits, export, tmp_path):
  edits.corpus.sources.news.paths = (str(tmp_path / 'gone/*.gz'),)
  assert read(export('scores', 'every-arm')).num_rows


def test_only_some_arms(edits, export):
  found = read(export('scores', 'every-arm', arms=('top',)))
  assert [n for n in found.column_names if n.startswith(KEEP)] == ['keep_top']
  assert config_lib.from_mapping(edits).arms == ('random', 'top', 'everything')


def test_names_of_files_that_are_not_utf8():
  file = types.SimpleNamespace(path=os.fsdecode(b'/x/caf\xe9'))
  index = types.SimpleNamespace(
    files=(file,), file=np.zeros(1, np.int32), line=np.ones(1, np.int64)
  )
  table_ = decisions._with_places(pa.table({'doc_index': [0]}), index)
  assert table_['file'].to_pylist() == ['/x/caf\\xe9']
