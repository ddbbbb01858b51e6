"""Mosaic Data Shards (MDS), which the library Streaming of MosaicML reads.

A file is the number of samples and the offset of each, uint32, a JSON object
that describes the columns, and the samples; `index.json` names all files. See
"Dataset Format" and "Shard Retrieval" in the documentation of Streaming. Each
sample is one document: `id`, `source` and `text`.
"""

import itertools
import json
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from infoprune_jax.export.documents import DocumentMarker, ShardTask
from infoprune_jax.runtime import files
from infoprune_jax.runtime.artifacts import Artifact
from infoprune_jax.runtime.files import FileFacts
from infoprune_jax.runtime.manifests import Marker
from infoprune_jax.runtime.workdir import DATA, data_file

INDEX = f'{DATA}/index.json'
_SIZE_LIMIT = 1 << 26  # bytes of text in a file, as Streaming has it
_VERSION = 2
_COLUMNS = ('id', 'source', 'text')  # Readers want them in alphabetical order.
_ABOUT = {
  'column_encodings': ['str'] * len(_COLUMNS),
  'column_names': list(_COLUMNS),
  'column_sizes': [None] * len(_COLUMNS),
  'compression': None,
  'format': 'mds',
  'hashes': [],
  'size_limit': _SIZE_LIMIT,
  'version': _VERSION,
}


class MdsMarker(DocumentMarker):
  """A finished shard."""

  num_samples: list[int]  # of each of its files, in order


def write_mds(task: ShardTask) -> Marker:
  """Writes a shard, a document as often as an epoch uses it."""
  sizes = task.index.num_bytes
  if task.repeats is not None:
    sizes = np.repeat(sizes, task.repeats)
  counts = _counts(sizes)
  samples = _samples(task)

  def write(count: int, file: Any) -> None:
    file.write(_encoded(list(itertools.islice(samples, count))))

  return task.artifact.finish_shard(
    task.shard,
    task.num_shards,
    {
      data_file(task.shard, task.num_shards, f'.{number:05d}.mds'): (
        lambda file, count=count: write(count, file)
      )
      for number, count in enumerate(counts)
    },
    num_documents=len(sizes),
    num_samples=counts,
  )


def write_index(artifact: Artifact, markers: Sequence[MdsMarker]) -> FileFacts:
  """Writes the file by which Streaming finds the others."""
  shards = [
    {
      **_ABOUT,
      'raw_data': {
        'basename': name.removeprefix(f'{DATA}/'),
        'bytes': facts['bytes'],
        'hashes': {},
      },
      'samples': count,
      'zip_data': None,
    }
    for marker in markers
    for (name, facts), count in zip(
      marker['files'].items(), marker['num_samples'], strict=True
    )
  ]
  text = json.dumps({'shards': shards, 'version': _VERSION}, indent=1)
  return files.write_text(f'{artifact.path}/{INDEX}', text, artifact.write_file)


def _counts(num_bytes: np.ndarray) -> list[int]:
  """The number of samples of each file, from the bytes of their texts."""
  number_of_file = np.cumsum(num_bytes, dtype=np.int64) // _SIZE_LIMIT
  return np.unique(number_of_file, return_counts=True)[1].tolist()


def _samples(task: ShardTask) -> Iterator[bytes]:
  for document, repeats in task.documents_with_repeats():
    values = [
      value.encode()
      for value in (document.example_id, document.source, document.text)
    ]
    sizes = np.array([len(value) for value in values], '<u4')
    sample = sizes.tobytes() + b''.join(values)
    yield from itertools.repeat(sample, 1 if repeats is None else repeats)


def _encoded(samples: list[bytes]) -> bytes:
  """A file of samples."""
  about = json.dumps(_ABOUT, sort_keys=True).encode()
  sizes = [len(sample) for sample in samples]
  first = 4 * (len(samples) + 2) + len(about)
  offsets = first + np.cumsum([0, *sizes])
  head = np.array([len(samples), *offsets], '<u4')
  return head.tobytes() + about + b''.join(samples)
