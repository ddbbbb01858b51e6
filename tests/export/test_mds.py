"""Mosaic Data Shards, by a reader of the layout that its page describes."""

import itertools
import json
import pathlib
import struct
from typing import Any

import numpy as np
import pytest

from infoprune_jax.export import mds


def read_file(folder: pathlib.Path, shard: dict[str, Any]) -> list[dict]:
  """The samples of one file that the index names."""
  data = (folder / shard['raw_data']['basename']).read_bytes()
  assert len(data) == shard['raw_data']['bytes']
  [count] = struct.unpack('<I', data[:4])
  assert count == shard['samples']
  offsets = np.frombuffer(data, '<u4', count + 1, 4)
  about = json.loads(data[4 * (count + 2) : offsets[0]])
  assert about == {name: shard[name] for name in about}
  assert offsets[-1] == len(data)
  names = about['column_names']
  assert names == sorted(names)
  assert about['column_encodings'] == ['str'] * len(names)
  samples = []
  for start, end in itertools.pairwise(offsets.tolist()):
    sizes = np.frombuffer(data, '<u4', len(names), start)
    place, sample = start + sizes.nbytes, {}
    for name, size in zip(names, sizes, strict=True):
      sample[name] = data[place : place + size].decode()
      place += size
    assert place == end
    samples.append(sample)
  return samples


def read_all(folder: pathlib.Path) -> list[tuple[str, str, str]]:
  index = json.loads((folder / 'index.json').read_text())
  assert index['version'] == 2
  assert len(list(folder.iterdir())) == 1 + len(index['shards'])
  return [
    (sample['id'], sample['source'], sample['text'])
    for shard in index['shards']
    for sample in read_file(folder, shard)
  ]


@pytest.mark.parametrize('arm', ['top', 'random-seed-1'])
@pytest.mark.parametrize('size_limit', [100, 1 << 26])
def test_samples_are_the_documents(
  arm, size_limit, export, exported_records, monkeypatch
):
  monkeypatch.setattr(mds, '_SIZE_LIMIT', size_limit)
  folder = export('mds', arm)
  assert read_all(folder) == exported_records(arm)
  assert (len(list(folder.glob('*.mds'))) > 4) == (size_limit == 100)


def test_a_document_is_there_as_often_as_an_epoch_uses_it(
  counts, export, monkeypatch
):
  monkeypatch.setattr(mds, '_SIZE_LIMIT', 1000)
  ids = [name for name, _, _ in read_all(export('mds', 'often'))]
  assert ids == [name for name, count in counts.items() for _ in range(count)]
