r"""The cost of pruning a SeqIO task: the same task with and without a filter.

Command: python tools/bench_keep_examples.py --workdir=runs/mine

Reads every document of the corpus that is not held out through its SeqIO task
(tokens, EOS, no shuffling), without a filter, with one that keeps all, and with
one that keeps every other example; the three take turns, `--rounds` times.
"""

import statistics
import sys
import time

import numpy as np
from absl import app, flags

from infoprune_jax.config.validation import UserError
from infoprune_jax.corpus import quiet_tensorflow
from infoprune_jax.runtime.workdir import vocabulary_dir
from infoprune_jax.tokens import vocabulary
from infoprune_jax.tokens.token_store import TokenStore

_WORKDIR = flags.DEFINE_string('workdir', None, 'A workdir with a token store.')
_ROUNDS = flags.DEFINE_integer('rounds', 5, 'Runs of each.')


def main(_) -> None:
  """Prints seconds, documents, and the time that a filter adds."""
  if not _WORKDIR.value:
    raise UserError('Give --workdir, with a finished token store.')
  quiet_tensorflow.import_seqio()
  from infoprune_jax.seqio_tasks import tasks

  store = TokenStore.open(_WORKDIR.value)
  words = vocabulary.Vocabulary.load(vocabulary_dir(_WORKDIR.value))
  corpus = tasks.Corpus(store, words)
  everything = [np.arange(count) for count in store.documents_per_shard]
  variants = {
    'no filter': None,
    'keeps all': everything,
    'keeps half': [rows[::2] for rows in everything],
  }
  made = {
    name: corpus.task(
      f'bench.{number}', keep and tasks.keep_documents(store, keep)
    )
    for number, (name, keep) in enumerate(variants.items())
  }
  seconds: dict[str, list[float]] = {name: [] for name in made}
  read = {}
  for _ in range(_ROUNDS.value):
    for name, task in made.items():
      start = time.perf_counter()
      read[name] = _read(task)
      seconds[name].append(time.perf_counter() - start)
  base = statistics.median(seconds['no filter'])
  for name, times in seconds.items():
    middle = statistics.median(times)
    print(
      f'{name:12} {middle:7.2f} s (of {min(times):.2f} to {max(times):.2f}), '
      f'{read[name]} documents, {100 * (middle / base - 1):+.1f} % of the time '
      'without a filter'
    )


def _read(task) -> int:
  """Reads a task to its end, inside tf.data, and counts its examples."""
  dataset = task.get_dataset(None, split='train', shuffle=False)
  return int(dataset.reduce(np.int64(0), lambda count, _: count + 1))


if __name__ == '__main__':
  try:
    app.run(main)
  except UserError as error:
    sys.exit(str(error))
