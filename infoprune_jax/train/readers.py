"""The reader of a training run, over the documents that each phase keeps."""

from collections.abc import Mapping

import numpy as np

from infoprune_jax.batches import loader, phases
from infoprune_jax.batches.packing import Counted
from infoprune_jax.config.training import TrainingConfig
from infoprune_jax.config.validation import UserError
from infoprune_jax.corpus import quiet_tensorflow
from infoprune_jax.tokens.token_store import TokenStore

Kept = list[np.ndarray]  # of each shard, the documents to train on, int


def open_reader(
  name: str,
  store: TokenStore,
  workdir: str,
  kept: Mapping[int, Kept],
  training: TrainingConfig,
  seed: int,
  counted: Counted | None,
) -> loader.Reader:
  """The reader that the config names.

  Args:
    name: Name of the run, for the user.
    store: The token store with the documents.
    workdir: The workdir of the store and its vocabulary.
    kept: What each phase keeps, by the step after which it starts; from 0 on.
    training: Of the run.
    seed: Of the run.
    counted: The tokens that count in the loss; None for all.

  Raises:
    UserError: a phase keeps no document, or the mixture does not name the
      sources of those that it keeps.
  """
  try:
    readers = [
      _reader(name, store, workdir, keep, training, seed, step, counted)
      for step, keep in kept.items()
    ]
  except UserError as error:
    raise UserError(f'{name}: {error}') from None
  return phases.PhasedReader(readers, [*kept]) if len(kept) > 1 else readers[0]


def _reader(
  name: str,
  store: TokenStore,
  workdir: str,
  keep: Kept,
  training: TrainingConfig,
  seed: int,
  first_step: int,
  counted: Counted | None,
) -> loader.Reader:
  if training.reader == 'grain':
    return loader.grain_reader(store, keep, training, seed, first_step, counted)
  # TensorFlow takes seconds to import, and need not be installed.
  quiet_tensorflow.import_seqio()
  from infoprune_jax.seqio_tasks import seqio_reader

  phase = f'{name} from step {first_step}' if first_step else name
  return seqio_reader.seqio_reader(phase, store, workdir, keep, training, seed)
