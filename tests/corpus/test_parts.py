"""Long files in parts: the same lines, under the same numbers."""

import json
import random

import numpy as np
import pytest

from configs import base
from infoprune_jax.corpus import corpus_index, parts, sources


def lines_of(path, part_bytes, monkeypatch):
  """All lines of a file with their numbers, read part by part."""
  monkeypatch.setattr(parts, 'PART_BYTES', part_bytes)
  files = sources.list_files({'mine': section(path)})
  cut = parts.cut(files, 1, 1)
  assert sum(file.size for file in cut) == files[0].size
  return len(cut), [
    line for file in cut for line in sources.read_lines(file.path, file.part)
  ]


def section(path):
  config = base.jsonl(str(path))
  return sources.SourceConfig(**config.to_dict())


@pytest.mark.parametrize('end', [b'', b'\n'])
@pytest.mark.parametrize('start', [b'', b'\xef\xbb\xbf'])
@pytest.mark.parametrize('part_bytes', [1, 2, 7, 40, 10**6])
def test_every_line_once(tmp_path, monkeypatch, part_bytes, start, end):
  """Short lines, blank ones, and some longer than several parts."""
  rng = random.Random(part_bytes)
  lines = [
    b'x' * rng.choice([0, 1, 3, 90]) + b'\r' * (n % 3) for n in range(60)
  ]
  path = tmp_path / 'a.jsonl'
  path.write_bytes(start + b'\n'.join([b'first', *lines, b'last']) + end)
  expected = list(sources.read_lines(str(path)))
  count, found = lines_of(path, part_bytes, monkeypatch)
  assert found == expected
  assert found[-1] == (62, b'last' + end)
  assert count == 1 if part_bytes == 10**6 else count > 10


def test_the_index_is_that_of_the_whole_file(
  tmp_path, monkeypatch, make_records, make_jsonl, make_corpus
):
  path = make_jsonl(tmp_path / 'a.jsonl', make_records(300))
  config = make_corpus({'mine': base.jsonl(str(path))}, num_workers=2)
  whole = corpus_index.build(config)
  monkeypatch.setattr(parts, 'PART_BYTES', 500)
  index = corpus_index.build(config)
  assert len(index.files) > 50
  for name in (
    'line',
    'content_hash',
    'text_hash',
    'id_hash',
    'split',
    'shard',
  ):
    np.testing.assert_array_equal(getattr(index, name), getattr(whole, name))
  every = np.ones(len(index.split), bool)
  assert list(index.documents(every)) == list(whole.documents(every))
  # A shard opens no part but its own.
  few = index.restricted_to(1)
  assert len(few.files) < len(index.files) / 2
  lines = [file.part.lines_before for file in few.files]
  assert lines[-1] < few.line.max() and lines[0] < few.line.min()


def test_a_compressed_file_is_one_part_and_said(tmp_path, monkeypatch, caplog):
  monkeypatch.setattr(parts, 'PART_BYTES', 50)
  path = tmp_path / 'a.jsonl.gz'
  path.write_bytes(bytes(1000))
  files = sources.list_files({'mine': section(path)})
  assert parts.cut(files, 3, 1) == files and not caplog.text
  assert parts.cut(files, 8, 1) == files
  assert 'each of its 8 shards decodes it from the start' in caplog.text


def test_short_files_and_other_formats_are_whole(tmp_path, monkeypatch):
  monkeypatch.setattr(parts, 'PART_BYTES', 50)
  short = tmp_path / 'short.jsonl'
  short.write_text(json.dumps({'text': 'x' * 80}))
  text = tmp_path / 'a.txt'
  text.write_text('x' * 1000)
  files = sources.list_files(
    {
      'short': section(short),
      'text': sources.SourceConfig(**base.text(str(text)).to_dict()),
    }
  )
  assert parts.cut(files, 100, 1) == files
