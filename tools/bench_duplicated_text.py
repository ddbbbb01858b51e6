r"""CPU time and memory of finding duplicated text, and a check by plain Python.

Command: python tools/bench_duplicated_text.py --corpus='data/*.jsonl.zst'

The corpus is tokenized first, with a vocabulary of its own, and all documents
are scored ones. Times are CPU seconds of one process that does all the work.
"""

import collections
import pathlib
import resource
import sys
import tempfile
import time

import numpy as np
from absl import app, flags, logging

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from configs import base
from infoprune_jax.config import experiment as config_lib
from infoprune_jax.runtime.workdir import duplicated_text_dir
from infoprune_jax.statistics import duplicated_text
from infoprune_jax.statistics.signatures import tokens_of
from infoprune_jax.tokens import tables, tokenize
from infoprune_jax.tokens.token_store import TokenStore

_CORPUS = flags.DEFINE_string('corpus', None, 'A glob of JSONL.', required=True)
_BYTES = flags.DEFINE_integer('bytes', 0, 'Of text, at most; 0 for all.')
_SIZE = flags.DEFINE_integer('vocabulary_size', 8000, 'Of SentencePiece.')
_SHARDS = flags.DEFINE_integer('num_shards', 2, 'Of the token store.')
_WORKERS = flags.DEFINE_integer('workers', 2, 'Processes that tokenize.')
_WINDOW = flags.DEFINE_integer('window', 50, 'Tokens.')
_CHECK = flags.DEFINE_integer(
  'check_tokens', 3_000_000, 'Compare with plain Python up to so many.'
)


def main(_) -> None:
  """Prints tokens per second, the peak memory, and what is duplicated."""
  logging.set_verbosity(logging.ERROR)
  edits = base.get_config()
  edits.corpus.sources.bench = base.jsonl(_CORPUS.value)
  edits.corpus.update(
    num_shards=_SHARDS.value,
    num_workers=_WORKERS.value,
    max_bytes_per_source=_BYTES.value,
    reference_fraction=0.5,
    heldout_fraction=0.0,
  )
  edits.reference.folds = 2  # All documents are scored.
  edits.vocabulary.size = _SIZE.value
  edits.select.duplicated_text.window = _WINDOW.value
  with tempfile.TemporaryDirectory() as workdir:
    tokenize.run(config_lib.from_mapping(edits), workdir)
    edits.corpus.num_workers = 1
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    begin = time.process_time(), time.monotonic()
    duplicated_text.run(config_lib.from_mapping(edits), workdir)
    seconds = time.process_time() - begin[0]
    wall = time.monotonic() - begin[1]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    store = TokenStore.open(workdir)
    table = tables.read_table(duplicated_text_dir(workdir))
    total = store.manifest['num_tokens']
    counts = np.stack(
      [
        table[name].to_numpy()
        for name in ('duplicated_tokens', 'repeated_tokens')
      ]
    )
    print(
      f'{len(table)} documents, {total / 1e6:.1f}M tokens in '
      f'{store.num_shards} shards, windows of {_WINDOW.value}'
    )
    print(
      f'{total / seconds / 1e6:.2f}M tokens/s per core ({seconds:.1f} s of CPU, '
      f'{wall:.1f} s), peak memory {peak / 1e6:.2f} GB '
      f'({before / 1e6:.2f} GB before)'
    )
    fractions = 100 * counts.sum(axis=1, dtype=np.int64) / total
    print(
      f'{fractions[0]:.2f} % of tokens are duplicated, '
      f'{fractions[1]:.2f} % repeated'
    )
    if total <= _CHECK.value:
      begin = time.process_time()
      same = (counts == plain(store, _WINDOW.value)).all()
      seconds = time.process_time() - begin
      print(
        f'plain Python counts {"the same" if same else "OTHER NUMBERS"}: '
        f'{total / seconds / 1e6:.2f}M tokens/s'
      )


def plain(store: TokenStore, window: int) -> np.ndarray:
  """Duplicated and repeated tokens of all documents, [2, documents] int64."""
  documents = [
    tokens_of(store.shard(shard), n).tolist()
    for shard, count in enumerate(store.documents_per_shard)
    for n in range(count)
  ]
  counts = collections.Counter(
    tuple(ids[start : start + window])
    for ids in documents
    for start in range(len(ids) - window + 1)
  )
  seen, result = set(), np.zeros((2, len(documents)), np.int64)
  for number, ids in enumerate(documents):
    ends = [0, 0]
    for start in range(len(ids)):
      one = tuple(ids[start : start + window])
      if counts[one] > 1:  # Never at the end of a text, which has no window.
        ends[0] = start + window
        ends[1] = start + window if one in seen else ends[1]
        seen.add(one)
      result[:, number] += [start < end for end in ends]
  return result


if __name__ == '__main__':
  app.run(main)
