"""Caches of Levanter, by a reader of the layout that its classes describe."""

import json
import pathlib

import numpy as np
import pytest
import tensorstore

from infoprune_jax.export import levanter
from infoprune_jax.tokens.token_store import TokenStore


def read_array(folder: pathlib.Path, size: int) -> np.ndarray:
  """The first values of an array of Zarr 3."""
  kvstore = {'driver': 'file', 'path': f'{folder}/'}
  array = tensorstore.open({'driver': 'zarr3', 'kvstore': kvstore}).result()
  assert array.shape == (2**54,)
  return array[:size].read().result()


def read_cache(folder: pathlib.Path) -> list[list[int]]:
  """The documents of a finished cache."""
  ledger = json.loads((folder / 'shard_ledger.json').read_text())
  documents = ledger['total_num_rows']
  assert ledger['is_finished'] is True
  assert ledger['shard_rows'] == {
    name: documents for name in ledger['finished_shards']
  }
  offsets = read_array(folder / 'input_ids/offsets', documents + 2)
  assert offsets[0] == documents and offsets[-1] == 0
  ends = offsets[1:-1]
  assert ledger['field_counts'] == {'input_ids': ends[-1]}
  tokens = read_array(folder / 'input_ids/data', ends[-1] + 9)
  assert tokens.dtype == np.int32 and not tokens[ends[-1] :].any()
  return [ids.tolist() for ids in np.split(tokens[: ends[-1]], ends[:-1])]


@pytest.fixture
def framed(workdir, kept_documents):
  """The documents of an arm, in BOS and EOS."""
  store = TokenStore.open(workdir)
  return lambda arm: [
    [store.bos_id, *ids, store.eos_id] for ids in kept_documents(arm)
  ]


@pytest.mark.parametrize('chunk', [16, 512, 1 << 27])
@pytest.mark.parametrize('arm', ['top', 'random-seed-1'])
def test_documents_are_in_bos_and_eos(arm, chunk, export, framed, monkeypatch):
  monkeypatch.setattr(levanter, 'CHUNK', chunk)
  monkeypatch.setattr(levanter, '_INNER_CHUNK', min(chunk, 1 << 18))
  folder = export('levanter', arm) / 'train'
  assert read_cache(folder) == framed(arm)
  chunks = list((folder / 'input_ids/data/c').iterdir())
  assert (len(chunks) > 1) == (chunk < 1 << 27)


def test_a_document_is_there_as_often_as_an_epoch_uses_it(
  counts, export, framed
):
  documents = read_cache(export('levanter', 'often') / 'train')
  assert documents == framed('often')
  assert len(documents) == sum(counts.values())


def test_arrays_have_the_chunks_and_codecs_that_levanter_asks_for(export):
  """`_get_spec` of levanter/store/jagged_array.py refuses others."""
  folder = export('levanter') / 'train/input_ids'
  for name, dtype in (('data', 'int32'), ('offsets', 'int64')):
    about = json.loads((folder / name / 'zarr.json').read_text())
    assert about['data_type'] == dtype and about['fill_value'] == 0
    grid = about['chunk_grid']['configuration']['chunk_shape']
    assert grid == [512 * 256 * 1024]
    [sharding] = about['codecs']
    assert sharding['name'] == 'sharding_indexed'
    assert sharding['configuration']['chunk_shape'] == [256 * 1024]
    blosc = sharding['configuration']['codecs'][-1]
    assert blosc['name'] == 'blosc' and blosc['configuration']['clevel'] == 5
