"""A token store as a source of SeqIO tasks. Needs TensorFlow and SeqIO."""

import functools

import numpy as np
import seqio
import tensorflow as tf

from infoprune_jax.data.token_store import Part, TokenStore

# As SeqIO users call them; an arm's `train` is what its keep set keeps of it.
SPLITS = {
  'train': ('reference', 'scored'),
  'validation': ('heldout',),
  'reference': ('reference',),
}
_CHUNK = 256  # documents that one call into Python reads


class TokenStoreSource(seqio.FileDataSource):
  """The documents of a token store, for a SeqIO task; a shard is a part.

  Examples hold `targets` ([tokens] int32, without BOS or EOS) and `example_id`.
  """

  def __init__(self, store: TokenStore, source: str | None = None):
    """Reads a store.

    Args:
      store: Opened.
      source: Only its documents; None for those of every source.
    """
    self.store, self._source = store, source
    # One shard an open file of the interleaving below.
    self._shard = functools.lru_cache(maxsize=32)(self._open_shard)
    super().__init__(
      self._documents,
      {split: store.path for split in SPLITS},
      {
        split: sum(len(self._open_shard(s)[1]) for s in self.list_shards(split))
        for split in SPLITS
      },
    )

  def list_shards(self, split: str) -> list[str]:
    """Split and part of each shard."""
    return [f'{split}/{part}' for part in range(self.store.num_parts)]

  def _open_shard(self, shard: str) -> tuple[Part, np.ndarray, np.ndarray]:
    """A part of the store, and which rows of it, with their example ids."""
    split, number = shard.split('/')
    part = self.store.part(int(number))
    chosen = np.sort(
      np.concatenate([part.rows_of(name) for name in SPLITS[split]])
    )
    table = part.table('example_id', 'source').take(chosen)
    if self._source is not None:
      mine = np.array(
        [name == self._source for name in table['source'].to_pylist()], bool
      )
      chosen, table = chosen[mine], table.filter(mine)
    names = [name.encode() for name in table['example_id'].to_pylist()]
    return part, chosen, np.array(names, object)

  def _documents(self, shard: tf.Tensor) -> tf.data.Dataset:
    """The documents of a shard, read a chunk at a time."""

    def count(shard: bytes) -> np.int64:
      return np.int64(-(-len(self._shard(shard.decode())[1]) // _CHUNK))

    def read(shard: bytes, chunk: int) -> tuple[np.ndarray, ...]:
      part, rows, names = self._shard(shard.decode())
      here = slice(chunk * _CHUNK, (chunk + 1) * _CHUNK)
      starts, stops = part.offsets[rows[here]], part.offsets[rows[here] + 1]
      tokens = np.concatenate(
        [part.tokens[a:b] for a, b in zip(starts, stops, strict=True)]
      )
      ends = np.cumsum(stops - starts)
      return tokens.astype(np.int32), ends - (stops - starts), ends, names[here]

    def documents(chunk: tf.Tensor) -> tf.data.Dataset:
      tokens, *places = tf.numpy_function(
        read, [shard, chunk], (tf.int32, tf.int64, tf.int64, tf.string)
      )
      for tensor in (tokens, *places):
        tensor.set_shape([None])
      return tf.data.Dataset.from_tensor_slices(tuple(places)).map(
        lambda first, last, name: {
          'targets': tokens[first:last],
          'example_id': name,
        }
      )

    chunks = tf.numpy_function(count, [shard], tf.int64)
    chunks.set_shape([])
    return tf.data.Dataset.range(chunks).flat_map(documents)
