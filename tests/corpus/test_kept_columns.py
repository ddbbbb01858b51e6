"""Columns of the corpus that a source keeps with its documents."""

import json
import pathlib

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from configs import base
from infoprune_jax import stages
from infoprune_jax.config import experiment as config_lib
from infoprune_jax.config.validation import UserError
from infoprune_jax.tokens import token_store, tokenize
from infoprune_jax.tokens.token_store import TokenStore

KEPT = ('url', 'meta.language', 'votes')
COUNT = 60


def record(number: int) -> dict:
  return {
    'id': f'id-{number}',
    'text': f'the text of number {number}',
    'url': f'http://{number}/é' if number % 5 else None,
    'meta': {'language': 'de' if number % 2 else 'en'},
    'votes': [number, 0.5, True, ['a']][number % 4],
  }


@pytest.fixture
def edits(tmp_path):
  """Two sources, of which one has the columns."""
  lines = [record(n) for n in range(COUNT)]
  del lines[7]['url'], lines[9]['meta']
  path = tmp_path / 'x.jsonl'
  path.write_text(''.join(json.dumps(line) + '\n' for line in lines))
  (tmp_path / 'notes').mkdir()
  for n in range(20):
    (tmp_path / 'notes' / f'{n}.txt').write_text(f'A note with the number {n}.')
  made = base.get_config()
  made.corpus.sources.web = base.jsonl(
    str(path), id_column='id', keep_columns=KEPT
  )
  made.corpus.sources.notes = base.text(str(tmp_path / 'notes'))
  made.corpus.update(num_shards=2, num_workers=1)
  made.vocabulary.update(size=320, type='bpe')
  return made


def run(edits, workdir: pathlib.Path) -> list[dict]:
  tokenize.run(config_lib.from_mapping(edits), str(workdir))
  store = TokenStore.open(str(workdir))
  shards = [store.shard(n).table() for n in range(store.num_shards)]
  names = [field.name for field in store.kept_columns]
  expected = pa.schema([*token_store.SCHEMA, *token_store.kept_fields(names)])
  assert all(shard.schema.equals(expected) for shard in shards)
  return pa.concat_tables(shards).to_pylist()


def kept(row: dict) -> tuple:
  return tuple(row[name] for name in KEPT)


def test_columns_are_kept_as_texts(edits, tmp_path):
  rows = {row['example_id']: row for row in run(edits, tmp_path / 'work')}
  assert kept(rows['id-4']) == ('http://4/é', 'en', '4')
  assert kept(rows['id-5']) == (None, 'de', '0.5')
  assert kept(rows['id-6']) == ('http://6/é', 'en', 'true')
  assert kept(rows['id-7']) == (None, 'de', '["a"]')
  assert kept(rows['id-9']) == ('http://9/é', None, '0.5')
  notes = [row for row in rows.values() if row['source'] == 'notes']
  assert len(notes) == 20 and {kept(row) for row in notes} == {(None,) * 3}


def test_parquet_keeps_the_same(edits, tmp_path):
  jsonl = run(edits, tmp_path / 'jsonl')
  rows = [{**record(n), 'votes': str(record(n)['votes'])} for n in range(COUNT)]
  pq.write_table(pa.Table.from_pylist(rows), tmp_path / 'x.parquet')
  edits.corpus.sources.web = base.parquet(
    str(tmp_path / 'x.parquet'), id_column='id', keep_columns=KEPT[:2]
  )
  ours = {row['example_id']: row for row in run(edits, tmp_path / 'parquet')}
  for row in jsonl:
    if row['example_id'] not in ('id-7', 'id-9'):
      name = row['example_id'].replace('.jsonl', '.parquet')
      assert ours[name]['url'] == row['url']
      assert ours[name]['meta.language'] == row['meta.language']


def test_without_columns_the_bytes_are_the_same(edits, tmp_path):
  run(edits, tmp_path / 'with')
  edits.corpus.sources.web.keep_columns = ()
  rows = run(edits, tmp_path / 'without')
  assert set(rows[0]) == set(token_store.SCHEMA.names)
  manifest = TokenStore.open(str(tmp_path / 'without')).manifest
  assert 'kept_columns' not in manifest
  assert 'keep_columns' not in manifest['options']['corpus']['sources']['web']


@pytest.mark.parametrize(
  ('name', 'message'),
  [
    ('urk', "names 'urk', which no record has. Did you mean 'url'"),
    ('num_tokens', "'num_tokens', the name of a column of ours: rename"),
    ('keep_top', "'keep_top', the name of a column of ours: rename"),
  ],
)
def test_a_name_that_cannot_be_kept_is_refused(edits, tmp_path, name, message):
  edits.corpus.sources.web.keep_columns = (name,)
  resolved = config_lib.from_mapping(edits)
  with pytest.raises(UserError, match=message):
    stages.check(resolved, 'tokenize')
    tokenize.run(resolved, str(tmp_path / 'work'))
  assert not (tmp_path / 'work' / 'token_store' / 'data').exists()


def test_a_text_has_no_columns(edits):
  edits.corpus.sources.notes.keep_columns = ('url',)
  with pytest.raises(UserError, match="format='text' has no columns"):
    config_lib.from_mapping(edits)
