"""Levanter: a finished cache of token ids, which it reads in place of a corpus.

A cache (`TreeCache` of levanter/store) is a ledger in JSON and a `JaggedArrayStore`
for each field: two arrays of Zarr 3, `data` with the tokens of all documents, and
`offsets`. The first offset is the number of documents, and the others are where
the documents end. Levanter refuses arrays with other chunks or codecs than its
own. Each document has BOS before it and EOS after it, as Levanter's own
tokenizing has.

The sizes of all documents are known before any is written, so a chunk of an
array is a file that one worker writes.
"""

import dataclasses
import json
import posixpath
from collections.abc import Sequence
from typing import Any

import numpy as np

from infoprune_jax.export.documents import DocumentMarker
from infoprune_jax.export.kept_tokens import KeptTokens
from infoprune_jax.runtime import files
from infoprune_jax.runtime.artifacts import Artifact
from infoprune_jax.runtime.files import FileFacts
from infoprune_jax.runtime.manifests import Marker
from infoprune_jax.runtime.workdir import DATA

SPLIT = 'train'  # Levanter looks for a folder of this name in its cache_dir.
_FIELD = 'input_ids'
_DATA, _OFFSETS = 'data', 'offsets'
_DTYPES = {_DATA: 'int32', _OFFSETS: 'int64'}
CHUNK, _INNER_CHUNK = 1 << 27, 1 << 18  # values
_LENGTH = 2**54  # of every array: Levanter never resizes one.
_NAME = 'kept'  # of the only shard in the ledger


class CacheMarker(DocumentMarker):
  """A finished chunk."""

  num_tokens: int


@dataclasses.dataclass(frozen=True, eq=False)
class ChunkTask:
  """What a worker needs to write one chunk of an array."""

  artifact: Artifact
  number: int
  num_tasks: int
  kept: KeptTokens
  array: str
  first: int  # the values of the array that the chunk has
  last: int
  sizes: np.ndarray  # documents and tokens of each shard, [shards, 2] int64


def tasks(
  artifact: Artifact, kept: KeptTokens, num_shards: int
) -> list[ChunkTask]:
  """A task for each chunk of both arrays."""
  ends = [kept.ends(shard) for shard in range(num_shards)]
  sizes = np.array([(len(e), e[-1] if len(e) else 0) for e in ends], np.int64)
  documents, tokens = sizes.sum(0).tolist()
  chunks = [
    (array, first, min(first + CHUNK, length))
    for array, length in ((_DATA, tokens), (_OFFSETS, documents + 1))
    for first in range(0, length, CHUNK)
  ]
  return [
    ChunkTask(artifact, number, len(chunks), kept, *chunk, sizes)
    for number, chunk in enumerate(chunks)
  ]


def write_chunk(task: ChunkTask) -> Marker:
  """Writes a chunk; its marker counts the documents and tokens in it."""
  values = _values(task)
  chunk = task.first // CHUNK
  is_data = task.array == _DATA
  return task.artifact.finish_shard(
    task.number,
    task.num_tasks,
    {
      _path(task.array, f'c/{chunk}'): (
        lambda file: _write_values(task, chunk, values, file)
      )
    },
    # The first offset is no document.
    num_documents=0 if is_data else len(values) - (task.first == 0),
    num_tokens=len(values) if is_data else 0,
  )


def _values(task: ChunkTask) -> np.ndarray:
  """The values of a chunk, [last - first]."""
  values = np.zeros(task.last - task.first, _DTYPES[task.array])
  before = np.cumsum(task.sizes, 0) - task.sizes
  if task.array == _DATA:
    starts, sizes = before[:, 1], task.sizes[:, 1]
  else:
    starts, sizes = before[:, 0] + 1, task.sizes[:, 0]
    if task.first == 0:
      values[0] = sizes.sum()
  for shard, start in enumerate(starts.tolist()):
    first = max(task.first, start)
    last = min(task.last, start + int(sizes[shard]))
    if first >= last:
      continue
    if task.array == _DATA:
      read = task.kept.read(
        shard, first - start, last - start, _DTYPES[task.array]
      )
    else:
      ends = task.kept.ends(shard)[first - start : last - start]
      read = ends + before[shard, 1]
    values[first - task.first : last - task.first] = read
  return values


def _path(array: str, name: str) -> str:
  return f'{DATA}/{SPLIT}/{_FIELD}/{array}/{name}'


def _write_values(
  task: ChunkTask, chunk: int, values: np.ndarray, file: Any
) -> None:
  """Writes the file of a chunk by TensorStore, which encodes it."""
  name = task.artifact.temporary(f'chunk-{task.number}')
  # Beside the shard, because that disk has room for it.
  scratch = posixpath.join(task.artifact.path, name)
  with files.scratch_folder(scratch) as folder:
    array = _create(folder, task.array)
    array[task.first : task.last].write(values).result()
    files.copy_into(f'{folder}/c/{chunk}', file)


def _create(folder: str, array: str) -> Any:
  """A new array of Zarr 3, with the chunks and the codecs that Levanter wants."""
  import tensorstore

  inner = {'name': 'blosc', 'configuration': {'clevel': 5}}
  sharding = {'chunk_shape': [_INNER_CHUNK], 'codecs': [inner]}
  spec = {
    'driver': 'zarr3',
    'kvstore': {'driver': 'file', 'path': f'{folder}/'},
    'metadata': {
      'shape': [_LENGTH],
      'data_type': _DTYPES[array],
      'chunk_grid': {
        'name': 'regular',
        'configuration': {'chunk_shape': [CHUNK]},
      },
      'codecs': [{'name': 'sharding_indexed', 'configuration': sharding}],
    },
  }
  return tensorstore.open(spec, create=True).result()


def write_metadata(
  artifact: Artifact, markers: Sequence[CacheMarker]
) -> dict[str, FileFacts]:
  """Writes the ledger and what is known of the arrays; returns checksums."""
  documents, tokens = (
    sum(marker[name] for marker in markers)
    for name in ('num_documents', 'num_tokens')
  )
  ledger = {
    'total_num_rows': documents,
    'shard_rows': {_NAME: documents},
    'is_finished': True,
    'finished_shards': [_NAME],
    'field_counts': {_FIELD: tokens},
    'metadata': {'preprocessor_metadata': None},
  }
  texts = {f'{DATA}/{SPLIT}/shard_ledger.json': json.dumps(ledger, indent=1)}
  for array in _DTYPES:
    with files.scratch_folder() as folder:
      _create(folder, array)
      text = files.read_bytes(f'{folder}/zarr.json').decode()
    texts[_path(array, 'zarr.json')] = text
  return {
    name: files.write_text(
      posixpath.join(artifact.path, name), text, artifact.write_file
    )
    for name, text in texts.items()
  }
