"""Parquet sources: rows as in JSONL, nested columns, and what is damaged."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from configs import base
from infoprune_jax import config
from infoprune_jax.config import UserError
from infoprune_jax.data import arrow_rows, sources
from infoprune_jax.data.sources import BadRow, Document


def read(source) -> list[tuple[int, Document | BadRow]]:
  section = config.SourceConfig(**source)
  return [
    row
    for file in sources.list_files({'mine': section})
    for row in sources.read_rows(file)
  ]


@pytest.fixture
def path(tmp_path):
  return str(tmp_path / 'x.parquet')


def test_rows_in_order_over_row_groups(path, monkeypatch):
  monkeypatch.setattr(arrow_rows, 'BATCH', 7)
  texts = [f'text {number}' for number in range(50)]
  table = pa.table({'text': texts, 'key': range(50), 'from': ['a', 'b'] * 25})
  pq.write_table(table, path, row_group_size=11)
  found = read(base.parquet(path, id_column='key', source_column='from'))
  assert [number for number, _ in found] == list(range(1, 51))
  assert [row.text for _, row in found] == texts
  assert [row.example_id for _, row in found] == [str(n) for n in range(50)]
  assert [row.source for _, row in found[:3]] == ['a', 'b', 'a']


def test_without_an_id_column_the_row_is_the_id(path):
  pq.write_table(pa.table({'text': ['a', 'b']}), path)
  ids = [row.example_id for _, row in read(base.parquet(path))]
  assert ids == ['mine/x.parquet:1', 'mine/x.parquet:2']


def test_nested_columns(path):
  rows = [{'text': 'deep', 'meta': {'id': 'x'}, 'other': 1}, None]
  pq.write_table(pa.table({'raw': rows}), path)
  found = read(
    base.parquet(path, text_column='raw.text', id_column='raw.meta.id')
  )
  assert found[0][1] == Document('x', 'mine', 'deep')
  assert isinstance(found[1][1], BadRow)
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
    (pa.array([b'bytes'], pa.binary()), 'text is not a string'),
    (pa.array([' ']), 'empty text'),
  ],
)
def test_bad_rows_name_file_and_row(path, column, reason):
  pq.write_table(pa.table({'text': column}), path)
  [(number, row)] = read(base.parquet(path))
  assert number == 1
  assert isinstance(row, BadRow)
  assert row.reason == reason
  assert row.where == f'{path}:1'


def test_bytes_that_are_no_utf8_cost_their_row_alone(path):
  column = pa.array([b'a', b'\xff', b'c'], pa.binary()).view(pa.string())
  pq.write_table(pa.table({'text': column}), path)
  found = [row for _, row in read(base.parquet(path))]
  assert [type(row) for row in found] == [Document, BadRow, Document]
  assert found[1].reason == 'not UTF-8'


def test_a_missing_column_names_those_there_are(path):
  pq.write_table(pa.table({'content': ['a'], 'id': ['b']}), path)
  [(_, row)] = read(base.parquet(path, text_column='content', id_column='id'))
  assert row.text == 'a'
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
