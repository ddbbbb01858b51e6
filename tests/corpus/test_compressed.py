"""Files as they are stored: each codec, padded, cut, empty, or named wrongly."""

import bz2
import gzip
import io
import json
import lzma
import tarfile
import zipfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from configs import base
from infoprune_jax.config import (
  corpus as corpus_config,
  experiment as config_lib,
  validation,
)
from infoprune_jax.config.validation import UserError
from infoprune_jax.corpus import corpus_index, labelled, sources
from infoprune_jax.corpus.records import BadRecord

PACK = {
  '.gz': gzip.compress,
  '.zst': zstandard.compress,
  '.zstd': zstandard.compress,
  '.bz2': bz2.compress,
  '.xz': lzma.compress,
}
ROWS = [
  {'text': f'text {number} ' * 20, 'label': number % 2} for number in range(9)
]
LINES = ''.join(json.dumps(record) + '\n' for record in ROWS).encode()


def read(path, make=base.jsonl):
  section = corpus_config.SourceConfig(**make(str(path)))
  return [
    record
    for file in sources.list_files({'mine': section})
    for _, record in sources.read_records(file)
  ]


def texts(path, make=base.jsonl):
  return [record.text for record in read(path, make)]


def stored(folder, name, data):
  path = folder / name
  path.write_bytes(data)
  return path


@pytest.mark.parametrize('upper', [False, True])
@pytest.mark.parametrize('extension', PACK)
def test_each_codec(tmp_path, extension, upper):
  name = f'x.jsonl{extension}'
  packed = PACK[extension](LINES)
  path = stored(tmp_path, name.upper() if upper else name, packed)
  assert texts(path) == [record['text'] for record in ROWS]
  raw = stored(tmp_path, f'y.txt{extension}', PACK[extension](b'as it is\r\n'))
  assert texts(raw, base.text) == ['as it is\r\n']
  section = base.get_config().labels
  section.path = str(path)
  labels = validation.build(config_lib.LabelsConfig, section, 'labels')
  assert len(labelled.read(labels).documents) == len(ROWS)


@pytest.mark.parametrize('extension', PACK)
def test_members_and_zeros_behind_them(tmp_path, extension):
  pack = PACK[extension]
  one, two = pack(LINES[:700]), pack(LINES[700:])
  for number, data in enumerate(
    (one + two, one + two + bytes(512), one + bytes(512) + two + bytes(70_000))
  ):
    path = stored(tmp_path, f'{number}.jsonl{extension}', data)
    assert texts(path) == [record['text'] for record in ROWS]


@pytest.mark.parametrize('extension', PACK)
def test_what_is_cut_or_has_garbage_behind_it_is_named(tmp_path, extension):
  packed = PACK[extension](LINES)
  for left in (1, 3, len(packed) // 2, len(packed) - 1):
    path = stored(tmp_path, f'cut.jsonl{extension}', packed[:left])
    with pytest.raises(UserError, match='cannot be read: it is cut short'):
      read(path)
  for behind in (b'garbage', packed[:-1] + b'\n' + packed):
    path = stored(tmp_path, f'more.jsonl{extension}', packed + behind)
    with pytest.raises(UserError, match=r'more\.jsonl.* cannot be read: it is'):
      read(path)


def test_zstd_of_long_windows_and_skippable_frames(tmp_path):
  window = zstandard.ZstdCompressionParameters(
    window_log=31, enable_ldm=True, hash_log=12, chain_log=12, ldm_hash_log=12
  )
  packer = zstandard.ZstdCompressor(compression_params=window).compressobj()
  data = packer.compress(LINES) + packer.flush()
  path = stored(tmp_path, 'long.jsonl.zst', data)
  assert texts(path) == [record['text'] for record in ROWS]
  skippable = b'\x50\x2a\x4d\x18\x04\x00\x00\x00abcd'
  path = stored(
    tmp_path, 'skip.jsonl.zst', skippable + zstandard.compress(LINES)
  )
  assert texts(path) == [record['text'] for record in ROWS]


@pytest.mark.parametrize('name', ['x.jsonl', 'x.txt'])
@pytest.mark.parametrize('extension', PACK)
def test_an_empty_compressed_file_is_a_bad_record(tmp_path, name, extension):
  path = stored(tmp_path, name + extension, b'')
  make = base.text if name.endswith('txt') else base.jsonl
  [record] = read(path, make)
  assert isinstance(record, BadRecord)
  assert record.reason == 'empty compressed file' and record.where == str(path)
  # Of nothing, packed, there is nothing to say.
  assert (
    read(stored(tmp_path, f'z.jsonl{extension}', PACK[extension](b''))) == []
  )


def test_empty_compressed_files_are_refused_or_counted(tmp_path, make_corpus):
  for number in range(3):
    stored(tmp_path, f'{number}.jsonl.gz', b'')
  records = [json.dumps({'text': f'text {n}'}) for n in range(100)]
  stored(tmp_path, 'x.jsonl', '\n'.join(records).encode())
  source = {'mine': base.jsonl(str(tmp_path))}
  with pytest.raises(UserError, match=r'0\.jsonl\.gz: empty compressed file'):
    corpus_index.build(make_corpus(source))
  index = corpus_index.build(make_corpus(source, on_bad_record='drop'))
  assert index.bad_records == {'empty compressed file': 3}
  assert len(index.line) == 100


def test_a_byte_order_mark_is_no_shard_of_a_line(tmp_path):
  mark = b'\xef\xbb\xbf'
  for name, data in (
    ('x.jsonl', mark + LINES),
    ('x.jsonl.gz', gzip.compress(mark + LINES)),
  ):
    assert texts(stored(tmp_path, name, data)) == [
      record['text'] for record in ROWS
    ]


@pytest.mark.parametrize('order', ['le', 'be'])
@pytest.mark.parametrize('bits', [16, 32])
def test_other_encodings_are_named(tmp_path, bits, order):
  data = f'\ufeff{LINES.decode()}'.encode(f'utf-{bits}-{order}')
  for name, content in (('x.jsonl', data), ('x.jsonl.gz', gzip.compress(data))):
    with pytest.raises(UserError, match=f'says UTF-{bits}, expected UTF-8'):
      read(stored(tmp_path, name, content))
  [record] = read(stored(tmp_path, 'x.txt', data), base.text)
  assert record.reason == 'not UTF-8' and f'it is UTF-{bits}' in record.detail


def packed_as(kind):
  buffer = io.BytesIO()
  if kind == 'zip':
    with zipfile.ZipFile(buffer, 'w') as archive:
      archive.writestr('x.jsonl', LINES)
  elif kind == 'tar':
    with tarfile.open(fileobj=buffer, mode='w') as archive:
      archive.addfile(tarfile.TarInfo('x.jsonl'), io.BytesIO(b''))
  elif kind == 'parquet':
    pq.write_table(pa.table({'text': ['a']}), buffer)
  else:
    return PACK[kind](LINES)
  return buffer.getvalue()


@pytest.mark.parametrize(
  'name, kind, said',
  [
    ('x.jsonl', '.gz', r'compressed by gzip. Name it \*\.gz\.'),
    ('x.jsonl', '.zst', r'compressed by zstd. Name it \*\.zst\.'),
    ('x.jsonl', '.bz2', r'compressed by bz2. Name it \*\.bz2\.'),
    ('x.jsonl', '.xz', r'compressed by xz. Name it \*\.xz\.'),
    ('x.jsonl', 'zip', 'it is a zip archive'),
    ('x.tar', 'tar', 'it is a tar archive'),
    ('x.jsonl', 'parquet', 'it is a Parquet file'),
    ('x.jsonl.gz', '.zst', 'its name says gzip, but it is compressed by zstd'),
    ('x.jsonl.xz', 'zip', 'its name says xz, but it is a zip archive'),
  ],
)
def test_a_name_that_says_something_else(tmp_path, name, kind, said):
  with pytest.raises(UserError, match=f'cannot be read: .*{said}'):
    read(stored(tmp_path, name, packed_as(kind)))


@pytest.mark.parametrize('extension', PACK)
def test_text_that_is_named_as_compressed(tmp_path, extension):
  for make in (base.jsonl, base.text):
    path = stored(tmp_path, f'x.txt{extension}', LINES)
    with pytest.raises(UserError, match='its name says .*, but it is not'):
      read(path, make)


def test_archives_are_no_documents(tmp_path):
  path = stored(tmp_path, 'x.tar.gz', gzip.compress(packed_as('tar')))
  for make in (base.jsonl, base.text):
    with pytest.raises(UserError, match='its content is a tar archive'):
      read(path, make)
  [record] = read(stored(tmp_path, 'x.tar', packed_as('tar')), base.text)
  assert record.reason == 'an archive'


def test_text_that_only_begins_like_another_kind(tmp_path):
  for text in ('BZh9 is the beginning', 'PAR1', 'Rar! it said'):
    assert texts(stored(tmp_path, 'x.txt', text.encode()), base.text) == [text]


@pytest.mark.parametrize(
  'data, said',
  [
    (json.dumps(ROWS).encode(), 'not a JSON object'),
    (json.dumps(ROWS[0], indent=1).encode(), 'broken JSON'),
    (LINES.decode().encode('utf-16-le'), 'broken JSON'),
    (b'{"txt": "a"}\n{"txt": "b"}\n', 'no such column'),
    ('{"text": "é"}\n{"text": "è"}\n'.encode('latin-1'), 'not UTF-8'),
  ],
)
def test_a_file_is_not_dropped_whole(tmp_path, make_corpus, data, said):
  records = [json.dumps({'text': f'text {n}'}) for n in range(100)]
  stored(tmp_path, 'good.jsonl', '\n'.join(records).encode())
  bad = stored(tmp_path, 'bad.jsonl', data)
  source = {'mine': base.jsonl(str(tmp_path))}
  with pytest.raises(UserError, match=said) as caught:
    corpus_index.build(make_corpus(source, on_bad_record='drop'))
  assert f'{bad} gives no document' in str(caught.value)
  # Where it gives one, and where nothing is lost, records are dropped as ever.
  bad.write_bytes(b'{"text": "one"}\n' + data)
  corpus_index.build(make_corpus(source, on_bad_record='drop'))
  bad.write_bytes(b'{"text": ""}\n' * 3)
  index = corpus_index.build(make_corpus(source, on_bad_record='drop'))
  assert index.bad_records == {'empty text': 3}
