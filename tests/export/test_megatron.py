"""Files of Megatron, by a reader of the layout that its page describes."""

import pathlib
import struct

import numpy as np
import pytest

from configs import base
from infoprune_jax.export import kept_tokens, megatron
from infoprune_jax.tokens.token_store import TokenStore

DTYPES = {8: '<u2', 4: '<i4'}


def read_pair(prefix: str) -> list[list[int]]:
  """The documents of a .bin and its .idx."""
  index = pathlib.Path(f'{prefix}.idx').read_bytes()
  assert index[:9] == b'MMIDIDX\0\0'
  version, code, sequences, documents = struct.unpack('<QBQQ', index[9:34])
  assert version == 1 and documents == sequences + 1
  sizes = np.frombuffer(index, '<i4', sequences, 34)
  pointers = np.frombuffer(index, '<i8', sequences, 34 + 4 * sequences)
  numbers = np.frombuffer(index, '<i8', documents, 34 + 12 * sequences)
  assert len(index) == 34 + 12 * sequences + 8 * documents
  assert numbers.tolist() == list(range(documents))
  data = pathlib.Path(f'{prefix}.bin').read_bytes()
  width = np.dtype(DTYPES[code]).itemsize
  # No bytes but those of sequences: `merge_datasets` counts on it.
  assert pointers.tolist() == (np.cumsum([0, *sizes])[:-1] * width).tolist()
  assert len(data) == sizes.sum() * width
  return [
    np.frombuffer(data, DTYPES[code], size, pointer).tolist()
    for size, pointer in zip(sizes, pointers, strict=True)
  ]


def read_all(folder: pathlib.Path) -> list[list[int]]:
  prefixes = [str(path)[:-4] for path in sorted(folder.glob('*.idx'))]
  assert len(list(folder.iterdir())) == 2 * len(prefixes)
  return [document for prefix in prefixes for document in read_pair(prefix)]


@pytest.mark.parametrize('arm', ['top', 'random-seed-1', 'everything'])
@pytest.mark.parametrize('block', [7, 1 << 20])
def test_documents_end_in_eos(
  arm, block, export, kept_documents, workdir, monkeypatch
):
  monkeypatch.setattr(megatron, '_BLOCK', block)
  eos = TokenStore.open(workdir).eos_id
  expected = [[*document, eos] for document in kept_documents(arm)]
  assert len(expected) > 30
  assert read_all(export('megatron', arm)) == expected


def test_a_document_is_there_as_often_as_an_epoch_uses_it(
  counts, export, kept_documents, workdir
):
  eos = TokenStore.open(workdir).eos_id
  documents = read_all(export('megatron', 'often'))
  assert documents == [[*ids, eos] for ids in kept_documents('often')]
  assert len(documents) == sum(counts.values())
  assert max(counts.values()) > 50


def test_a_shard_without_documents_has_no_files(
  edits, export, select_all, workdir, kept_documents
):
  edits.select.arms = {
    'few': base.arm('top', 'nll_sum', fraction=0.02),
    'all': base.arm('all'),
  }
  edits.report.baseline = 'all'
  select_all(edits, workdir)
  folder = export('megatron', 'few')
  kept = kept_documents('few')
  assert len(kept) >= 1 and len(list(folder.glob('*.idx'))) < 4
  assert len(list(folder.glob('*.idx'))) <= len(kept)
  assert len(read_all(folder)) == len(kept)


@pytest.mark.parametrize('vocab_size, code', [(65_499, 8), (65_500, 4)])
def test_large_vocabularies_have_four_bytes(
  vocab_size, code, workdir, tmp_path
):
  class Captured:
    path = str(tmp_path)

    def finish_shard(self, shard, num_shards, files, **counts):
      for name, write in files.items():
        path = tmp_path / pathlib.Path(name).name
        with open(path, 'wb') as file:
          write(file)

  kept = kept_tokens.KeptTokens(workdir, 'top', '', with_bos=False)
  task = kept_tokens.TokenTask(Captured(), 0, 4, kept, vocab_size)
  megatron.write_megatron(task)
  [index] = tmp_path.glob('*.idx')
  assert index.read_bytes()[17] == code
  assert read_pair(str(index)[:-4])
