"""A token store as a source of SeqIO tasks. Needs TensorFlow and SeqIO.

Each element of tf.data costs more time than the work on one document. So the
source yields batches of documents, which `unbatched` splits after the filter.
"""

import functools
from collections.abc import Mapping
from typing import Any

import numpy as np
import seqio
import tensorflow as tf

from infoprune_jax.tokens.token_store import Shard, TokenStore

# The names that SeqIO users expect. For an arm, `train` is what its keep set
# keeps.
SPLITS = {
  'train': ('reference', 'scored'),
  'validation': ('heldout',),
  'reference': ('reference',),
}
_BATCH = 256  # documents


class TokenStoreSource(seqio.FileDataSource):
  """The documents of a token store for a SeqIO task, with the store's shards.

  Elements are batches: `targets`, [documents, tokens] int32 and ragged, without
  BOS or EOS, and `example_id` and `source`, [documents].
  """

  def __init__(self, store: TokenStore, source: str | None = None):
    """Reads a store.

    Args:
      store: The store.
      source: The source to read; None for all sources.
    """
    self.store, self._source = store, source
    # The interleaving below opens one file per shard.
    self._shard = functools.lru_cache(maxsize=32)(self._open_shard)
    super().__init__(
      self._batches,
      {split: store.path for split in SPLITS},
      {
        split: sum(len(self._open_shard(s)[1]) for s in self.list_shards(split))
        for split in SPLITS
      },
    )

  def list_shards(self, split: str) -> list[str]:
    """The shards of the store, each as SPLIT/NUMBER."""
    return [f'{split}/{shard}' for shard in range(self.store.num_shards)]

  def _open_shard(
    self, shard_name: str
  ) -> tuple[Shard, np.ndarray, list[np.ndarray]]:
    """A shard of the store, its documents to read, their ids and sources."""
    split, number = shard_name.split('/')
    shard = self.store.shard(int(number))
    chosen = np.sort(
      np.concatenate([shard.documents_of(name) for name in SPLITS[split]])
    )
    table = shard.table('example_id', 'source').take(chosen)
    if self._source is not None:
      mine = np.array(
        [name == self._source for name in table['source'].to_pylist()], bool
      )
      chosen, table = chosen[mine], table.filter(mine)
    names = [
      np.array([name.encode() for name in column.to_pylist()], object)
      for column in table.columns
    ]
    return shard, chosen, names

  def _batches(self, shard_name: tf.Tensor) -> tf.data.Dataset:
    """The documents of a shard, in order."""

    def count(shard_name: bytes) -> np.int64:
      return np.int64(-(-len(self._shard(shard_name.decode())[1]) // _BATCH))

    def read(shard_name: bytes, number: int) -> tuple[np.ndarray, ...]:
      shard, doc_indices, names = self._shard(shard_name.decode())
      here = slice(number * _BATCH, (number + 1) * _BATCH)
      starts, stops = (
        shard.offsets[doc_indices[here]],
        shard.offsets[doc_indices[here] + 1],
      )
      tokens = np.concatenate(
        [shard.tokens[a:b] for a, b in zip(starts, stops, strict=True)]
      )
      of_documents = (column[here] for column in names)
      return tokens.astype(np.int32), stops - starts, *of_documents

    def batch(number: tf.Tensor) -> dict[str, tf.Tensor | tf.RaggedTensor]:
      tokens, lengths, names, sources = tf.numpy_function(
        read, [shard_name, number], (tf.int32, tf.int64, tf.string, tf.string)
      )
      for tensor in (tokens, lengths, names, sources):
        tensor.set_shape([None])
      # Checking lengths would double the cost. TensorFlow's types lack this.
      targets = tf.RaggedTensor.from_row_lengths(  # pyright: ignore[reportAttributeAccessIssue]
        tokens, lengths, validate=False
      )
      return {'targets': targets, 'example_id': names, 'source': sources}

    batches = tf.numpy_function(count, [shard_name], tf.int64)
    batches.set_shape([])
    return tf.data.Dataset.range(batches).map(batch)


def unbatched(dataset: tf.data.Dataset) -> tf.data.Dataset:
  """A preprocessor that splits the batches of the source into documents."""

  def documents(batch: Mapping[str, Any]) -> tf.data.Dataset:
    targets = batch['targets']
    splits, values = targets.row_splits, targets.values
    places = (splits[:-1], splits[1:], batch['example_id'])
    return tf.data.Dataset.from_tensor_slices(places).map(
      lambda first, last, name: {
        'targets': values[first:last],
        'example_id': name,
      }
    )

  return dataset.flat_map(documents)
