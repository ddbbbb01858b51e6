"""Training batches from SeqIO: a stream of the task, packed as it is read.

Resuming reads the stream again from its start, because the state of tf.data
would hold shuffle buffers and tie a checkpoint to one version of TensorFlow.
The batches are those of an uninterrupted run; the time to resume grows with the
step. The order depends on the number of hosts, unlike that of the Grain reader.
"""

import dataclasses
import functools
import time
from collections.abc import Iterator, Mapping, Sequence

import jax
import numpy as np
import seqio

from infoprune_jax.batches import loader, packing
from infoprune_jax.config.training import TrainingConfig
from infoprune_jax.config.validation import UserError
from infoprune_jax.runtime.progress import logger
from infoprune_jax.runtime.workdir import vocabulary_dir
from infoprune_jax.seqio_tasks import tasks
from infoprune_jax.tokens import vocabulary
from infoprune_jax.tokens.token_store import TokenStore

# Documents packed together. More leave less padding, and take longer to read.
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
    """This chunk: it is its only shard."""
    del number
    return self


@dataclasses.dataclass(eq=False)
class SeqIOReader:
  """Packs the documents of a task or mixture; see `loader.Reader`."""

  name: str  # of the task or mixture, for the user
  provider: seqio.Task | seqio.Mixture
  bos_id: int
  eos_id: int
  num_documents: int  # in an epoch, of all hosts
  sequence_length: int
  batch_size: int
  seed: int
  _read: int = 0  # documents of this host, so far
  _num_sequences: int = 0
  _tokens: int = 0

  @property
  def segments(self) -> None:
    """See `loader.Reader`; None, because later documents are unknown."""
    return None

  def batches(
    self, first_step: int, num_steps: int, sequences: np.ndarray
  ) -> Iterator[dict[str, np.ndarray]]:
    """See `loader.Reader`; only the number of sequences matters here.

    Raises:
      UserError: several hosts must feed the same sequences.
    """
    if len(sequences) * jax.process_count() != self.batch_size:
      raise UserError(
        f"{self.name}: with reader='seqio' each of the {jax.process_count()} "
        'hosts reads another stream, but with this mesh several hosts feed the '
        "same sequences: use reader='grain', or keep mesh.tensor and "
        'mesh.sequence within a host.'
      )
    self._read = self._num_sequences = self._tokens = 0
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

  def examples(self, step: int) -> list[tuple[str, str]]:
    """[]: packed sequences hold the tokens of examples, without their names."""
    del step
    return []

  def position(self, step: int) -> dict[str, float]:
    """See `loader.Reader`; the length of an epoch is known only at its end."""
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
      # Packing places EOS, as for the other reader.
      documents = [next(stream)[:-1] for _ in range(PACKED_TOGETHER)]
      plan = packing.pack(
        np.array([len(ids) + 1 for ids in documents]),
        self.sequence_length,
        overlap=0,
        seed=self.seed + number,
      )
      sequences = packing.PackedSequences(
        # A chunk has all that packing reads of a store.
        _Chunk(documents, self.bos_id, self.eos_id),  # pyright: ignore[reportArgumentType]
        np.zeros(len(documents), np.int64),
        np.arange(len(documents)),
        plan,
      )
      self._read += len(documents)
      self._num_sequences += len(sequences)
      self._tokens += int(plan.length.sum())
      for sequence in range(len(sequences)):
        yield sequences[sequence]
      number += 1

  def facts(self, num_steps: int) -> loader.ReaderFacts:
    """See `loader.Reader`; epochs are estimated from the documents read."""
    sequences_per_epoch = self.num_documents * self._num_sequences / self._read
    return {
      'num_sequences': round(sequences_per_epoch),
      'fill': self._tokens / (self._num_sequences * self.sequence_length),
      'epochs': num_steps * self.batch_size / sequences_per_epoch,
    }


def seqio_reader(
  name: str,
  store: TokenStore,
  workdir: str,
  keep: Sequence[np.ndarray],
  training: TrainingConfig,
  seed: int,
) -> SeqIOReader:
  """A reader of the documents to keep, through their SeqIO task.

  Args:
    name: Name of the run.
    store: The token store with the documents.
    workdir: The workdir of the store and its vocabulary.
    keep: For each shard, the indices of the documents to train on, int.
    training: The sizes of a batch, and the mixture.
    seed: Seed of the order and the packing.

  Raises:
    UserError: no document is kept, the mixture does not name the sources of the
      kept documents, or the store has fewer shards than there are hosts.
  """
  if store.num_shards < jax.process_count():
    raise UserError(
      f"reader='seqio' gives each host shards of its own: {store.num_shards} "
      f'shards are too few for {jax.process_count()} hosts. Raise '
      "corpus.num_shards, or use reader='grain'."
    )
  words = vocabulary.Vocabulary.load(vocabulary_dir(workdir))
  corpus = tasks.Corpus(store, words)
  preprocessor = tasks.keep_documents(store, keep)
  task = tasks.task_name('train', name)
  if training.mixture:
    provider = _mixture(
      corpus, task, store, keep, preprocessor, training.mixture
    )
  else:
    provider = corpus.task(task, preprocessor)
  return SeqIOReader(
    name,
    provider,
    store.bos_id,
    store.eos_id,
    sum(len(doc_indices) for doc_indices in keep),
    training.sequence_length,
    training.batch_size,
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
