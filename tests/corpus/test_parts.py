"""Long files in parts: the same lines, under the same numbers."""

import json
import random

import numpy as np
import pyarrow as pa
import pytest
import zstandard

from configs import base
from infoprune_jax.config.validation import UserError
from infoprune_jax.corpus import corpus_index, parquet, parts, sources

SKIPPABLE = b'\x5e\x2a\x4d\x18\x04\x00\x00\x00abcd'
NAMES = ['a.jsonl', 'a.jsonl.zst', 'a.parquet']


def lines_of(path, part_bytes, monkeypatch):
  """All lines of a file with their numbers, read part by part."""
  set_part_bytes(monkeypatch, part_bytes)
  files = sources.list_files({'mine': section(path)})
  cut = parts.cut(files, 100, 1)
  assert sum(file.size for file in cut) == files[0].size
  return len(cut), [
    line for file in cut for line in sources.read_lines(file.path, file.part)
  ]


def set_part_bytes(monkeypatch, part_bytes):
  monkeypatch.setattr(parts, 'PART_BYTES', part_bytes)
  monkeypatch.setattr(parts, 'PACKED_PART_BYTES', part_bytes)


def frames_of(data, rng) -> bytes:
  """Frames of zstd that begin anywhere in the data, and all that may be between."""
  packed, start = b'', 0
  while start < len(data):
    end = start + rng.choice([1, 5, 30, 200])
    size = rng.choice([-1, len(data[start:end])])  # in its header, or not
    packer = zstandard.ZstdCompressor(
      write_checksum=rng.random() < 0.5
    ).compressobj(size=size)
    packed += packer.compress(data[start:end]) + packer.flush()
    packed += rng.choice(
      [b'', b'', bytes(30), zstandard.compress(b''), SKIPPABLE]
    )
    start = end
  return packed


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


@pytest.mark.parametrize('part_bytes', [1, 40, 300])
@pytest.mark.parametrize('seed', range(5))
def test_every_line_of_frames_once(tmp_path, monkeypatch, seed, part_bytes):
  """Lines that straddle frames, and frames that hold many lines or none."""
  rng = random.Random(seed)
  lines = [b'x' * rng.choice([0, 1, 3, 900]) for _ in range(60)]
  data = rng.choice([b'', b'\xef\xbb\xbf']) + b'\n'.join(lines) + b'\nlast'
  path = tmp_path / 'a.jsonl.zst'
  start = rng.choice([b'', SKIPPABLE])
  path.write_bytes(start + frames_of(data, rng) + bytes(rng.choice([0, 50])))
  expected = list(sources.read_lines(str(path)))
  assert expected[-1] == (61, b'last')
  count, read = lines_of(path, part_bytes, monkeypatch)
  assert read == expected
  assert count > 3


def test_long_blocks_and_blocks_of_one_byte(tmp_path, monkeypatch):
  noise = random.Random(0).randbytes(400_000).replace(b'\n', b' ')
  data = [noise + b'\n', b'a' * 500_000 + b'\n', b'the last line\n']
  path = tmp_path / 'a.jsonl.zst'
  path.write_bytes(b''.join(map(zstandard.compress, data)))
  count, read = lines_of(path, 1, monkeypatch)
  assert [line for _, line in read] == data
  assert count == 3


def test_a_line_that_begins_a_range_is_in_it(tmp_path, monkeypatch):
  path = tmp_path / 'a.jsonl'
  path.write_bytes(b'aaa\nbbb\nccc\n')
  count, _ = lines_of(path, 4, monkeypatch)
  assert count == 3


def test_a_frame_that_begins_like_another_kind_of_file(tmp_path, monkeypatch):
  path = tmp_path / 'a.jsonl.zst'
  data = [b'{"text": "', b'PAR1"}\n{"text": "', b'Rar!\x1a\x07"}\n']
  path.write_bytes(b''.join(map(zstandard.compress, data)))
  count, read = lines_of(path, 1, monkeypatch)
  assert b''.join(line for _, line in read) == b''.join(data)
  assert count == 2


def write_rows(path, records, rng):
  """A Parquet file whose row groups have 0 to 40 rows."""
  table = pa.Table.from_pylist(records)
  with parquet.writer(str(path), table.schema) as writer:
    while table.num_rows:
      count = rng.choice([0, 1, 3, 40])
      writer.write_table(table.slice(0, count))
      table = table.slice(count)
  return path


def as_source(path, records):
  """Writes records in the format that a name asks for."""
  if path.suffix == '.parquet':
    return base.parquet(str(write_rows(path, records, random.Random(0))))
  data = ''.join(json.dumps(record) + '\n' for record in records).encode()
  if path.suffix == '.zst':
    data = frames_of(data, random.Random(0))
  path.write_bytes(data)
  return base.jsonl(str(path))


@pytest.mark.parametrize('num_shards', [4, 9])
@pytest.mark.parametrize('name', NAMES)
def test_the_index_is_that_of_the_whole_file(
  tmp_path, monkeypatch, make_records, make_corpus, name, num_shards
):
  source = as_source(tmp_path / name, make_records(300))
  config = make_corpus({'mine': source}, num_workers=2, num_shards=num_shards)
  whole = corpus_index.build(config)
  assert len(whole.files) == 1
  set_part_bytes(monkeypatch, 500)
  index = corpus_index.build(config)
  assert len(index.files) > 12
  assert index.generations == whole.generations
  if name != 'a.jsonl':  # Fingerprints always named each part of plain JSONL.
    assert index.fingerprint() == whole.fingerprint()
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
  lines = [file.part[-1] for file in few.files]  # before each part
  assert lines[-1] < few.line.max() and lines[0] < few.line.min()


def test_a_shard_reads_its_row_groups_alone(
  tmp_path, monkeypatch, make_records, make_corpus
):
  source = as_source(tmp_path / 'a.parquet', make_records(300))
  index = corpus_index.build(make_corpus({'mine': source}, num_shards=6))
  opened = parquet.open_file
  reads = []

  class Counting:
    def __init__(self, *args):
      self.file = opened(*args)

    def __enter__(self):
      return self

    def __exit__(self, *args):
      self.file.close()

    def __getattr__(self, name):
      return getattr(self.file, name)

    def iter_batches(self, size, groups, columns):
      reads.extend(groups)
      return self.file.iter_batches(size, groups, columns)

  monkeypatch.setattr(parquet, 'open_file', Counting)
  with opened(str(tmp_path / 'a.parquet')) as file:
    rows = [
      file.metadata.row_group(n).num_rows for n in range(file.num_row_groups)
    ]
  ends = np.cumsum(rows)
  for shard in range(6):
    mine = index.restricted_to(shard)
    reads.clear()
    assert len(list(mine.documents(mine.shard == shard))) == len(mine.line) > 9
    wanted = np.unique(np.searchsorted(ends, mine.line)).tolist()
    assert reads == wanted
    assert len(reads) < len(rows) / 2


@pytest.mark.parametrize('name', NAMES[1:])
def test_damage_is_named_as_in_a_whole_file(
  tmp_path, monkeypatch, make_records, make_corpus, name
):
  """Files that are cut short anywhere, or have one other bit."""
  path = tmp_path / name
  config = make_corpus({'mine': as_source(path, make_records(100))})
  data = path.read_bytes()

  def built(part_bytes):
    set_part_bytes(monkeypatch, part_bytes)
    try:
      return corpus_index.build(config).fingerprint()
    except UserError as error:
      assert str(path) in str(error)
      return str(error)

  rng = random.Random(0)
  refused = 0
  for number in range(60):
    damaged = bytearray(data)
    if number % 2:
      damaged[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    else:
      del damaged[rng.randrange(len(data)) :]
    path.write_bytes(damaged)
    whole, cut = built(10**9), built(200)
    is_refused = 'cannot be read' in whole
    assert ('cannot be read' in cut) == is_refused
    assert is_refused or cut == whole
    refused += is_refused
  assert refused > 30


@pytest.mark.parametrize('name', NAMES)
def test_a_part_without_a_document_is_dropped(
  tmp_path, monkeypatch, make_records, make_corpus, name
):
  """As long as the file has one; otherwise the file is named."""
  records = make_records(300)
  for record in records[100:200]:
    record['text'] = None
  source = as_source(tmp_path / name, records)
  set_part_bytes(monkeypatch, 500)
  config = make_corpus({'mine': source}, on_bad_record='drop')
  assert corpus_index.build(config).bad_records == {'text is not a string': 100}
  as_source(tmp_path / name, [{**r, 'text': None} for r in records])
  with pytest.raises(UserError, match=r'all records are bad \(300\)'):
    corpus_index.build(config)


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
