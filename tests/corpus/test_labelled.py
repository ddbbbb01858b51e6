"""Labelled pages: what is read, and what is refused in one message."""

import gzip
import json
import pathlib

import numpy as np
import pyarrow as pa
import pytest

from configs import base
from infoprune_jax.config import validation
from infoprune_jax.config.experiment import LabelsConfig
from infoprune_jax.config.validation import UserError
from infoprune_jax.corpus import labelled

ROWS = [
  {'text': 'First.', 'label': 1, 'set': 'a', 'judge': {'says': False}},
  {'text': 'Second\nline.', 'label': 0, 'set': 'b', 'judge': {'says': True}},
  {'text': 'Third.', 'label': True, 'set': 'a', 'judge': {'says': 0.0}},
]


def section(path: object, **fields: str) -> LabelsConfig:
  values = {**base.get_config().labels, 'path': str(path), **fields}
  return validation.build(LabelsConfig, values, 'labels')


def lines(records: list[dict]) -> bytes:
  return ''.join(json.dumps(record) + '\n' for record in records).encode()


@pytest.fixture
def path(tmp_path) -> pathlib.Path:
  path = tmp_path / 'judged.jsonl'
  path.write_bytes(lines(ROWS))
  return path


def test_texts_labels_and_groups(path):
  pages = labelled.read(section(path, group_column='set'))
  assert [d.text for d in pages.documents] == [
    record['text'] for record in ROWS
  ]
  assert [d.source for d in pages.documents] == ['a', 'b', 'a']
  assert pages.label.tolist() == [True, False, True]
  assert pages.label.dtype == bool


def test_without_groups_all_are_pages(path):
  pages = labelled.read(section(path))
  assert {d.source for d in pages.documents} == {labelled.NAME}
  assert len({d.example_id for d in pages.documents}) == len(ROWS)


def test_a_label_in_a_nested_column(path):
  pages = labelled.read(section(path, label_column='judge.says'))
  assert pages.label.tolist() == [False, True, False]


@pytest.mark.parametrize('extension', ['.gz', '.zst'])
def test_compressed_files_hold_the_same(path, extension):
  data = path.read_bytes()
  packed = path.with_suffix(f'.jsonl{extension}')
  if extension == '.gz':
    packed.write_bytes(gzip.compress(data))
  else:
    with pa.CompressedOutputStream(str(packed), 'zstd') as stream:
      stream.write(data)
  plain, compressed = (labelled.read(section(p)) for p in (path, packed))
  assert compressed.digest == plain.digest
  assert np.array_equal(compressed.label, plain.label)


def test_the_digest_is_of_all_records(path):
  before = labelled.read(section(path)).digest
  changed = [*ROWS[:2], {**ROWS[2], 'label': 0}]
  path.write_bytes(lines(changed))
  assert labelled.read(section(path)).digest != before


@pytest.mark.parametrize(
  'record, expected',
  [
    ({'label': 1}, "no such column (no 'text', columns are label"),
    ({'text': 'x'}, "no such column (no 'label', columns are text"),
    ({'text': ' \n', 'label': 1}, 'empty text'),
    ({'text': 7, 'label': 1}, 'text is not a string'),
    ({'text': 'x', 'label': 2}, 'bad label (2 is neither 0 nor 1)'),
    ({'text': 'x', 'label': '1'}, "bad label ('1' is neither"),
    ({'text': 'x', 'label': None}, 'bad label (None is neither'),
    ({'text': 'x', 'label': float('nan')}, 'bad label (nan is neither'),
  ],
)
def test_a_bad_record_is_named(path, record, expected):
  path.write_bytes(lines([*ROWS, record]))
  with pytest.raises(UserError) as caught:
    labelled.read(section(path))
  assert f'{path}:{len(ROWS) + 1}: {expected}' in str(caught.value)
  assert 'labels.label_column' in str(caught.value)


def test_broken_json_and_a_group_that_is_missing_are_named(path):
  with pytest.raises(UserError, match=r"jsonl:1: no such column \(no 'sets'"):
    labelled.read(section(path, group_column='sets'))
  with pytest.raises(UserError, match=r'jsonl:1: bad source \(label=1\)'):
    labelled.read(section(path, group_column='label'))
  path.write_bytes(lines(ROWS) + b'\n{"text"\n')
  with pytest.raises(UserError, match='jsonl:5: broken JSON'):
    labelled.read(section(path))


@pytest.mark.parametrize(
  'records, expected',
  [
    ([], 'holds no page'),
    ([ROWS[0], ROWS[2]], 'all 2 pages of .* have the label 1'),
    ([ROWS[1]], 'all 1 pages of .* have the label 0'),
  ],
)
def test_labels_that_tell_nothing_apart_are_refused(path, records, expected):
  path.write_bytes(lines(records))
  with pytest.raises(UserError, match=expected):
    labelled.read(section(path))


def test_no_file_is_refused(tmp_path):
  with pytest.raises(UserError, match=r'labels\.path is empty'):
    labelled.read(section(''))
  with pytest.raises(UserError, match=r'labels\.path: no file matches'):
    labelled.read(section(tmp_path / 'none.jsonl'))
