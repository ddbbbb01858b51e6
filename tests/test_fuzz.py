"""Hostile input: refused in one message, dropped and counted, or taken.

Never a traceback, a hang, or an artifact half written. `FUZZ_EXAMPLES` in the
environment raises the number of cases of each test, and draws new ones.
"""

import datetime
import decimal
import json
import math
import os
import pathlib
import shutil
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hostile import fuzz, texts
from hypothesis import assume, given, strategies as st
from ml_collections import ConfigDict
from small_corpus import small_config

from configs import base
from infoprune_jax.config import experiment as config_lib
from infoprune_jax.config.validation import UserError
from infoprune_jax.tokens import tokenize
from infoprune_jax.tokens.token_store import TokenStore

GOOD = 40  # rows, enough for every split
NAMES = ['text', 'id', 'source', 'a', 'a.b', '', ' ', '\u202etxet', 'text\x00']

values = st.recursive(
  st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(min_value=10**30),
    st.floats(),
    texts,
  ),
  lambda inner: (
    st.lists(inner, max_size=3)
    | st.dictionaries(st.sampled_from(NAMES) | st.text(), inner, max_size=3)
  ),
  max_leaves=6,
)
rows = st.fixed_dictionaries(
  {},
  optional={
    'text': texts | values,
    'id': texts | st.integers() | values,
    'source': texts | values,
    'a': values | st.fixed_dictionaries({'b': texts | values}),
    'a.b': texts | values,
  },
)
raw_lines = st.one_of(
  st.binary(max_size=60),
  st.sampled_from(
    [
      b'[' * 100_000,
      b'{"a":' * 50_000 + b'1' + b'}' * 50_000,
      b'{"text": ' + b'9' * 10_000 + b'}',
      b'{"text": NaN, "id": Infinity}',
      b'{"text": "\\ud800", "id": "\\udfff"}',
      b'{"text": "\xff\xfe"}',
      b'{"text": "cut',
      b'{"text": "one", "text": "two", "id": "twice"}',
      b'\xef\xbb\xbf{"text": "after a mark", "id": "bom"}',
      b'{"text": "1e999", "id": 1e999}',
      b'null',
      b'"text"',
      b'\x00',
      b'\r',
      b'',
    ]
  ),
)
lines = st.one_of(
  rows.map(lambda row: json.dumps(row).encode()),
  rows.map(lambda row: json.dumps(row, ensure_ascii=False)).map(
    lambda text: text.encode('utf-8', 'surrogatepass')
  ),
  raw_lines,
)
json_files = st.builds(
  lambda start, found, end, last: start + end.join(found) + (end * last),
  st.sampled_from([b'', b'\xef\xbb\xbf', b'\xff\xfe', b'\r\n\r\n']),
  st.lists(lines, max_size=8),
  st.sampled_from([b'\n', b'\r\n', b'\n\n']),
  st.booleans(),
)


@pytest.fixture(scope='module')
def model(tmp_path_factory, corpus_path) -> str:
  """A vocabulary, so that no case has to train one."""
  workdir = tmp_path_factory.mktemp('words')
  tokenize.run(config_lib.from_mapping(small_config(corpus_path)), str(workdir))
  return str(workdir / 'vocabulary' / 'sentencepiece.model')


@pytest.fixture(scope='module')
def folder(tmp_path_factory) -> pathlib.Path:
  path = tmp_path_factory.mktemp('fuzz')
  good = [
    {'text': f'text {n} of the good ones', 'id': f'good-{n}', 'source': 'good'}
    for n in range(GOOD)
  ]
  good = [{**row, 'a': {'b': row['text']}} for row in good]
  (path / 'good.jsonl').write_text('\n'.join(map(json.dumps, good)))
  return path


def edited(model: str, good: str, **sources: Any) -> ConfigDict:
  edits = small_config(good)
  edits.corpus.sources = ConfigDict(
    {'good': base.jsonl(good, id_column='id'), **sources}
  )
  edits.corpus.heldout_fraction = 0.3
  edits.vocabulary.path = model
  return edits


def tokenized(edits: ConfigDict, workdir: pathlib.Path) -> int | None:
  """Tokenizes; the number of rows kept or dropped, or None if refused."""
  try:
    tokenize.run(config_lib.from_mapping(edits), str(workdir))
  except UserError as error:
    assert 10 < len(str(error)) < 2000, str(error)
    str(error).encode()  # A terminal takes it.
    left = [path.name for path in workdir.rglob('*') if path.is_file()]
    assert set(left) <= {'.lock'}, left
    return None
  store = TokenStore.open(str(workdir))
  for shard in range(store.num_shards):
    table = store.shard(shard).table('source', 'example_id')
    ids = [tuple(row.values()) for row in table.to_pylist()]
    assert len(ids) == len(set(ids)) == store.documents_per_shard[shard]
    for row in range(len(ids)):
      assert store.document(shard, row).max() < store.vocab_size
  assert not list(workdir.rglob('*.tmp'))
  dropped = sum(store.manifest['bad_records'].values())
  return store.manifest['num_documents'] + dropped - GOOD


def cleared(workdir: pathlib.Path) -> pathlib.Path:
  shutil.rmtree(workdir, ignore_errors=True)
  return workdir


def try_source(
  source: ConfigDict, model: str, folder: pathlib.Path, repaired: pathlib.Path
) -> int | None:
  """Refuses, and then goes on in the same workdir with another file."""
  good = str(folder / 'good.jsonl')
  workdir = cleared(folder / 'work')
  edits = edited(model, good, hostile=source)
  edits.corpus.on_bad_record = 'drop'
  dropped = tokenized(edits, workdir)
  if dropped is not None:
    edits.corpus.on_bad_record = 'refuse'
    strict = tokenized(edits, cleared(folder / 'strict'))
    assert strict in (None, dropped)
    return dropped
  # Whatever was wrong with the file: with a good one, the same command runs.
  edits.corpus.sources.hostile.paths = (str(repaired),)
  edits.corpus.sources.hostile.format = 'jsonl'
  edits.corpus.sources.hostile.update(text_column='text', source_column='')
  edits.corpus.sources.hostile.id_column = ''
  assert tokenized(edits, workdir) == 1
  return None


@pytest.fixture(scope='module')
def repaired(folder) -> pathlib.Path:
  path = folder / 'repaired.jsonl'
  path.write_text('{"text": "a good row"}\n')
  return path


columns = st.fixed_dictionaries(
  {
    'text_column': st.sampled_from(['text', 'a.b', 'a']),
    'id_column': st.sampled_from(['', 'id', 'a.b']),
    'source_column': st.sampled_from(['', 'source']),
  }
)


@fuzz
@given(data=json_files, columns=columns)
def test_jsonl(model, folder, repaired, data, columns):
  path = folder / 'hostile.jsonl'
  path.write_bytes(data)
  source = base.jsonl(str(path), **columns)
  taken = try_source(source, model, folder, repaired)
  if taken is not None:
    assert taken <= data.count(b'\n') + 1


@fuzz
@given(data=st.binary() | texts.map(lambda t: t.encode('utf-8', 'replace')))
def test_text_files(model, folder, repaired, data):
  path = folder / 'hostile.txt'
  path.write_bytes(data)
  assert try_source(base.text(str(path)), model, folder, repaired) == 1


@fuzz
@given(data=st.binary(max_size=200), suffix=st.sampled_from(['gz', 'zst']))
def test_compressed_files(model, folder, repaired, data, suffix):
  path = folder / f'hostile.jsonl.{suffix}'
  path.write_bytes(data)
  taken = try_source(base.jsonl(str(path)), model, folder, repaired)
  assert taken == (None if data else 1)  # An empty file is one bad row.


@pytest.mark.parametrize(
  'text', [b'word ' * 10_000_000, b'\xff' * 50_000_000, b' ' * 50_000_000]
)
def test_a_line_of_50_megabytes(model, folder, text):
  if text.startswith(b'word') and 'FUZZ_EXAMPLES' not in os.environ:
    text = text[: len(text) // 20]  # It takes half a minute to encode.
  path = folder / 'long.jsonl'
  path.write_bytes(b'{"text": "' + text + b'"}\n')
  edits = edited(
    model, str(folder / 'good.jsonl'), hostile=base.jsonl(str(path))
  )
  edits.corpus.on_bad_record = 'drop'
  assert tokenized(edits, cleared(folder / 'work')) == 1


@pytest.mark.parametrize(
  'name', ['a.jsonl', 'a.parquet', 'a.txt', 'a.jsonl.gz']
)
def test_an_empty_file(model, folder, repaired, name):
  path = folder / 'empty' / name
  path.parent.mkdir(exist_ok=True)
  path.touch()
  make = base.parquet if name.endswith('parquet') else base.jsonl
  source = (base.text if name.endswith('txt') else make)(str(path))
  expected = {'a.jsonl': 0, 'a.jsonl.gz': 1, 'a.txt': 1}.get(name)
  assert try_source(source, model, folder, repaired) == expected


arrow_values = {
  pa.null(): st.none(),
  pa.bool_(): st.booleans(),
  pa.int8(): st.integers(-128, 127),
  pa.uint64(): st.integers(0, 2**64 - 1),
  pa.int64(): st.integers(-(2**63), 2**63 - 1),
  pa.float16(): st.floats(width=16),
  pa.float64(): st.floats(),
  pa.decimal128(38, 4): st.decimals(-(10**9), 10**9, places=4),
  pa.decimal256(60, 0): st.integers(0, 10**40).map(decimal.Decimal),
  pa.date32(): st.dates(),
  pa.time64('us'): st.times(),
  pa.timestamp('us'): st.datetimes(),
  pa.timestamp('ns', 'Europe/Berlin'): st.integers(-(2**63), 2**63 - 1),
  # No more days than 64 bits of microseconds hold.
  pa.duration('us'): st.timedeltas(
    datetime.timedelta(days=-(10**8)), datetime.timedelta(days=10**8)
  ),
  pa.binary(): st.binary(max_size=8),
  pa.binary(3): st.binary(min_size=3, max_size=3),
  pa.large_binary(): st.binary(max_size=8),
  pa.string(): st.text(),
  pa.large_string(): st.text(),
  pa.string_view(): st.text(),
  pa.list_(pa.string()): st.lists(st.text(), max_size=2),
  pa.list_(pa.int8(), 2): st.just([1, 2]),
  pa.map_(pa.string(), pa.string()): st.just([('b', 'text in a map')]),
  pa.struct([('b', pa.string())]): st.fixed_dictionaries(
    {'b': st.text() | st.none()}
  ),
  pa.struct([('b', pa.list_(pa.float64()))]): st.just({'b': [1.0, math.nan]}),
  pa.dictionary(pa.int8(), pa.string()): st.text(),
  pa.dictionary(pa.int32(), pa.int64()): st.integers(0, 9),
}


@st.composite
def tables(draw) -> pa.Table:
  """Columns of any type, under any name, some names twice."""
  length = draw(st.integers(0, 5))
  arrays, names = [], []
  wanted = draw(st.lists(st.sampled_from(NAMES) | st.text(), max_size=3))
  for name in ['text', *wanted]:
    kind = draw(st.sampled_from(list(arrow_values)))
    if draw(st.integers(0, 3)) == 0:
      # Bytes that are no UTF-8, in a column that says they are.
      data = draw(
        st.lists(st.binary(max_size=9), min_size=length, max_size=length)
      )
      array = pa.array(data, pa.binary())
      array = pa.Array.from_buffers(pa.string(), length, array.buffers())
    else:
      column = draw(
        st.lists(
          arrow_values[kind] | st.none(), min_size=length, max_size=length
        )
      )
      array = pa.array(column, kind)
    arrays.append(array)
    names.append(name)
  return pa.Table.from_arrays(arrays, names)


@fuzz
@given(table=tables(), columns=columns, cut=st.integers(0, 30))
def test_parquet(model, folder, repaired, table, columns, cut):
  path = folder / 'hostile.parquet'
  try:
    pq.write_table(table, path)
  except (pa.ArrowException, UnicodeError):
    assume(False)  # Parquet has no word for it.
  if cut < 4:  # A download that broke off.
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * cut // 4])
  source = base.parquet(str(path), **columns)
  taken = try_source(source, model, folder, repaired)
  assert taken in (None, table.num_rows)
