"""JSONL and Parquet: the records that are kept, with all their fields."""

import gzip
import json
import pathlib
import re
import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from configs import base
from infoprune_jax import dry_run
from infoprune_jax.config import experiment as config_lib
from infoprune_jax.config.corpus import SPLITS
from infoprune_jax.config.validation import UserError
from infoprune_jax.export import documents
from infoprune_jax.tokens.token_store import TokenStore

ARMS = ('top', 'random-seed-0', 'random-seed-1', 'everything')


def read_jsonl(folder: pathlib.Path) -> list[bytes]:
  lines = []
  for path in sorted(folder.glob('part-*.jsonl.zst')):
    with pa.input_stream(str(path), compression='zstd') as stream:
      lines += stream.read().splitlines()
  return lines


def news_lines(corpus: pathlib.Path) -> dict[str, bytes]:
  """The lines of the source news, by id."""
  lines = []
  for path in sorted(corpus.glob('dolma/documents/*/*.gz')):
    lines += gzip.decompress(path.read_bytes()).splitlines()
  return {json.loads(line)['id']: line for line in lines}


def test_parquet_has_the_records_that_are_kept(export, corpus, kept_ids):
  export('parquet')
  books = pq.read_table(corpus / 'books.parquet')
  news = news_lines(corpus)
  for arm in ARMS:
    folder = export('parquet', arm)
    found = {
      name: pa.concat_tables(
        pq.read_table(path) for path in sorted(folder.glob(f'*.{name}.parquet'))
      )
      for name in ('news', 'books', 'notes')
    }
    ids = kept_ids(arm)
    # Types of its own, and values.
    records = [
      int(name.rpartition(':')[2]) - 1
      for name in ids
      if 'books.parquet' in name
    ]
    assert found['books'].equals(books.take(records))
    expected = [json.loads(news[i]) for i in ids if i.startswith('news-')]
    assert [without_nulls(record) for record in found['news'].to_pylist()] == [
      without_nulls(record) for record in expected
    ]
    notes = found['notes'].to_pylist()
    assert [record['id'] for record in notes] == [i for i in ids if '.md' in i]
    for record in notes:
      name = record['id'].rpartition('/')[2]
      assert record['text'] == (corpus / 'notes' / name).read_text()
      assert record['source'] == 'notes'


def without_nulls(value):
  """A value without fields that are null, as Parquet has no absent ones."""
  if isinstance(value, dict):
    fields = {key: without_nulls(item) for key, item in value.items()}
    return {key: item for key, item in fields.items() if item is not None}
  return value


def test_row_groups_are_bounded(export, monkeypatch, kept_ids):
  monkeypatch.setattr(documents, '_GROUP_ROWS', 5)
  monkeypatch.setattr(documents, '_GROUP_BYTES', 400)
  found, groups = [], []
  for path in sorted(export('parquet').glob('*.news.parquet')):
    with pq.ParquetFile(path) as file:
      for number in range(file.num_row_groups):
        group = file.read_row_group(number)
        groups.append(sum(len(text.as_py().encode()) for text in group['text']))
        assert group.num_rows <= 5
        assert group.num_rows == 1 or groups[-1] < 800
      found += file.read()['id'].to_pylist()
  assert found == [name for name in kept_ids('top') if name.startswith('news-')]
  assert len(groups) > len(found) / 5


def test_all_shards_have_one_schema(export):
  folder = export('parquet')
  for name in ('news', 'books', 'notes'):
    paths = list(folder.glob(f'*.{name}.parquet'))
    assert len({pq.read_schema(path) for path in paths}) == 1, name


def test_jsonl_has_the_lines_that_are_kept(export, corpus, kept_ids):
  export('jsonl')
  news = news_lines(corpus)
  books = pq.read_table(corpus / 'books.parquet').to_pylist()
  for arm in ARMS:
    lines = read_jsonl(export('jsonl', arm))
    ids = kept_ids(arm)
    assert len(lines) == len(ids) > 0
    for line, example_id in zip(lines, ids, strict=True):
      if example_id.startswith('news-'):
        assert line == news[example_id]  # To the byte.
      elif 'books.parquet' in example_id:
        number = int(example_id.rpartition(':')[2])
        assert json.loads(line) == books[number - 1]
      else:
        path = corpus / 'notes' / example_id.rpartition('/')[2]
        assert json.loads(line) == {
          'id': example_id,
          'source': 'notes',
          'text': path.read_text(),
        }


def test_what_is_held_out_is_not_exported(export, kept_ids, selected):
  store = TokenStore.open(selected)
  shards = [store.shard(number) for number in range(store.num_shards)]
  ids = {
    split: {
      example_id
      for shard in shards
      for example_id in shard.table('example_id')['example_id']
      .take(shard.documents_of(split))
      .to_pylist()
    }
    for split in SPLITS
  }
  assert set(kept_ids('top')) < ids['scored']
  # Of an arm that trains on all but what is held out.
  assert set(kept_ids('everything')) == ids['scored'] | ids['reference']


def varied(name: str, number: int) -> str:
  """A text with enough in it to train a vocabulary on."""
  words = (f'{(number * 7919 + k * 104729) % 9973}' for k in range(12))
  return f'{name} {number} {" ".join(words)}'


BINARY = pa.schema(
  [
    ('text', pa.binary()),
    ('cover', pa.binary()),
    ('when', pa.timestamp('ms', 'UTC')),
    ('kind', pa.dictionary(pa.int8(), pa.string())),
  ]
)


@pytest.fixture(params=['parquet', 'hf_dataset'])
def binary(request, edits, tmp_path):
  """A config over records of types that JSON has not, in two files."""
  tables = []
  for name in ('a', 'b'):
    records = [
      {
        'text': varied(name, number).encode(),
        'cover': bytes([number, 255]),
        'when': number * 10**9 if number % 2 else None,
        'kind': f'{name}{number % 3}',
      }
      for number in range(40)
    ]
    tables.append(pa.Table.from_pylist(records, BINARY))
    pq.write_table(tables[-1], tmp_path / f'{name}.parquet')
    with pa.ipc.new_stream(tmp_path / f'{name}.arrow', BINARY) as stream:
      stream.write_table(tables[-1], max_chunksize=9)
  edits.corpus.sources = {}
  edits.corpus.sources.books = base.parquet(f'{tmp_path}/*.parquet')
  if request.param == 'hf_dataset':
    saved = [{'filename': 'a.arrow'}, {'filename': 'b.arrow'}]
    (tmp_path / 'state.json').write_text(json.dumps({'_data_files': saved}))
    edits.corpus.sources.books = base.hf_dataset(str(tmp_path))
  return edits, pa.concat_tables(tables).unify_dictionaries()


def test_files_of_one_source_may_lack_columns(
  edits, select_all, export, workdir, tmp_path, kept_in
):
  records = [
    {'text': varied('x', n), 'only_a': n, 'meta': {'k': n}} for n in range(80)
  ]
  first = pa.Table.from_pylist(records[:40])
  second = pa.Table.from_pylist(records[40:]).drop_columns(['only_a'])
  pq.write_table(first, tmp_path / 'a.parquet')
  pq.write_table(
    second.append_column('b', pa.nulls(40)), tmp_path / 'b.parquet'
  )
  edits.corpus.sources = {}
  edits.corpus.sources.books = base.parquet(f'{tmp_path}/*.parquet')
  edits.corpus.num_shards = 1
  shutil.rmtree(workdir)
  select_all(edits, workdir)
  (path,) = export('parquet').glob('*.parquet')
  found = pq.read_table(path).to_pylist()
  expected = {f'books/a.parquet:{n + 1}': records[n] for n in range(40)} | {
    f'books/b.parquet:{n + 1}': {**records[40 + n], 'only_a': None}
    for n in range(40)
  }
  assert {name[6] for name in kept_in('top')} == {'a', 'b'}
  assert found == [{**expected[name], 'b': None} for name in kept_in('top')]


def test_types_that_json_has_not(
  binary, select_all, export, workdir, tmp_path, capsys
):
  edits, table = binary
  shutil.rmtree(workdir)
  select_all(edits, workdir)
  folder = export('parquet')
  found = pa.concat_tables(
    pq.read_table(path) for path in sorted(folder.glob('*.parquet'))
  )
  assert found.schema == BINARY
  records = found.to_pylist()
  assert records and all(record in table.to_pylist() for record in records)
  expected = (
    "The source 'books' has columns that 'jsonl' cannot hold: cover (binary). "
    "Use 'parquet' in export.formats, or leave these columns out of its files."
  )
  with pytest.raises(UserError) as caught:
    export('jsonl')
  assert str(caught.value) == expected
  assert not list(pathlib.Path(workdir, 'export/top/jsonl').rglob('part-*'))
  # The dry run says the same, and of Dolma.
  edits.export.formats = ('dolma_attributes', 'jsonl', 'parquet', 'scores')
  edits.corpus.sources.notes = base.text(f'{tmp_path}/*.json*')
  (tmp_path / 'a.jsonl').write_text('a note')
  dry_run.run(config_lib.from_mapping(edits), workdir, 'export')
  said = re.findall(r'^--job=export: (.*)$', capsys.readouterr().out, re.M)
  assert {line.split(' is of format ')[0] for line in said} == {
    expected,
    "The source 'books'",
    "The source 'notes'",
  }


def test_times_decimals_and_maps_in_json(typed):
  records, folder = typed
  lines = [json.loads(line) for line in read_jsonl(folder)]
  assert lines
  for line in lines:
    number = int(line['text'].split()[1])
    record = records[number]
    price = record['price']
    assert line == {
      'text': record['text'].decode(),
      'day': record['day'].isoformat(),
      'when': f'2024-02-01T03:04:05.{number:06}Z',
      'price': None if price is None else f'{number / 100:.2f}',
      'tags': dict(record['tags']),
      'counts': [{'key': number, 'value': '0.50'}],
    }


@pytest.mark.parametrize(
  'odd, expected',
  [
    ({'n': 'x'}, "field 'n' of the source 'news' holds a number here and text"),
    ({'o': {'p': []}}, "field 'o.p' of the source 'news' holds an object here"),
    ({'n': 2**63}, "field 'n' .* holds an integer of more than 64 bits"),
    ({'e': {}}, "field 'e' .* is an empty object in every record"),
  ],
)
def test_parquet_refuses_what_is_no_table(
  odd, expected, edits, select_all, export, workdir, tmp_path
):
  records = [
    {'text': varied('x', n), 'n': n, 'o': {'p': {'q': 1}}} for n in range(60)
  ]
  records[30:] = [{'text': varied('y', n), **odd} for n in range(30, 60)]
  path = tmp_path / 'x.jsonl'
  path.write_text(''.join(json.dumps(record) + '\n' for record in records))
  edits.corpus.sources = {}
  edits.corpus.sources.news = base.jsonl(str(path))
  shutil.rmtree(workdir)
  edits.select.arms.top = base.arm('all')
  select_all(edits, workdir)
  with pytest.raises(UserError, match=expected) as caught:
    export('parquet')
  assert "Use 'jsonl'" in str(caught.value)
  assert not list(pathlib.Path(workdir, 'export').rglob('part-*'))
  assert read_jsonl(export('jsonl'))
