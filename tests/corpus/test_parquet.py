"""Parquet sources: records as in JSONL, nested columns, and what is damaged."""

import datetime
import decimal
import random
import uuid

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from configs import base
from infoprune_jax.config import corpus as corpus_config
from infoprune_jax.config.validation import UserError
from infoprune_jax.corpus import arrow_records, parquet, sources
from infoprune_jax.corpus.sources import BadRecord, Document


def read(source) -> list[tuple[int, Document | BadRecord]]:
  section = corpus_config.SourceConfig(**source)
  return [
    record
    for file in sources.list_files({'mine': section})
    for record in sources.read_records(file)
  ]


@pytest.fixture
def path(tmp_path):
  return str(tmp_path / 'x.parquet')


def test_records_in_order_over_row_groups(path, monkeypatch):
  monkeypatch.setattr(arrow_records, 'BATCH', 7)
  texts = [f'text {number}' for number in range(50)]
  table = pa.table({'text': texts, 'key': range(50), 'from': ['a', 'b'] * 25})
  pq.write_table(table, path, row_group_size=11)
  found = read(base.parquet(path, id_column='key', source_column='from'))
  assert [number for number, _ in found] == list(range(1, 51))
  assert [record.text for _, record in found] == texts
  assert [record.example_id for _, record in found] == [
    str(n) for n in range(50)
  ]
  assert [record.source for _, record in found[:3]] == ['a', 'b', 'a']


def test_without_an_id_column_the_record_is_the_id(path):
  pq.write_table(pa.table({'text': ['a', 'b']}), path)
  ids = [record.example_id for _, record in read(base.parquet(path))]
  assert ids == ['mine/x.parquet:1', 'mine/x.parquet:2']


def test_nested_columns(path):
  records = [{'text': 'deep', 'meta': {'id': 'x'}, 'other': 1}, None]
  pq.write_table(pa.table({'raw': records}), path)
  found = read(
    base.parquet(path, text_column='raw.text', id_column='raw.meta.id')
  )
  assert found[0][1] == Document('x', 'mine', 'deep')
  assert isinstance(found[1][1], BadRecord)
  assert found[1][1].where == f'{path}:2'


def test_a_column_whose_name_has_a_dot(path):
  pq.write_table(pa.table({'raw.text': ['flat']}), path)
  assert read(base.parquet(path, text_column='raw.text'))[0][1].text == 'flat'


@pytest.mark.parametrize(
  'column, reason',
  [
    (pa.array([None], pa.string()), 'text is not a string'),
    (pa.array([3]), 'text is not a string'),
    (pa.array([float('nan')]), 'text is not a string'),
    (pa.array([b'\xff'], pa.binary()), 'not UTF-8'),
    (pa.array([' ']), 'empty text'),
  ],
)
def test_bad_records_name_file_and_record(path, column, reason):
  pq.write_table(pa.table({'text': column}), path)
  [(number, record)] = read(base.parquet(path))
  assert number == 1
  assert isinstance(record, BadRecord)
  assert record.reason == reason
  assert record.where == f'{path}:1'


def test_bytes_that_are_no_utf8_cost_their_record_alone(path):
  column = pa.array([b'a', b'\xff', b'c'], pa.binary()).view(pa.string())
  pq.write_table(pa.table({'text': column}), path)
  found = [record for _, record in read(base.parquet(path))]
  assert [type(record) for record in found] == [Document, BadRecord, Document]
  assert found[1].reason == 'not UTF-8'


def test_a_missing_column_names_those_there_are(path):
  pq.write_table(pa.table({'content': ['a'], 'id': ['b']}), path)
  [(_, record)] = read(
    base.parquet(path, text_column='content', id_column='id')
  )
  assert record.text == 'a'
  with pytest.raises(UserError, match=r"no column 'text'.* content, id\."):
    read(base.parquet(path))


def test_a_column_that_is_there_twice_is_refused(path):
  twice = pa.Table.from_arrays([pa.array(['a']), pa.array(['b'])], ['text'] * 2)
  pq.write_table(twice, path)
  with pytest.raises(UserError, match="has 2 columns 'text': rename one"):
    read(base.parquet(path))


@pytest.mark.parametrize('keep', [0, 4, 200, -1])
def test_a_damaged_file_is_named(path, keep):
  pq.write_table(pa.table({'text': ['a' * 100] * 50}), path)
  with open(path, 'rb') as file:
    data = file.read()
  with open(path, 'wb') as file:
    file.write(data[:keep])
  with pytest.raises(UserError, match=r'x\.parquet cannot be read'):
    read(base.parquet(path))


BYTES = [
  pa.binary(),
  pa.large_binary(),
  pa.binary_view(),
  pa.dictionary(pa.int32(), pa.binary()),
  pa.dictionary(pa.int8(), pa.large_string()),
]


@pytest.mark.parametrize('type_', BYTES, ids=str)
def test_bytes_are_text_in_utf8(path, type_):
  values = ['naïve', '北京', 'naïve']
  try:
    column = pa.array([v.encode() for v in values], pa.binary()).cast(type_)
  except pa.ArrowNotImplementedError:
    column = pa.array(values).dictionary_encode().cast(type_)
  ids = pa.array([b'a', b'b', b'c'], pa.binary())
  pq.write_table(pa.table({'text': column, 'id': ids, 'from': column}), path)
  found = read(base.parquet(path, id_column='id', source_column='from'))
  assert [record.text for _, record in found] == values
  assert [record.source for _, record in found] == values
  assert [record.example_id for _, record in found] == ['a', 'b', 'c']


@pytest.mark.parametrize('store_schema', [True, False])
def test_a_uuid_is_an_id(path, store_schema):
  ids = [uuid.UUID(int=n << 64) for n in range(3)]
  column = pa.array([id_.bytes for id_ in ids], pa.uuid())
  table = pa.table({'text': ['a', 'b', 'c'], 'id': column})
  pq.write_table(table, path, store_schema=store_schema)
  found = read(base.parquet(path, id_column='id'))
  assert [record.example_id for _, record in found] == [str(id_) for id_ in ids]


@pytest.mark.parametrize(
  'column, said',
  [
    (pa.array([b'\xff' * 16], pa.binary(16)), 'not UTF-8 at byte 0'),
    (pa.array([decimal.Decimal('1.5')]), 'of type Decimal'),
    (pa.array([datetime.date(2020, 1, 2)]), 'of type date'),
    (pa.array([1.0]), 'of type float; ids are text, integers or UUIDs'),
  ],
)
def test_what_is_no_id_is_said(path, column, said):
  pq.write_table(pa.table({'text': ['a'], 'id': column}), path)
  [(_, record)] = read(base.parquet(path, id_column='id'))
  assert record.reason == 'bad id' and said in record.detail


@pytest.mark.parametrize('compression', ['none', 'snappy', 'zstd'])
@pytest.mark.parametrize('use_dictionary', [True, False])
def test_a_flipped_bit_is_found_where_there_are_checksums(
  path, compression, use_dictionary
):
  texts = [f'text {number % 40} of a table' for number in range(200)]
  pq.write_table(
    pa.table({'text': texts}),
    path,
    compression=compression,
    use_dictionary=use_dictionary,
    write_page_checksum=True,
  )
  with open(path, 'rb') as file:
    data = file.read()
    assert parquet.has_checksums(file)
  rng = random.Random(compression)
  for _ in range(20):
    place = rng.randrange(4, len(data) - 8)
    damaged = bytearray(data)
    damaged[place] ^= 1 << rng.randrange(8)
    with open(path, 'wb') as file:
      file.write(damaged)
    try:
      found = [record.text for _, record in read(base.parquet(path))]
    except UserError as error:
      assert path in str(error)
    else:
      assert found == texts  # The bit meant nothing to the text.


@pytest.mark.parametrize('version', ['1.0', '2.0'])
@pytest.mark.parametrize('use_dictionary', [True, False])
@pytest.mark.parametrize(
  'column', [['x' * 500] * 99, [1, None] * 4000, [{'a': 1}]]
)
def test_whether_a_file_has_checksums(path, version, use_dictionary, column):
  for written in (True, False):
    pq.write_table(
      pa.table({'a': column}),
      path,
      use_dictionary=use_dictionary,
      data_page_version=version,
      write_page_checksum=written,
    )
    with open(path, 'rb') as file:
      assert parquet.has_checksums(file) == written


def test_a_file_without_pages_lacks_no_checksum(path):
  pq.write_table(pa.table({'a': pa.array([], pa.string())}), path)
  with open(path, 'rb') as file:
    assert parquet.has_checksums(file)
