"""Documents out of files: what is read, and what is refused where."""

import gc
import gzip
import json
import os
import warnings

import fsspec
import pyarrow as pa
import pytest

from configs import base
from infoprune_jax.config.corpus import (
  FILE_FORMATS,
  SOURCE_FORMATS,
  SourceConfig,
)
from infoprune_jax.config.validation import UserError
from infoprune_jax.corpus import sources
from infoprune_jax.corpus.sources import BadRecord, Document


def source(edits) -> dict[str, SourceConfig]:
  return {'mine': SourceConfig(**edits)}


def read(edits) -> list[tuple[int, Document | BadRecord]]:
  return [
    record
    for file in sources.list_files(source(edits))
    for record in sources.read_records(file)
  ]


def lines(*records) -> bytes:
  """JSONL; bytes are taken as they are."""
  return b''.join(
    (record if isinstance(record, bytes) else json.dumps(record).encode())
    + b'\n'
    for record in records
  )


@pytest.fixture
def one_record(tmp_path):
  """Reads a file of one good record and then this one, which is returned."""

  def read_one(record, **columns):
    path = tmp_path / 'records.jsonl'
    good = {'text': 'good', 'id': 'good', 'source': 'good'}
    path.write_bytes(lines(good, record, good))
    first, second, third = read(base.jsonl(str(path), **columns))
    assert isinstance(first[1], Document) and isinstance(third[1], Document)
    assert second[0] == 2
    if isinstance(second[1], BadRecord):
      assert second[1].where == f'{path}:2'
      assert str(second[1]).startswith(f'{path}:2: {second[1].reason} (')
      assert '\n' not in str(second[1])
      assert len(str(second[1])) < len(str(path)) + 500
    return second[1]

  return read_one


def test_a_folder_of_text(tmp_path):
  (tmp_path / 'b' / 'deep').mkdir(parents=True)
  (tmp_path / 'b' / 'deep' / 'two.md').write_text('second\n')
  (tmp_path / 'a.txt').write_text(' first ')
  (tmp_path / '.hidden').write_text('no')
  (tmp_path / 'b' / '.git').mkdir()
  (tmp_path / 'b' / '.git' / 'config').write_text('no')
  assert read(base.text(str(tmp_path))) == [
    (1, Document('mine/a.txt', 'mine', ' first ')),
    (1, Document('mine/b/deep/two.md', 'mine', 'second\n')),
  ]
  assert read(base.text(f'{tmp_path}/')) == read(base.text(str(tmp_path)))


def test_globs_and_single_files(tmp_path):
  for name in ('a1.txt', 'a2.txt', 'b1.txt', 'a1.md'):
    (tmp_path / name).write_text(name)

  def names(*patterns):
    edits = base.text(*(f'{tmp_path}/{pattern}' for pattern in patterns))
    return [file.name for file in sources.list_files(source(edits))]

  assert names('a*.txt') == ['a1.txt', 'a2.txt']
  assert names('?1.txt') == ['a1.txt', 'b1.txt']
  assert names('[ab]1.txt') == ['a1.txt', 'b1.txt']
  assert names('b1.txt') == ['b1.txt']
  # Globs may overlap: a file is read once.
  assert names('b*', '*.txt') == ['b1.txt', 'a1.txt', 'a2.txt']


def test_names_tell_folders_of_a_source_apart(tmp_path):
  for folder in ('en/new', 'de'):
    (tmp_path / folder).mkdir(parents=True)
    (tmp_path / folder / 'x.txt').write_text(folder)
  for paths in (('en/new', 'de'), ('en/new/*.txt', 'de/x.txt')):
    edits = base.text(*(f'{tmp_path}/{path}' for path in paths))
    found = [file.name for file in sources.list_files(source(edits))]
    assert found == ['en/new/x.txt', 'de/x.txt']


def test_paths_of_other_file_systems(tmp_path):
  folder = f'memory://{tmp_path}'
  with fsspec.open(f'{folder}/x.jsonl.gz', 'wb') as file:
    file.write(gzip.compress(lines({'text': 'hello'})))
  expected = [(1, Document('mine/x.jsonl.gz:1', 'mine', 'hello'))]
  assert read(base.jsonl(f'{folder}/*.gz')) == expected
  assert read(base.jsonl(folder)) == expected


def test_home_is_known(tmp_path, monkeypatch):
  monkeypatch.setenv('HOME', str(tmp_path))
  (tmp_path / 'x.txt').write_text('x')
  assert len(read(base.text('~/x.txt'))) == 1


@pytest.mark.parametrize('path', ['missing.txt', '*.none', 'empty'])
def test_what_matches_nothing_is_refused(tmp_path, path):
  (tmp_path / 'empty').mkdir()
  with pytest.raises(
    UserError, match=r'sources\.mine\.paths: no file'
  ) as found:
    read(base.text(f'{tmp_path}/{path}'))
  assert path in str(found.value) and os.getcwd() in str(found.value)


def compressed(data: bytes, name: str) -> bytes:
  if name.endswith('.gz'):
    return gzip.compress(data)
  if name.endswith('.zst'):
    return pa.compress(data, codec='zstd', asbytes=True)
  return data


@pytest.mark.parametrize('name', ['x.jsonl', 'x.jsonl.gz', 'x.jsonl.zst'])
def test_jsonl_of_each_compression(tmp_path, name):
  records = [{'text': f'text {n} ' * 99, 'id': n} for n in range(3000)]
  data = lines(*records)
  middle = len(data) // 2
  # Several members or frames, cut in the middle of a line.
  path = tmp_path / name
  path.write_bytes(
    compressed(data[:middle], name) + compressed(data[middle:], name)
  )
  found = read(base.jsonl(str(path), id_column='id'))
  assert [line for line, _ in found] == list(range(1, 3001))
  assert [record.text for _, record in found] == [
    record['text'] for record in records
  ]
  assert [record.example_id for _, record in found] == [
    str(n) for n in range(3000)
  ]


def test_text_of_each_compression(tmp_path):
  for name in ('a.txt.gz', 'b.txt.zst', 'c.txt'):
    (tmp_path / name).write_bytes(compressed(b'one\r\ntwo', name))
  assert [record.text for _, record in read(base.text(str(tmp_path)))] == [
    'one\r\ntwo'
  ] * 3


@pytest.mark.parametrize('name', ['x.jsonl.gz', 'x.jsonl.zst', 'x.txt.gz'])
@pytest.mark.parametrize('left', [0.1, 0.5, 0.99])
def test_a_truncated_file_is_named(tmp_path, name, left):
  data = compressed(lines(*({'text': 'x' * n} for n in range(1, 3000))), name)
  path = tmp_path / name
  path.write_bytes(data[: int(len(data) * left)])
  kind = base.text if name == 'x.txt.gz' else base.jsonl
  with pytest.raises(UserError, match='cannot be read') as caught:
    read(kind(str(path)))
  assert str(path) in str(caught.value)


@pytest.mark.parametrize('name', ['x.jsonl.gz', 'x.jsonl.zst'])
def test_a_damaged_file_is_named(tmp_path, name):
  path = tmp_path / name
  path.write_bytes(b'this was never compressed')
  with pytest.raises(UserError, match='cannot be read') as caught:
    read(base.jsonl(str(path)))
  assert str(path) in str(caught.value)


def test_line_ends_and_blank_lines(tmp_path):
  path = tmp_path / 'x.jsonl'
  path.write_bytes(
    b'{"text": "a"}\r\n\r\n  \t\n\n{"text": "b\\r\\n"}\n{"text": "c"}'
  )
  assert [(n, record.text) for n, record in read(base.jsonl(str(path)))] == [
    (1, 'a'),
    (5, 'b\r\n'),
    (6, 'c'),
  ]


def test_an_empty_file_has_no_record(tmp_path):
  path = tmp_path / 'x.jsonl'
  path.write_bytes(b'')
  assert read(base.jsonl(str(path))) == []


def test_ids_without_a_column_are_file_and_line(tmp_path):
  path = tmp_path / 'sub' / 'x.jsonl'
  path.parent.mkdir()
  path.write_bytes(lines({'text': 'a', 'id': 7}, {'text': 'b', 'id': 7}))
  assert [
    record.example_id for _, record in read(base.jsonl(str(tmp_path)))
  ] == [
    'mine/sub/x.jsonl:1',
    'mine/sub/x.jsonl:2',
  ]


def test_columns_by_name(one_record):
  record = {'body': 'b', 'key': 'k', 'from': 's', 'text': 1}
  rest = {'text': 'x', 'id': 1, 'source': 's'}
  found = one_record(
    {**rest, 'text': 'the text', 'id': -(2**70), 'source': 'news'},
    id_column='id',
    source_column='source',
  )
  assert found == Document(str(-(2**70)), 'news', 'the text')
  assert one_record(record, text_column='text').reason == 'text is not a string'


BAD_ROWS = [
  (b'{"text": "a"', 'broken JSON', 'delimiter'),
  (b'{"text": "a"} x', 'broken JSON', 'Extra data'),
  (b'{"text": "a", "b": 1, "text": "a"}', 'duplicate key', "'text' comes 2"),
  (b'{"text": "a", "b": [{"c": 1, "c": 2}]}', 'duplicate key', "'c' comes 2"),
  (b'[' * 100_000, 'broken JSON', 'nested too deeply'),
  (b'{"a":' * 100_000, 'broken JSON', 'nested too deeply'),
  (b'{"text": "a", "id": ' + b'9' * 5000 + b'}', 'broken JSON', 'integer'),
  (b'["text"]', 'not a JSON object', 'list'),
  (b'null', 'not a JSON object', 'NoneType'),
  (b'"text"', 'not a JSON object', 'str'),
  ({'txt': 'a', 'b': 1}, 'no such column', "no 'text', columns are b, txt"),
  ({}, 'no such column', 'none'),
  ({'text': None}, 'text is not a string', 'NoneType'),
  ({'text': 7}, 'text is not a string', 'int'),
  ({'text': ['a']}, 'text is not a string', 'list'),
  ({'text': ''}, 'empty text', '0 characters'),
  ({'text': ' \n\t\u2003'}, 'empty text', '4 characters'),
  (b'{"text": "\xff"}', 'not UTF-8', 'byte 10'),
  (b'{"text": "\xed\xa0\x80"}', 'not UTF-8', 'byte 10'),
  (b'{"text": "ab\\ud800"}', 'not UTF-8', 'character 2'),
]


@pytest.mark.parametrize('record, reason, detail', BAD_ROWS)
def test_bad_records(one_record, record, reason, detail):
  found = one_record(record)
  assert found.reason == reason
  assert detail in found.detail


@pytest.mark.parametrize(
  'value', [True, None, 1.0, '', [], {}, 'x' * 4097, 'é' * 2049]
)
def test_bad_ids(one_record, value):
  found = one_record({'text': 'a', 'id': value}, id_column='id')
  assert found.reason == 'bad id'


@pytest.mark.parametrize('value', ['x' * 4096, 0, -1, ' ', 'a\nb\0'])
def test_odd_ids(one_record, value):
  found = one_record({'text': 'a', 'id': value}, id_column='id')
  assert found.example_id == str(value)


@pytest.mark.parametrize('value', [True, None, 1, '', []])
def test_bad_sources(one_record, value):
  found = one_record({'text': 'a', 'source': value}, source_column='source')
  assert found.reason == 'bad source'


@pytest.mark.parametrize('column', ['id', 'source'])
def test_what_cannot_be_encoded(one_record, column):
  found = one_record(
    b'{"text": "a", "%s": "x\\udc00"}' % column.encode(),
    **{f'{column}_column': column},
  )
  assert found.reason == 'not UTF-8'


@pytest.mark.parametrize('column', ['id', 'source'])
def test_a_missing_id_or_source_is_a_bad_record(one_record, column):
  found = one_record({'text': 'a'}, **{f'{column}_column': column})
  assert found.reason == 'no such column'


@pytest.mark.parametrize(
  'text', ['a\0b', '\u202eabc\u202c', 'a\u2028b\x85c', '\ufeffx', '\U0010ffff']
)
def test_odd_text_is_text(one_record, tmp_path, text):
  assert one_record({'text': text}).text == text
  raw = tmp_path / 'raw'
  raw.mkdir()
  (raw / 'x.txt').write_bytes(text.encode())
  assert read(base.text(str(raw)))[0][1].text == text


def test_a_long_line(one_record):
  text = 'long ' * 1_000_000
  assert one_record({'text': text}).text == text


@pytest.mark.parametrize(
  'data, reason',
  [(b'', 'empty text'), (b' \n', 'empty text'), (b'a\xffb', 'not UTF-8')],
)
def test_bad_text_files(tmp_path, data, reason):
  path = tmp_path / 'x.txt'
  path.write_bytes(data)
  [(line, record)] = read(base.text(str(path)))
  assert (line, record.reason, record.where) == (1, reason, str(path))


def test_a_file_name_that_is_not_utf8(tmp_path):
  with open(os.fsencode(tmp_path) + b'/\xff.txt', 'w') as file:
    file.write('text')
  [(_, record)] = read(base.text(str(tmp_path)))
  assert record.example_id.endswith('/\\xff.txt')
  assert record.example_id.encode()


def test_files_are_closed(tmp_path):
  path = tmp_path / 'x.jsonl'
  path.write_bytes(lines({'text': 'a'}, {'text': 'b'}))
  with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter('always', ResourceWarning)
    read(base.jsonl(str(path)))
    gc.collect()
  assert not caught


def test_lines_that_nobody_asks_for_are_not_parsed(tmp_path):
  path = tmp_path / 'some.jsonl'
  good = json.dumps({'text': 'a text'})
  path.write_text(f'{good}\n{{broken\n\n{good}\n')
  [file] = sources.list_files(source(base.jsonl(str(path))))
  assert [number for number, _ in sources.read_records(file)] == [1, 2, 4]
  found = list(sources.read_records(file, {3, 4}))
  assert [(number, record.text) for number, record in found] == [(4, 'a text')]


def test_every_format_of_a_config_can_be_read():
  assert tuple(sources.FORMATS) == SOURCE_FORMATS
  datasets = {name for name, form in sources.FORMATS.items() if form.dataset}
  assert set(FILE_FORMATS) == set(SOURCE_FORMATS) - datasets
