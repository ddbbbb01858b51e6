r"""CPU time of comparing texts with benchmarks, and a check by plain Python.

Command: python tools/bench_decontaminate.py --corpus='data/*.jsonl.zst' \
    --benchmarks='eval/*.jsonl' --ngrams=1000000

Made-up n-grams are added to those of the benchmarks, up to --ngrams. Times are
CPU seconds of this process, which is one core, with the texts in memory; the
second line is with the JSON parsed and hashed, as the stage reads it.
"""

import collections
import contextlib
import glob
import sys
import time

import numpy as np
from absl import app, flags, logging

from infoprune_jax.config.corpus import SourceConfig
from infoprune_jax.config.decontamination import BenchmarksConfig
from infoprune_jax.corpus import sources, words
from infoprune_jax.runtime.hashing import text_hash
from infoprune_jax.statistics import benchmark_ngrams
from infoprune_jax.statistics.benchmark_ngrams import BenchmarkNgrams

_CORPUS = flags.DEFINE_string('corpus', None, 'A glob of JSONL.', required=True)
_BENCHMARKS = flags.DEFINE_string(
  'benchmarks', None, 'A glob of JSONL.', required=True
)
_NGRAMS = flags.DEFINE_integer('ngrams', 1_000_000, 'Of benchmarks, at least.')
_NGRAM = flags.DEFINE_integer('ngram', 13, 'Words.')
_BYTES = flags.DEFINE_integer('bytes', 100_000_000, 'Of the corpus, at most.')
_COLUMN = flags.DEFINE_string('text_column', 'text', 'Of the corpus.')
_CHECK = flags.DEFINE_bool('check', True, 'Compare with plain Python.')


def main(_) -> None:
  """Prints GB a minute, and how many documents plain Python counts alike."""
  logging.set_verbosity(logging.ERROR)
  config = BenchmarksConfig(paths=(_BENCHMARKS.value,), ngram=_NGRAM.value)
  real = benchmark_ngrams.read(config)
  known = enlarged(real, _NGRAMS.value)
  known.count('to compile ' * _NGRAM.value)
  begin = time.process_time()
  texts = read_texts()
  seconds = {'read': time.process_time() - begin}
  size = sum(len(text.encode()) for text in texts)
  ascii_size = sum(len(text) for text in texts if text.isascii())
  begin = time.process_time()
  counts = [known.count(text) for text in texts]
  seconds['compare'] = time.process_time() - begin
  begin = time.process_time()
  for text in texts:
    words.hashes(text.encode(), _NGRAM.value)
  seconds['words and hashes alone'] = time.process_time() - begin
  print(
    f'{len(texts)} texts, {size / 1e6:.1f} MB ({100 * ascii_size / size:.0f} % '
    f'in ASCII texts), {len(known.hashes)} n-grams'
  )
  seconds['read and compare'] = seconds['read'] + seconds['compare']
  for name, spent in seconds.items():
    print(
      f'{name:24} {1e9 * spent / size:6.1f} ns a byte, '
      f'{60 * size / spent / 1e9:6.2f} GB a minute'
    )
  if _CHECK.value:
    check(texts, [real.count(text) for text in texts], config)
  print(f'{sum(n > 0 for n, _ in counts)} texts have an n-gram of a benchmark')


def enlarged(known: BenchmarkNgrams, count: int) -> BenchmarkNgrams:
  """The n-grams, and random ones up to a number of them."""
  more = max(count - len(known.hashes), 0)
  rng = np.random.default_rng(0)
  made = rng.integers(2**64, size=more, dtype=np.uint64)
  hashes = np.concatenate([known.hashes, made])
  owners = np.concatenate([known.owners, np.zeros(more, np.int32)])
  order = np.argsort(hashes, kind='stable')
  return BenchmarkNgrams(known.names, hashes[order], owners[order], known.ngram)


def read_texts() -> list[str]:
  """Texts of the corpus, read and hashed as a stage does."""
  paths = tuple(sorted(glob.glob(_CORPUS.value)))
  source = SourceConfig(format='jsonl', paths=paths, text_column=_COLUMN.value)
  texts, size = [], 0
  for file in sources.list_files({'corpus': source}):
    with contextlib.closing(sources.read_records(file)) as records:
      for _, record in records:
        if isinstance(record, sources.BadRecord):
          continue
        text_hash(record.text)
        texts.append(record.text)
        size += len(record.text)
        if size >= _BYTES.value:
          return texts
  return texts


def check(
  texts: list[str], got: list[tuple[int, str]], config: BenchmarksConfig
) -> None:
  """Counts by sets of tuples of words, and exits with 1 at a difference."""
  owners = collections.defaultdict(set)
  for name, path in benchmark_ngrams.list_files(config).items():
    for _, line in sources.read_lines(path):
      for text in strings(sources.json_object(line)):
        for one in ngrams(text, config.ngram):
          owners[one].add(name)
  wrong = 0
  for text, count in zip(texts, got, strict=True):
    known = [owners[one] for one in ngrams(text, config.ngram) if one in owners]
    names = ', '.join(sorted(set().union(*known)))
    wrong += count != (len(known), names)
  print(f'plain Python counts {len(texts) - wrong} of {len(texts)} texts alike')
  if wrong:
    sys.exit(1)


def strings(value: object) -> list[str]:
  """All strings in a value of JSON."""
  if isinstance(value, dict):
    value = list(value.values())
  if isinstance(value, list):
    return [text for part in value for text in strings(part)]
  return [value] if isinstance(value, str) else []


def ngrams(text: str, ngram: int) -> list[tuple[str, ...]]:
  """The n-grams of words of a text."""
  own = words.plain(text).split()
  return list(zip(*(own[n:] for n in range(ngram)), strict=False))


if __name__ == '__main__':
  app.run(main)
