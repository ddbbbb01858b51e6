"""SeqIO tasks and mixtures of a token store: a corpus, whole and pruned.

`register` names them. A preprocessor drops the examples that a keep set leaves
out, and repeats those that it repeats: `keep_documents` in our tasks, by source
and id, and `keep_examples` in tasks of others, by id. Needs TensorFlow and SeqIO.
"""

import dataclasses
import posixpath
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import seqio
import tensorflow as tf
from seqio.vocabularies import PAD_ID

from infoprune_jax.batches import passes
from infoprune_jax.config.validation import UserError
from infoprune_jax.runtime import filesystems, manifests
from infoprune_jax.runtime.progress import logger
from infoprune_jax.runtime.workdir import keep_set_dir, vocabulary_dir
from infoprune_jax.selection.keep_set import KeepSet
from infoprune_jax.seqio_tasks.seqio_vocabulary import SeqIOVocabulary
from infoprune_jax.seqio_tasks.token_store_source import (
  TokenStoreSource,
  unbatched,
)
from infoprune_jax.tokens import vocabulary as vocabulary_lib
from infoprune_jax.tokens.token_store import Shard, TokenStore

Preprocessor = Callable[[tf.data.Dataset], tf.data.Dataset]


def keep_examples(
  example_ids: Sequence[str], feature: str = 'example_id'
) -> Preprocessor:
  """A preprocessor that keeps the examples with the given ids.

  It works for any SeqIO task of one source whose examples have an id, such as
  the `tfds_id` of TFDS. Elements are examples or, which is much faster, batches
  of them. If an id is there several times, the source is read in several
  passes, see `batches/passes.py`.

  Args:
    example_ids: The ids to keep, once for each time that an epoch uses the
      example; `kept_ids` reads them from a keep set.
    feature: The string feature that identifies an example.
  """
  prints = np.sort(_fingerprint(tf.constant(example_ids, tf.string)).numpy())
  return _keep(prints, prints, (feature,))


def keep_documents(
  store: TokenStore, keep: Sequence[np.ndarray]
) -> Preprocessor:
  """A preprocessor that keeps documents, for the tasks of their token store.

  It tells them apart by source and id. Held-out documents stay, so that a
  pruned task has the same validation split as the unpruned task.

  Args:
    store: The store, which the tasks read by `TokenStoreSource`.
    keep: For each shard, the indices of documents to keep, int. An epoch uses a
      document as often as it is there.

  Raises:
    UserError: two documents have the same fingerprint of source and id.
  """
  prints, of_ids, repeats = [], [], []
  for number, doc_indices in enumerate(keep):
    shard = store.shard(number)
    table = shard.table('source', 'example_id')
    sources, ids = (
      tf.constant(table[name].to_pylist(), tf.string)
      for name in table.column_names
    )
    prints.append(_fingerprint(sources, ids).numpy())
    of_ids.append(_fingerprint(ids).numpy())
    repeats.append(_repeats(shard, doc_indices))
  every = np.concatenate(prints)
  if len(np.unique(every)) < len(every):
    raise UserError(
      f'{store.path}: two examples have the same fingerprint of source and id, '
      "so SeqIO cannot tell them apart: use reader='grain'."
    )
  # Passes go by the id alone, unless several sources have it.
  ids, inverse, count = np.unique(
    np.concatenate(of_ids), return_inverse=True, return_counts=True
  )
  document = np.where(count[inverse] > 1, every, ids[inverse])
  order = np.argsort(every)
  copies = np.repeat(order, np.concatenate(repeats)[order])
  return _keep(every[copies], document[copies], ('source', 'example_id'))


def _keep(
  prints: np.ndarray, document: np.ndarray, features: tuple[str, ...]
) -> Preprocessor:
  """A preprocessor that keeps the examples whose features have these prints.

  Args:
    prints: [copies] int64, ascending.
    document: [copies] int64, see `passes.split`.
    features: The string features that together identify an example.
  """
  kept = passes.split(prints, document, seed=0)

  def preprocessor(dataset: tf.data.Dataset) -> tf.data.Dataset:
    whole = _only(dataset, kept[0], features)
    for one in kept[1:]:
      whole = whole.concatenate(_only(dataset, one, features))
    return whole

  return preprocessor


def _only(
  dataset: tf.data.Dataset, kept: np.ndarray, features: tuple[str, ...]
) -> tf.data.Dataset:
  """The examples with these fingerprints, [n] int64, ascending."""
  table = tf.constant(kept)

  def is_kept(*names: tf.Tensor) -> tf.Tensor:
    prints = _fingerprint(*names)
    nearest = tf.minimum(tf.searchsorted(table, prints), len(kept) - 1)
    return tf.gather(table, nearest) == prints

  spec: Any = dataset.element_spec
  if spec[features[0]].shape.rank == 0:
    return dataset.filter(
      lambda example: is_kept(*(example[f][tf.newaxis] for f in features))[0]
    )

  def masked(batch: Mapping[str, Any]) -> dict[str, Any]:
    doc_indices = tf.where(is_kept(*(batch[f] for f in features)))[:, 0]
    return {
      name: tf.gather(values, doc_indices) for name, values in batch.items()
    }

  return dataset.map(masked)


def _fingerprint(*names: tf.Tensor) -> tf.Tensor:
  """A 64-bit integer for each example, by its strings, [n] int64."""
  joined = tf.strings.join(names, separator='\0')
  return tf.bitcast(tf.fingerprint(joined), tf.int64)


def _repeats(shard: Shard, doc_indices: np.ndarray) -> np.ndarray:
  """How often an epoch uses each document, and 1 for held-out ones, [documents]."""
  repeats = np.bincount(doc_indices, minlength=len(shard.offsets) - 1)
  heldout = shard.documents_of('heldout')
  repeats[heldout] = np.maximum(repeats[heldout], 1)
  return repeats


def kept_ids(workdir: str, selection: str, source: str = '') -> list[str]:
  """The ids of the examples in a keep set, and of all held-out examples.

  Held-out examples stay, so that a pruned task has the same validation split as
  the unpruned task. An id is there as often as an epoch uses the example.

  Args:
    workdir: The workdir of the experiment.
    selection: A folder in its `keep_sets/`.
    source: The source of the examples; '' for all sources, if no two of them
      have an id in common.

  Raises:
    UserError: the keep set or the source is missing, an id is of several
      sources, or two examples cannot be told apart by the fingerprint of their
      id.
  """
  store = TokenStore.open(workdir)
  keep_set = KeepSet.open(workdir, selection, store)
  columns, repeats = [], []
  for number in range(store.num_shards):
    shard = store.shard(number)
    table = shard.table('example_id', 'source')
    columns.append(table)
    repeats.append(_repeats(shard, keep_set.doc_indices(number)))
  documents, repeats = pa.concat_tables(columns), np.concatenate(repeats)
  if source:
    inside = np.array([s == source for s in documents['source'].to_pylist()])
    documents, repeats = documents.filter(inside), repeats[inside]
    if not len(repeats):
      raise UserError(f'{store.path} has no document of the source {source!r}.')
  ids = documents['example_id']
  _check_distinct(store, ids)
  return ids.take(np.repeat(np.arange(len(ids)), repeats)).to_pylist()


def _check_distinct(store: TokenStore, ids: pa.ChunkedArray) -> None:
  """Raises `UserError` unless these ids and their fingerprints all differ."""
  values, counts = ids.value_counts().flatten()
  shared = values.filter(counts.to_numpy() > 1)
  if len(shared):
    raise UserError(
      f'{store.path}: {len(shared)} ids are of more than one source, such as '
      f'{shared[0].as_py()!r}: prune a task for each source, with '
      "kept_ids(..., source='NAME')."
    )
  prints = _fingerprint(tf.constant(ids.to_pylist(), tf.string)).numpy()
  if len(np.unique(prints)) < len(prints):
    raise UserError(
      f'{store.path}: two ids have the same fingerprint, so SeqIO cannot tell '
      "their examples apart: use reader='grain'."
    )


def task_name(*names: str) -> str:
  """Joins names into a name that SeqIO accepts, without '/' and '-'.

  >>> task_name('demo', 'random-seed-0')
  'demo.random_seed_0'
  """
  return '.'.join(re.sub(r'[^\w:]', '_', name) for name in names)


class Corpus:
  """The tasks of one token store."""

  def __init__(self, store: TokenStore, vocabulary: vocabulary_lib.Vocabulary):
    """Makes tasks over a store with its vocabulary."""
    padding = vocabulary.decode([PAD_ID])
    if padding:
      logger.warning(
        'seqio: SeqIO pads with id %d, which is the token %r here: the feature '
        'converters of SeqIO give that token no loss. Our readers do.',
        PAD_ID,
        padding,
      )
    self._features = {
      'targets': seqio.Feature(
        SeqIOVocabulary(vocabulary), add_eos=True, dtype=tf.int32
      )
    }
    self._everything = TokenStoreSource(store)
    names = set()
    for number in range(store.num_shards):
      column = store.shard(number).table('source')['source']
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
        unbatched,
        seqio.preprocessors.append_eos_after_trim,
      ],
    )


def register(workdir: str, name: str = '') -> list[str]:
  """Registers the tasks and mixtures of a workdir.

  Args:
    workdir: A workdir with a token store, and keep sets for the arms.
    name: The name of the corpus; '' for the name of the folder.

  Returns:
    The registered names: the task `NAME`, all documents that are not held out;
    `NAME.ARM`, the documents that an arm keeps; and `NAME.mixture` and
    `NAME.ARM.mixture`, mixtures of one task per source, mixed by number of
    examples.

  Raises:
    UserError: there is no finished token store, or a name is taken.
  """
  workdir = filesystems.canonical(workdir)
  name = task_name(name or posixpath.basename(workdir))
  store = TokenStore.open(workdir)
  words = vocabulary_lib.Vocabulary.load(vocabulary_dir(workdir))
  corpus = Corpus(store, words)
  everything = [np.arange(n) for n in store.documents_per_shard]
  names = _register(corpus, name, store, everything, None)
  for selection in _selections(workdir):
    keep_set = KeepSet.open(workdir, selection, store)
    doc_indices = [
      keep_set.doc_indices(shard) for shard in range(store.num_shards)
    ]
    names += _register(
      corpus,
      task_name(name, selection),
      store,
      doc_indices,
      keep_documents(store, doc_indices),
    )
  return names


def _selections(workdir: str) -> list[str]:
  """The finished keep sets of a workdir."""
  paths = filesystems.matching(
    keep_set_dir(workdir, ''), f'*/{manifests.MANIFEST}'
  )
  return [posixpath.basename(posixpath.dirname(path)) for path in paths]


def _register(
  corpus: Corpus,
  name: str,
  store: TokenStore,
  doc_indices: Sequence[np.ndarray],
  keep: Preprocessor | None,
) -> list[str]:
  """Registers a task of all sources, a task per source, and their mixture."""
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
    for source, size in sizes_by_source(store, doc_indices).items()
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
  """The size of one source."""

  documents: int = 0
  tokens: int = 0


def sizes_by_source(
  store: TokenStore, doc_indices: Sequence[np.ndarray]
) -> dict[str, SourceSize]:
  """The size of each source among the given documents that are not held out.

  A document counts as often as it is given.
  """
  sizes: dict[str, SourceSize] = {}
  for number, chosen in enumerate(doc_indices):
    shard = store.shard(number)
    chosen = chosen[~np.isin(chosen, shard.documents_of('heldout'))]
    table = shard.table('source', 'num_tokens').take(chosen)
    grouped = table.group_by('source').aggregate(
      [('num_tokens', 'count'), ('num_tokens', 'sum')]
    )
    for row in grouped.to_pylist():
      size = sizes.setdefault(row['source'], SourceSize())
      size.documents += row['num_tokens_count']
      size.tokens += row['num_tokens_sum']
  return sizes
