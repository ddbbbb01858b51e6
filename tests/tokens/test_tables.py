"""The score table: rows in store order, read as one."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from infoprune_jax.config.validation import UserError
from infoprune_jax.runtime import artifacts, files
from infoprune_jax.runtime.workdir import data_file
from infoprune_jax.tokens import tables

SCHEMA = tables.score_schema(['nll_sum', 'nll_sum_early'])


def documents(count: int, source: str) -> pa.Table:
  """The store's own columns."""
  return pa.table(
    {
      'example_id': [f'{source}-{n}' for n in range(count)],
      'source': pa.array([source] * count).dictionary_encode(),
      'num_tokens': np.arange(count, dtype=np.int32),
      'num_bytes': np.arange(count, dtype=np.int32) * 4,
      'content_hash': np.arange(count) * 7,
      'fold': np.zeros(count, np.int8),
    }
  )


def shard(shard: int, rows: list[int], source: str) -> pa.Table:
  return tables.shard_table(
    SCHEMA,
    shard,
    np.array(rows, np.int64),
    documents(10, source),
    nll_sum=np.array(rows, float) / 2,
    nll_sum_early=np.array(rows, float) * 3,
  )


def test_rows_are_the_documents_chosen():
  found = shard(4, [7, 2, 9], 'web')
  assert found.schema.equals(SCHEMA)
  assert found.to_pydict() == {
    'shard': [4, 4, 4],
    'doc_index': [7, 2, 9],
    'example_id': ['web-7', 'web-2', 'web-9'],
    'source': ['web'] * 3,
    'num_tokens': [7, 2, 9],
    'num_bytes': [28, 8, 36],
    'nll_sum': [3.5, 1.0, 4.5],
    'content_hash': [49, 14, 63],
    'nll_sum_early': [21.0, 6.0, 27.0],
    'fold': [0, 0, 0],
  }


def test_losses_have_fewer_columns():
  found = tables.shard_table(
    tables.LOSS_SCHEMA,
    0,
    np.array([1]),
    documents(10, 'web'),
    nll_sum=np.array([2.5]),
  )
  assert found.schema.equals(tables.LOSS_SCHEMA)


def test_no_rows():
  assert shard(0, [], 'web').num_rows == 0


@pytest.fixture(params=['', 'memory://'])
def folder(request, tmp_path):
  """Three shards; the second is empty, the third knows another source."""
  path = f'{request.param}{tmp_path}/scores'
  written = [
    shard(0, [1, 2], 'web'),
    shard(1, [], 'web'),
    shard(2, [0], 'books'),
  ]
  made = artifacts.Artifact(path, 'score table', 'score', {}, {})
  names = {}
  for number in (2, 0, 1):
    names |= made.finish_shard(
      number,
      3,
      {
        data_file(number, 3): (
          lambda file, n=number: pq.write_table(written[n], file)
        )
      },
    )['files']
  made.finish(names)
  return path


def test_shards_are_read_in_order(folder):
  found = tables.read_table(folder)
  assert found.schema.equals(SCHEMA)
  assert found['shard'].to_pylist() == [0, 0, 2]
  assert found['doc_index'].to_pylist() == [1, 2, 0]
  # Each shard has a dictionary of its own.
  assert found['source'].to_pylist() == ['web', 'web', 'books']
  assert found['source'].num_chunks == 1


def test_others_read_the_folder_of_the_data(folder):
  if '://' not in folder:
    table = pq.read_table(f'{folder}/data', schema=SCHEMA)
    assert table.to_pylist() == tables.read_table(folder).to_pylist()


def test_columns_by_name(folder):
  found = tables.read_table(folder, ('nll_sum', 'doc_index'))
  assert found.column_names == ['nll_sum', 'doc_index']
  assert found['nll_sum'].to_pylist() == [0.5, 1.0, 0.0]


def test_a_shard_is_compared_with_its_checksum(folder):
  name = f'{folder}/data/part-00002-of-00003.parquet'
  data = bytearray(files.read_bytes(name))
  data[100] ^= 1
  files.write_file(name, lambda file: file.write(data))
  with pytest.raises(UserError, match=r'00002-of-00003\.parquet is damaged'):
    tables.read_table(folder)


def test_a_table_without_a_manifest_is_refused(tmp_path):
  with pytest.raises(UserError, match='is not there'):
    tables.read_table(str(tmp_path))


def test_rows_take_next_to_no_space(tmp_path):
  """As differences, which all readers of Parquet know."""
  count = 100_000
  schema = pa.schema([('doc_index', pa.int64()), ('source', pa.string())])
  made = pa.table(
    {'doc_index': np.arange(count), 'source': ['web'] * count}, schema=schema
  )
  path = tmp_path / 'x.parquet'
  with open(path, 'wb') as file:
    tables.write(made, file)
  assert pq.read_table(path).equals(made)
  assert path.stat().st_size < count / 10
