"""Folders as Spark, Delta and the Hub leave them."""

import gzip
import json
import logging

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from configs import base
from infoprune_jax.config.corpus import SourceConfig
from infoprune_jax.config.validation import UserError
from infoprune_jax.corpus import paths, sources

LEFT = [
  '_SUCCESS',
  '_metadata',
  '_common_metadata',
  '_delta_log/00000.json',
  '_temporary/0/part-9.parquet',
  'README.md',
  'data/README',
  'LICENSE',
  'LICENSE.txt',
  'dataset_info.json',
  'part-0.parquet.crc',
  '.part-0.parquet.crc',
]


def found(edits) -> list[str]:
  files = sources.list_files({'mine': SourceConfig(**edits)})
  return [file.name for file in files]


def put(path, data=b'x'):
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_bytes(data)


def test_a_folder_of_parquet(tmp_path, caplog, monkeypatch):
  names = [
    'a=1/part-0.parquet',
    '_part-1.parquet',
    '000000_0',
    'x.snappy.PARQUET',
  ]
  for name in names:
    put(tmp_path / name)
    pq.write_table(pa.table({'text': [name]}), tmp_path / name)
  for name in LEFT:
    put(tmp_path / name, b'')
  monkeypatch.setattr(logging.getLogger('infoprune_jax'), 'propagate', True)
  with caplog.at_level(logging.INFO):
    assert found(base.parquet(str(tmp_path))) == sorted(names)
  [line] = [r.getMessage() for r in caplog.records]
  assert f'{tmp_path}: skips ' in line and 'LICENSE' in line and '...' in line
  # What is named is read, or refused, whatever its name is.
  assert found(base.parquet(f'{tmp_path}/_SUCCESS')) == ['_SUCCESS']
  assert found(base.parquet(f'{tmp_path}/_S*')) == ['_SUCCESS']


def test_a_folder_of_jsonl(tmp_path):
  line = json.dumps({'text': 'a'}).encode()
  for name in ('part-0.json', 'x.jsonl', 'y.txt'):
    put(tmp_path / name, line)
  put(tmp_path / 'z.jsonl.gz', gzip.compress(line))
  for name in LEFT:
    put(tmp_path / name, b'')
  assert found(base.jsonl(str(tmp_path))) == [
    'part-0.json',
    'x.jsonl',
    'y.txt',
    'z.jsonl.gz',
  ]


def test_a_folder_of_text_is_read_whole(tmp_path):
  for name in ('README.md', '__init__.py', 'data/LICENSE'):
    put(tmp_path / name)
  assert len(found(base.text(str(tmp_path)))) == 3


def test_a_folder_of_leftovers_alone(tmp_path):
  put(tmp_path / '_SUCCESS')
  with pytest.raises(UserError, match='no file matches'):
    found(base.parquet(str(tmp_path)))


@pytest.mark.parametrize('name', ['other.csv', 'x.parquet', 'data.bin'])
def test_what_is_not_known_is_not_left_out(name):
  assert paths.is_data(name, sources.FORMATS['jsonl'].extensions)


def test_sources_without_checksums(tmp_path):
  for name, checked in (('old', False), ('new', True)):
    (tmp_path / name).mkdir()
    pq.write_table(
      pa.table({'text': ['a']}),
      tmp_path / name / 'x.parquet',
      write_page_checksum=checked,
    )
  files = sources.list_files(
    {
      name: SourceConfig(**base.parquet(str(tmp_path / name)))
      for name in ('old', 'new')
    }
  )
  assert sources.without_checksums(files) == ['old']
