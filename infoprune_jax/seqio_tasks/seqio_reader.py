"""Training batches with SeqIO: a stream of its task, packed as it comes.

Resuming reads the stream again from its start: tf.data's own state would hold
shuffle buffers, and ties a checkpoint to one version of TensorFlow. The batches
are those of an uninterrupted run, and the time that it takes grows with the
step. Another number of hosts gives another order, which the reader over Grain
does not.
"""

import dataclasses
import functools
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import seqio

from infoprune_jax.batches import loader, packing
from infoprune_jax.config.validation import UserError
from infoprune_jax.runtime.progress import logger
from infoprune_jax.runtime.workdir import vocabulary_dir
from infoprune_jax.seqio_tasks import tasks
from infoprune_jax.tokens import vocabulary
from infoprune_jax.tokens.token_store import TokenStore

# Documents packed together. More fill sequences better, and wait longer.
PACKED_TOGETHER = 2048


@dataclasses.dataclass(frozen=True)
class _Chunk:
  """Documents in memory, as `packing.PackedSequences` reads a store."""

  documents: Sequence[np.ndarray]
  bos_id: int
  eos_id: int

  @functools.cached_property
  def tokens(self) -> np.ndarray:
    """All token ids, [tokens]."""
    return np.concatenate(self.documents)

  @functools.cached_property
  def offsets(self) -> np.ndarray:
    """Where each document starts in `tokens`, [documents + 1]."""
    return np.cumsum([0, *map(len, self.documents)])

  def shard(self, number: int) -> '_Chunk':
    """The only one."""
    del number
    return self


@dataclasses.dataclass(eq=False)
class SeqIOReader:
  """Packs what a task or mixture streams; see `loader.Reader`."""

  name: str  # of the task or mixture, for the user
  provider: seqio.Task | seqio.Mixture
  bos_id: int
  eos_id: int
  num_documents: int  # in an epoch, of all hosts
  sequence_length: int
  batch_size: int
  seed: int
  _read: int = 0  # documents of this host, so far
  _rows: int = 0
  _tokens: int = 0

  @property
  def max_segments(self) -> int:
    """See `loader.Reader`: what is still to come is not known."""
    return 0

  def batches(
    self, first_step: int, num_steps: int, sequences: np.ndarray
  ) -> Iterator[dict[str, np.ndarray]]:
    """See `loader.Reader`; it matters how many sequences, not which.

    Raises:
      UserError: hosts feed the same sequences, and would read them apart.
    """
    if len(sequences) * jax.process_count() != self.batch_size:
      raise UserError(
        f"{self.name}: reader='seqio' reads a stream of its own on each of the "
        f'{jax.process_count()} hosts, but the mesh has several feed the same '
        "sequences: use reader='grain', or mesh.tensor and mesh.sequence within a "
        'host.'
      )
    self._read = self._rows = self._tokens = 0
    start = time.monotonic()
    read: list[dict[str, np.ndarray]] = []
    step = 0
    for sequence in self._packed_sequences():
      read.append(sequence)
      if len(read) < len(sequences):
        continue
      if step >= first_step:
        yield {
          name: np.stack([sequence[name] for sequence in read])
          for name in read[0]
        }
      read = []
      step += 1
      if step == first_step:
        logger.info(
          '%s: read %d documents again to resume at step %d, in %.1f s',
          self.name,
          self._read,
          step,
          time.monotonic() - start,
        )
      if step == num_steps:
        return

  def example_ids(self, step: int) -> list[str]:
    """[]: `_packed_sequences` packs the tokens of examples, without their ids."""
    del step
    return []

  def position(self, step: int) -> dict[str, float]:
    """See `loader.Reader`: how long an epoch is shows only at its end."""
    del step
    return {}

  def _packed_sequences(self) -> Iterator[dict[str, np.ndarray]]:
    """This host's sequences, without end."""
    dataset = self.provider.get_dataset(
      sequence_length=None,
      split='train',
      shuffle=True,
      seed=self.seed,
      shard_info=seqio.ShardInfo(jax.process_index(), jax.process_count()),
      num_epochs=None,
    ).map(lambda example: example['targets'])
    stream = dataset.as_numpy_iterator()
    number = 0
    while True:
      # EOS is packing's to place, as for the other reader.
      documents = [next(stream)[:-1] for _ in range(PACKED_TOGETHER)]
      plan = packing.pack(
        np.array([len(ids) + 1 for ids in documents]),
        self.sequence_length,
        overlap=0,
        seed=self.seed + number,
      )
      sequences = packing.PackedSequences(
        # It has what packing reads of a store.
        _Chunk(documents, self.bos_id, self.eos_id),  # pyright: ignore[reportArgumentType]
        np.zeros(len(documents), np.int64),
        np.arange(len(documents)),
        plan,
      )
      self._read += len(documents)
      self._rows += len(sequences)
      self._tokens += int(plan.length.sum())
      for sequence in range(len(sequences)):
        yield sequences[sequence]
      number += 1

  def facts(self, num_steps: int) -> dict[str, Any]:
    """See `loader.Reader`; an epoch's sequences go by those read so far."""
    sequences_per_epoch = self.num_documents * self._rows / self._read
    return {
      'num_sequences': round(sequences_per_epoch),
      'fill': self._tokens / (self._rows * self.sequence_length),
      'epochs': num_steps * self.batch_size / sequences_per_epoch,
    }


def seqio_reader(
  name: str,
  store: TokenStore,
  workdir: str,
  keep: Sequence[np.ndarray],
  sequence_length: int,
  batch_size: int,
  seed: int,
  mixture: Mapping[str, float],
) -> SeqIOReader:
  """A reader of the documents kept, through their SeqIO task.

  Args:
    name: Of the run.
    store: Where the documents are.
    workdir: Of the store and its vocabulary.
    keep: For each shard, the indices of the documents to train on, int.
    sequence_length: Tokens a sequence.
    batch_size: Sequences of a global batch.
    seed: Of the order and the packing.
    mixture: The fraction of tokens of each source; {} for natural sizes.

  Raises:
    UserError: nothing is kept, the mixture does not name the sources kept, or
      the store has fewer shards than there are hosts.
  """
  if store.num_shards < jax.process_count():
    raise UserError(
      f"reader='seqio' gives each host parts of its own: {store.num_shards} "
      f'shards are too few for {jax.process_count()} hosts. Raise '
      "corpus.num_shards, or use reader='grain'."
    )
  words = vocabulary.Vocabulary.load(vocabulary_dir(workdir))
  corpus = tasks.Corpus(store, words)
  preprocessor = tasks.keep_examples(tasks.ids_of(store, keep))
  task = tasks.task_name('train', name)
  provider = (
    _mixture(corpus, task, store, keep, preprocessor, mixture)
    if mixture
    else corpus.task(task, preprocessor)
  )
  return SeqIOReader(
    name,
    provider,
    store.bos_id,
    store.eos_id,
    sum(len(doc_indices) for doc_indices in keep),
    sequence_length,
    batch_size,
    seed,
  )


def _mixture(
  corpus: tasks.Corpus,
  name: str,
  store: TokenStore,
  keep: Sequence[np.ndarray],
  preprocessor: tasks.Preprocessor,
  weights: Mapping[str, float],
) -> seqio.Mixture:
  """SeqIO mixes examples: rates of tokens are divided by their mean length."""
  sizes = tasks.sizes_by_source(store, keep)
  loader.check_mixture(weights, sizes)
  by_source = corpus.tasks_by_source(name, preprocessor)
  return seqio.Mixture(
    name,
    [
      (by_source[source], weights[source] * size.documents / size.tokens)
      for source, size in sizes.items()
    ],
  )
