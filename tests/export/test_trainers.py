"""Exports as the trainers themselves read them, and as the docs say.

`make test-trainers` has their libraries; without one its tests are skipped.
"""

import pathlib
from collections.abc import Callable

import pytest

from infoprune_jax.tokens.token_store import TokenStore


@pytest.fixture
def exported(export, tmp_path) -> Callable[[str], pathlib.Path]:
  """Exports an arm to a folder whose name every trainer can read."""
  return lambda format: export(format, 'often', folder=str(tmp_path / 'out'))


def test_megatron_core_reads_the_documents(
  counts, exported, kept_documents, workdir
):
  indexed_dataset = pytest.importorskip(
    'megatron.core.datasets.indexed_dataset'
  )
  eos = TokenStore.open(workdir).eos_id
  folder = exported('megatron')
  found, num_documents = [], 0
  for path in sorted(folder.glob('*.idx')):
    dataset = indexed_dataset.IndexedDataset(str(path)[:-4])
    num_documents += len(dataset.document_indices) - 1
    found += [dataset[number].tolist() for number in range(len(dataset))]
    assert (
      dataset.get(1, offset=1, length=2).tolist()
      == found[-len(dataset) + 1][1:3]
    )
  assert found == [[*ids, eos] for ids in kept_documents('often')]
  assert num_documents == len(found) == sum(counts.values())


def test_megatron_core_merges_shards(counts, exported, workdir, tmp_path):
  """As tools/merge_datasets.py of Megatron-LM does."""
  indexed_dataset = pytest.importorskip(
    'megatron.core.datasets.indexed_dataset'
  )
  paths = sorted(exported('megatron').glob('*.idx'))
  first = indexed_dataset.IndexedDataset(str(paths[0])[:-4])
  builder = indexed_dataset.IndexedDatasetBuilder(
    f'{tmp_path}/all.bin', dtype=first.index.dtype
  )
  for path in paths:
    builder.add_index(str(path)[:-4])
  builder.finalize(f'{tmp_path}/all.idx')
  merged = indexed_dataset.IndexedDataset(f'{tmp_path}/all')
  one_by_one = [
    sequence.tolist()
    for path in paths
    for sequence in indexed_dataset.IndexedDataset(str(path)[:-4])
  ]
  assert [sequence.tolist() for sequence in merged] == one_by_one


def test_streaming_reads_the_samples(
  counts, exported, exported_records, tmp_path
):
  streaming = pytest.importorskip('streaming')
  folder = exported('mds')
  dataset = streaming.StreamingDataset(
    local=str(folder.parent), split='data', batch_size=1, shuffle=False
  )
  found = [
    (sample['id'], sample['source'], sample['text'])
    for sample in (dataset[number] for number in range(len(dataset)))
  ]
  texts = {
    name: (name, *rest) for name, *rest in exported_records('everything')
  }
  assert found == [
    texts[name] for name, count in counts.items() for _ in range(count)
  ]


def test_levanter_reads_the_cache(counts, exported, kept_documents, workdir):
  cache_lib = pytest.importorskip('levanter.store.cache')
  import numpy as np

  store = TokenStore.open(workdir)
  folder = exported('levanter') / 'train'
  exemplar = {'input_ids': np.zeros(0, np.int32)}
  cache = cache_lib.TreeCache.load(str(folder), exemplar)
  expected = [
    [store.bos_id, *ids, store.eos_id] for ids in kept_documents('often')
  ]
  assert len(cache) == len(expected)
  found = cache.get_batch_sync(range(len(cache)))
  assert [document['input_ids'].tolist() for document in found] == expected


def test_levanter_makes_sequences_of_the_cache(
  counts, exported, kept_documents, workdir
):
  text = pytest.importorskip('levanter.data.text')
  cache_lib = pytest.importorskip('levanter.store.cache')
  import asyncio

  import numpy as np

  store = TokenStore.open(workdir)
  flat = [
    token
    for ids in kept_documents('often')
    for token in (store.bos_id, *ids, store.eos_id)
  ]
  folder = exported('levanter') / 'train'
  exemplar = {'input_ids': np.zeros(0, np.int32)}
  cache = cache_lib.TreeCache.load(str(folder), exemplar)
  dataset = text.TokenSeqDataset(cache, 64)
  length = asyncio.run(dataset.async_len())
  assert length == len(flat) // 64
  last = asyncio.run(dataset.get_batch([0, length - 1]))
  assert last[0].tolist() == flat[:64]
  assert last[1].tolist() == flat[64 * (length - 1) : 64 * length]
