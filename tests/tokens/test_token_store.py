"""The token store: what is written comes back."""

import io
import os
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from infoprune_jax.config.validation import UserError
from infoprune_jax.runtime.workdir import data_file
from infoprune_jax.tokens import folds, token_store
from infoprune_jax.tokens.token_store import TokenStore

PARTS = [[[5, 6, 7], [], [9]], [], [[999, 5], [1]]]
SPLITS = [['reference', 'scored', 'heldout'], [], ['reference', 'scored']]
ROWS = [
  {
    'example_id': f'é{doc_index}',
    'source': source,
    'split': doc_index % 3,
    'num_tokens': 0,
    'num_bytes': 2**31 - 1,
    'compressed_bytes': doc_index,
    'content_hash': doc_index - 2**63,
  }
  for doc_index, source in enumerate(['web', 'books', 'web', 'ü'])
]


def test_documents_come_back(make_store):
  store = make_store(PARTS, SPLITS)
  assert store.documents_per_shard == [3, 0, 2]
  for shard_index, documents in enumerate(PARTS):
    shard = store.shard(shard_index)
    assert len(shard.offsets) == len(documents) + 1
    assert shard.column('num_tokens').tolist() == [len(d) for d in documents]
    for doc_index, ids in enumerate(documents):
      assert store.document(shard_index, doc_index).tolist() == ids


@pytest.mark.parametrize('dtype', [np.uint16, np.uint32])
def test_tokens_keep_their_dtype_on_disk(make_store, dtype):
  top = 2 ** (8 * np.dtype(dtype).itemsize) - 1
  vocab_size = min(top + 1, 2**20)
  store = make_store(
    [[[0, vocab_size - 1]]], vocab_size=vocab_size, dtype=dtype
  )
  tokens = store.shard(0).tokens
  assert isinstance(tokens, np.memmap) and tokens.dtype == dtype
  assert tokens.tolist() == [0, vocab_size - 1]


def test_rows_of_each_split(make_store):
  store = make_store(PARTS, SPLITS)
  assert [
    store.shard(p).documents_of('reference').tolist() for p in range(3)
  ] == [
    [0],
    [],
    [0],
  ]
  assert store.shard(0).documents_of('scored').tolist() == [1]
  assert store.shard(0).documents_of('heldout').tolist() == [2]


@pytest.mark.parametrize('piece', [1, 3, token_store.PIECE_TOKENS])
def test_unigrams_are_of_the_reference_split(monkeypatch, make_store, piece):
  monkeypatch.setattr(token_store, 'PIECE_TOKENS', piece)
  store = make_store(PARTS, SPLITS)
  counts = folds.unigram_counts(store, 0, 1, range(store.num_shards))
  assert counts.dtype == np.int64 and len(counts) == 1000
  assert {i: int(counts[i]) for i in np.flatnonzero(counts)} == {
    5: 2,
    6: 1,
    7: 1,
    999: 1,
  }


def test_tables_have_the_columns_asked_for(make_store):
  shard = make_store(PARTS, SPLITS).shard(0)
  assert shard.table().schema.equals(token_store.SCHEMA)
  some = shard.table('source', 'num_bytes')
  assert some.column_names == ['source', 'num_bytes']
  assert some['num_bytes'].to_pylist() == [9, 0, 3]


def test_facts_of_the_manifest(make_store):
  store = make_store(PARTS)
  assert (store.bos_id, store.eos_id, store.vocab_size) == (2, 1, 1000)
  assert store.num_shards == 3
  assert store.fingerprint == store.manifest['fingerprint']


def test_the_fingerprint_is_of_the_content(make_store):
  first = make_store(PARTS).fingerprint
  assert make_store(PARTS).fingerprint == first
  assert make_store([[[5, 6, 8], [], [9]], *PARTS[1:]]).fingerprint != first
  assert make_store([[[5, 6], [7], [9]], *PARTS[1:]]).fingerprint != first


def test_a_missing_store_names_the_job(tmp_path):
  with pytest.raises(UserError, match=r'token store .* --job=tokenize first'):
    TokenStore.open(str(tmp_path))


def test_a_damaged_store_is_refused(make_store, tmp_path):
  make_store(PARTS)
  [path] = tmp_path.glob('token_store/tokens/part-00002*.npy')
  path.write_bytes(path.read_bytes()[:-2])
  with pytest.raises(UserError, match=r'tokens/part-00002-of-00003\.npy has'):
    TokenStore.open(str(tmp_path))
  path.unlink()
  with pytest.raises(UserError, match=r'tokens/part-\S+ is missing'):
    TokenStore.open(str(tmp_path))


@pytest.mark.parametrize('doc_indices', [ROWS, ROWS[:1], []])
@pytest.mark.parametrize('limit', [token_store.MAX_STRING_BYTES, 8])
def test_the_table_is_the_one_that_arrow_makes(monkeypatch, doc_indices, limit):
  monkeypatch.setattr(token_store, 'MAX_STRING_BYTES', limit)
  tokens = [np.zeros(0, np.int64) for _ in doc_indices]
  files = token_store.shard_files(0, 1, doc_indices, tokens, 3, np.uint16)
  ours, arrows = io.BytesIO(), io.BytesIO()
  files[data_file(0, 1)](ours)
  table = pa.Table.from_pylist(doc_indices, token_store.SCHEMA)
  pq.write_table(table, arrows, compression='zstd', write_page_checksum=True)
  assert ours.getvalue() == arrows.getvalue()


def test_writing_a_shard_imports_no_pandas(tmp_path):
  (tmp_path / 'pandas.py').write_text('print("Imported.")\nraise ImportError')
  code = f"""
import io
import numpy as np
from infoprune_jax.tokens import token_store
tokens = [np.zeros(1, np.int64)] * {len(ROWS)}
files = token_store.shard_files(0, 1, {ROWS!r}, tokens, 3, np.uint16)
for write in files.values():
  write(io.BytesIO())
"""
  path = os.pathsep.join([str(tmp_path), *sys.path])
  environment = {**os.environ, 'PYTHONPATH': path}
  command = [sys.executable, '-c', code]
  assert subprocess.check_output(command, env=environment) == b''
