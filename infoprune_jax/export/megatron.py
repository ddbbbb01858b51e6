"""Megatron-LM: token ids (.bin) and their index (.idx), a pair for each shard.

The layout is that of the `IndexedDataset` of Megatron Core, see the section
IndexedDataset in its megatron/core/datasets/readme.md. Each document is one
sequence and ends in EOS, as tools/preprocess_data.py writes it with
`--append-eod`; there is no BOS.
"""

import struct
from typing import Any

import numpy as np

from infoprune_jax.export.kept_tokens import TokenTask
from infoprune_jax.runtime.manifests import Marker
from infoprune_jax.runtime.workdir import data_file

_MAGIC, _VERSION = b'MMIDIDX\x00\x00', 1
_CODES = {'<u2': 8, '<i4': 4}  # types of token ids, as the index names them
# Megatron gives larger vocabularies four bytes for each token.
_SMALL_VOCABULARY = 65500
_BLOCK = 1 << 20  # tokens in memory at once


def write_megatron(task: TokenTask) -> Marker:
  """Writes a shard; without documents it has no files, as none can be empty."""
  dtype = '<u2' if task.vocab_size < _SMALL_VOCABULARY else '<i4'
  ends = task.kept.ends(task.shard)
  name = data_file(task.shard, task.num_shards, '')

  def write_tokens(file: Any) -> None:
    size = int(ends[-1])
    for first in range(0, size, _BLOCK):
      last = min(first + _BLOCK, size)
      file.write(task.kept.read(task.shard, first, last, dtype))

  return task.artifact.finish_shard(
    task.shard,
    task.num_shards,
    {
      f'{name}.bin': write_tokens,
      f'{name}.idx': lambda file: file.write(_index(ends, dtype)),
    }
    if len(ends)
    else {},
    num_documents=len(ends),
  )


def _index(ends: np.ndarray, dtype: str) -> bytes:
  """The index of documents that end at these numbers of tokens."""
  starts = np.concatenate([[0], ends])
  # How many sequences there are, and at which each document begins or ends.
  sizes = struct.pack('<QQ', len(ends), len(starts))
  return b''.join(
    [
      _MAGIC,
      struct.pack('<QB', _VERSION, _CODES[dtype]),
      sizes,
      np.diff(starts).astype('<i4').tobytes(),
      (starts[:-1] * np.dtype(dtype).itemsize).astype('<i8').tobytes(),
      np.arange(len(starts)).astype('<i8').tobytes(),
    ]
  )
