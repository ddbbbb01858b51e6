"""SeqIO tasks and mixtures over a token store: a corpus and its pruned variants.

`register` names them; what a keep set leaves out is dropped by one ordinary
preprocessor, `keep_examples`. Needs TensorFlow and SeqIO.
"""

import dataclasses
import functools
import os
import posixpath
import re
from collections.abc import Callable, Iterable, Mapping, Sequence

import fsspec
import numpy as np
import seqio
import tensorflow as tf

from infoprune_jax import artifacts
from infoprune_jax.config import UserError
from infoprune_jax.data import vocabulary as vocabulary_lib
from infoprune_jax.data.keep_set import KeepSet
from infoprune_jax.data.token_store import Part, TokenStore

# As SeqIO users call them; an arm's `train` is what its keep set keeps of it.
SPLITS = {
  'train': ('reference', 'scored'),
  'validation': ('heldout',),
  'reference': ('reference',),
}
Preprocessor = Callable[[tf.data.Dataset], tf.data.Dataset]
_CHUNK = 256  # documents that one call into Python reads


class SeqIOVocabulary(seqio.Vocabulary):
  """Our vocabulary as SeqIO's; the same ids."""

  def __init__(self, vocabulary: vocabulary_lib.Vocabulary):
    super().__init__()
    self._vocabulary = vocabulary

  @property
  def bos_id(self) -> int:
    """What the first token of a document is conditioned on."""
    return self._vocabulary.bos_id

  @property
  def eos_id(self) -> int:
    """What ends a document."""
    return self._vocabulary.eos_id

  @property
  def unk_id(self) -> None:
    """None: every text has ids of its own."""
    return None

  @property
  def _base_vocab_size(self) -> int:
    return self._vocabulary.size

  def _encode(self, s: str) -> list[int]:
    return self._vocabulary.encode(s).tolist()

  def _decode(self, ids: Iterable[int]) -> str:
    return self._vocabulary.decode(ids)

  def _encode_tf(self, s: tf.Tensor) -> tf.Tensor:
    def encode(text: bytes | np.ndarray) -> np.ndarray:
      data = np.asarray(text).item()  # An array when called eagerly.
      return self._vocabulary.encode(data.decode()).astype(np.int32)

    ids = tf.numpy_function(encode, [s], tf.int32)
    ids.set_shape([None])
    return ids

  def _decode_tf(self, ids: tf.Tensor) -> tf.Tensor:
    return tf.numpy_function(
      lambda ids: self._vocabulary.decode(ids).encode(), [ids], tf.string
    )

  def __eq__(self, other: object) -> bool:
    return (
      isinstance(other, SeqIOVocabulary)
      and self._vocabulary.hash == other._vocabulary.hash
    )


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


def keep_examples(
  example_ids: Sequence[str], feature: str = 'example_id'
) -> Preprocessor:
  """A preprocessor that drops every example but those named.

  For any SeqIO task whose examples carry an id, such as TFDS's `tfds_id`.

  Args:
    example_ids: What to keep; `kept_ids` reads them off a keep set.
    feature: The string feature that identifies an example.
  """
  kept = np.sort(_fingerprint(tf.constant(example_ids, tf.string)).numpy())

  def preprocessor(dataset: tf.data.Dataset) -> tf.data.Dataset:
    table = tf.constant(kept)

    def is_kept(example: Mapping[str, tf.Tensor]) -> tf.Tensor:
      found = _fingerprint(example[feature][tf.newaxis])
      place = tf.searchsorted(table, found)
      return table[tf.minimum(place[0], len(kept) - 1)] == found[0]

    return dataset.filter(is_kept)

  return preprocessor


def _fingerprint(names: tf.Tensor) -> tf.Tensor:
  """A 64-bit integer for each string, [n] int64."""
  return tf.bitcast(tf.fingerprint(names), tf.int64)


def kept_ids(workdir: str, selection: str) -> list[str]:
  """The ids of the examples that a keep set keeps, and of all held-out ones.

  Held-out examples stay, so that a pruned task has the validation split of the
  unpruned one.

  Args:
    workdir: Of the experiment.
    selection: A folder of its `keep_sets/`.

  Raises:
    UserError: the keep set is missing, or two examples cannot be told apart by
      the fingerprint of their id.
  """
  store = TokenStore.open(workdir)
  keep_set = KeepSet.open(workdir, selection, store)
  return ids_of(store, [keep_set.rows(p) for p in range(store.num_parts)])


def ids_of(store: TokenStore, keep: Sequence[np.ndarray]) -> list[str]:
  """The ids of the given rows of each part, and of all held-out ones."""
  kept: list[str] = []
  dropped: list[str] = []
  for number, rows in enumerate(keep):
    part = store.part(number)
    names = part.table('example_id')['example_id']
    rows = np.union1d(rows, part.rows_of('heldout'))
    others = np.setdiff1d(np.arange(len(names)), rows)
    kept += names.take(rows).to_pylist()
    dropped += names.take(others).to_pylist()
  both = [
    _fingerprint(tf.constant(ids, tf.string)).numpy() for ids in (kept, dropped)
  ]
  if np.intersect1d(*both).size:
    raise UserError(
      f'{store.path}: an example to keep and one to drop have one fingerprint, '
      "so that SeqIO cannot tell them apart: use reader='grain'."
    )
  return kept


def task_name(*parts: str) -> str:
  """Joins parts into a name that SeqIO accepts: '/' and '-' it does not.

  >>> task_name('demo', 'random-seed-0')
  'demo.random_seed_0'
  """
  return '.'.join(re.sub(r'[^\w:]', '_', part) for part in parts)


class Corpus:
  """The tasks of one token store."""

  def __init__(self, store: TokenStore, vocabulary: vocabulary_lib.Vocabulary):
    """Tasks over a store, whose vocabulary this is."""
    self._features = {
      'targets': seqio.Feature(
        SeqIOVocabulary(vocabulary), add_eos=True, dtype=tf.int32
      )
    }
    self._everything = TokenStoreSource(store)
    names = set()
    for number in range(store.num_parts):
      column = store.part(number).table('source')['source']
      names.update(column.combine_chunks().dictionary.to_pylist())
    self._sources = {
      name: TokenStoreSource(store, name) for name in sorted(names)
    }

  def task(self, name: str, keep: Preprocessor | None) -> seqio.Task:
    """Documents of all sources; `targets` end with EOS."""
    return self._task(name, self._everything, keep)

  def tasks_by_source(
    self, name: str, keep: Preprocessor | None
  ) -> dict[str, seqio.Task]:
    """A task for each source, by the source's name."""
    tasks: dict[str, seqio.Task] = {}
    taken: set[str] = set()
    for source, data in self._sources.items():
      unique = task_name(source)
      while unique in taken:  # Names may differ in '-' and '_' alone.
        unique += '_'
      taken.add(unique)
      tasks[source] = self._task(f'{name}.{unique}', data, keep)
    return tasks

  def _task(
    self, name: str, source: TokenStoreSource, keep: Preprocessor | None
  ) -> seqio.Task:
    return seqio.Task(
      name,
      source,
      output_features=self._features,
      preprocessors=[
        *([keep] if keep else []),
        seqio.preprocessors.append_eos_after_trim,
      ],
    )


def register(workdir: str, name: str = '') -> list[str]:
  """Registers the tasks and mixtures of a workdir.

  Args:
    workdir: With a token store, and keep sets for the arms.
    name: Of the corpus; '' for the name of the folder.

  Returns:
    What is registered now: the task `NAME`, all that is not held out, and
    `NAME.ARM`, what an arm keeps of it; and each with `.mixture` behind, as a
    mixture of one task a source, mixed by number of examples.

  Raises:
    UserError: there is no finished token store, or a name is taken.
  """
  name = task_name(name or posixpath.basename(os.path.abspath(workdir)))
  store = TokenStore.open(workdir)
  vocabulary_dir = artifacts.vocabulary_dir(workdir)
  corpus = Corpus(store, vocabulary_lib.Vocabulary.load(vocabulary_dir))
  everything = [np.arange(n) for n in store.documents_per_part]
  names = _register(corpus, name, store, everything, None)
  for selection in _selections(workdir):
    keep_set = KeepSet.open(workdir, selection, store)
    rows = [keep_set.rows(part) for part in range(store.num_parts)]
    names += _register(
      corpus,
      task_name(name, selection),
      store,
      rows,
      keep_examples(ids_of(store, rows)),
    )
  return names


def _selections(workdir: str) -> list[str]:
  """The finished keep sets of a workdir."""
  filesystem, root = fsspec.core.url_to_fs(artifacts.keep_set_dir(workdir, '*'))
  found = filesystem.glob(f'{root}/{artifacts.MANIFEST}')
  return sorted(posixpath.basename(posixpath.dirname(path)) for path in found)


def _register(
  corpus: Corpus,
  name: str,
  store: TokenStore,
  rows: Sequence[np.ndarray],
  keep: Preprocessor | None,
) -> list[str]:
  """Registers a task of all sources, one a source, and their mixture."""
  by_source = corpus.tasks_by_source(name, keep)
  for task in (corpus.task(name, keep), *by_source.values()):
    if task.name in seqio.TaskRegistry.names():
      other = seqio.TaskRegistry.get(task.name).source
      if not _is_over(other, store):
        raise UserError(
          f'The SeqIO task {task.name} is registered already, for another '
          "workdir: register this one with name='...'."
        )
      seqio.TaskRegistry.remove(task.name)
    seqio.TaskRegistry.add_provider(task.name, task)
  mixture = f'{name}.mixture'
  seqio.MixtureRegistry.remove(mixture)
  rates = [
    (by_source[source].name, float(size.documents))
    for source, size in sizes_by_source(store, rows).items()
  ]
  seqio.MixtureRegistry.add(mixture, rates)
  return [name, mixture]


def _is_over(source: seqio.DataSource, store: TokenStore) -> bool:
  return (
    isinstance(source, TokenStoreSource)
    and source.store.fingerprint == store.fingerprint
  )


@dataclasses.dataclass
class SourceSize:
  """How much there is of one source."""

  documents: int = 0
  tokens: int = 0


def sizes_by_source(
  store: TokenStore, rows: Sequence[np.ndarray]
) -> dict[str, SourceSize]:
  """The size of each source among the given rows that are not held out."""
  sizes: dict[str, SourceSize] = {}
  for number, chosen in enumerate(rows):
    part = store.part(number)
    chosen = np.setdiff1d(chosen, part.rows_of('heldout'))
    table = part.table('source', 'num_tokens').take(chosen)
    grouped = table.group_by('source').aggregate(
      [('num_tokens', 'count'), ('num_tokens', 'sum')]
    )
    for row in grouped.to_pylist():
      size = sizes.setdefault(row['source'], SourceSize())
      size.documents += row['num_tokens_count']
      size.tokens += row['num_tokens_sum']
  return sizes
