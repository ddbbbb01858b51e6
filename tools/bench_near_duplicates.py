r"""Precision and recall of near-duplicates, beside `datasketch` alone.

Command: python tools/bench_near_duplicates.py --corpus='data/*.jsonl.zst'

Each pair is a text of the corpus and the same text with some words replaced,
deleted and inserted, at a rate drawn for it. A pair counts as near-duplicates if
the exact fraction of common n-grams of words, of all that one of them has, is at
least --threshold. All texts are compared at once, as in the stage
`near_duplicates` with `min_jaccard`. `datasketch` takes the same n-grams and hashes.
Words stand for tokens. Seconds are CPU time of this process, with hashing.
"""

import glob
import time
from collections.abc import Callable

import datasketch
import numpy as np
from absl import app, flags, logging

from infoprune_jax.config.corpus import SourceConfig
from infoprune_jax.config.selection import NearDuplicatesConfig
from infoprune_jax.corpus import minhash, sources
from infoprune_jax.statistics import verified_groups

_CORPUS = flags.DEFINE_string('corpus', None, 'A glob of JSONL.', required=True)
_PAIRS = flags.DEFINE_integer('pairs', 10_000, 'Labelled pairs.')
_THRESHOLD = flags.DEFINE_float('threshold', 0.8, 'Fraction in common.')
_NGRAM = flags.DEFINE_integer('ngram', 5, 'Words of a shingle.')
_MIN_WORDS = flags.DEFINE_integer('min_words', 50, 'Of a text.')
_MAX_WORDS = flags.DEFINE_integer('max_words', 1_000, 'Of a text.')
_COLUMN = flags.DEFINE_string('text_column', 'text', 'Of the corpus.')
_SEED = flags.DEFINE_integer('seed', 0, 'Of texts and edits.')
_LOWEST = 0.4  # that the expected fraction in common may be

Text = list[str]  # its words


def main(_) -> None:
  """Prints a line for each method."""
  logging.set_verbosity(logging.ERROR)
  rng = np.random.default_rng(_SEED.value)
  originals = drawn_texts(rng)
  known = sorted({word for text in originals for word in text})
  texts = [
    each
    for text in originals
    for each in (text, edited(text, expected_rate(rng), known, rng))
  ]
  fractions = np.array(
    [
      common_fraction(*texts[first : first + 2])
      for first in range(0, len(texts), 2)
    ]
  )
  labels = fractions >= _THRESHOLD.value
  words = sum(map(len, texts))
  print(
    f'{len(labels)} pairs, {labels.sum()} of them near-duplicates; {words} words; '
    f'{np.mean(np.abs(fractions - _THRESHOLD.value) < 0.05):.0%} are within 0.05 '
    'of the threshold'
  )
  config = NearDuplicatesConfig(
    ngram=_NGRAM.value, min_jaccard=_THRESHOLD.value, seed=_SEED.value
  )
  size = config.bands, config.rows_per_band
  for name, method in (
    ('ours, connected', lambda: ours(texts, config, False)),
    ('ours, star', lambda: ours(texts, config, True)),
    ('datasketch, its bands', lambda: of_datasketch(texts, config.seed, None)),
    (
      f'datasketch, {size[0]} x {size[1]}',
      lambda: of_datasketch(texts, config.seed, size),
    ),
  ):
    report(name, method, labels)


def report(
  name: str, method: Callable[[], np.ndarray], labels: np.ndarray
) -> None:
  """Runs a method, and prints its line.

  Args:
    name: Of the method.
    method: Gives what it says of each pair, [pairs] bool.
    labels: [pairs] bool.
  """
  begin = time.process_time()
  answers = method()
  seconds = time.process_time() - begin
  right = np.count_nonzero(answers & labels)
  print(
    f'{name:24} precision {right / max(answers.sum(), 1):.4f}  '
    f'recall {right / max(labels.sum(), 1):.4f}  {seconds:6.1f} s',
    flush=True,
  )


def drawn_texts(rng: np.random.Generator) -> list[Text]:
  """Distinct texts of the corpus, as words."""
  config = SourceConfig(
    format='jsonl',
    paths=tuple(sorted(glob.glob(_CORPUS.value))),
    text_column=_COLUMN.value,
  )
  texts: dict[tuple[str, ...], None] = {}
  for file in sources.list_files({'corpus': config}):
    for _, record in sources.read_records(file):
      if isinstance(record, sources.BadRecord):
        continue
      words = record.text.split()
      if _MIN_WORDS.value <= len(words) <= _MAX_WORDS.value:
        texts.setdefault(tuple(words))
  every = list(texts)
  if len(every) < _PAIRS.value:
    raise SystemExit(
      f'{_CORPUS.value} has {len(every)} texts of {_MIN_WORDS.value} to '
      f'{_MAX_WORDS.value} words, but --pairs is {_PAIRS.value}: lower it.'
    )
  chosen = rng.choice(len(every), _PAIRS.value, replace=False)
  return [list(every[number]) for number in sorted(chosen.tolist())]


def expected_rate(rng: np.random.Generator) -> float:
  """A rate of edits, so that fractions in common are spread from _LOWEST to 1.

  An n-gram survives with probability (1 - rate)^n. If a fraction s of the
  n-grams of each text is in the other one, s / (2 - s) of all are in both.
  """
  fraction = rng.uniform(_LOWEST, 1.0)
  survives = 2 * fraction / (1 + fraction)
  return 1 - survives ** (1 / _NGRAM.value)


def edited(
  text: Text, rate: float, known: Text, rng: np.random.Generator
) -> Text:
  """The text with each word replaced, deleted or followed by another one.

  Args:
    text: Its words.
    rate: How likely a word is edited; all three kinds are equally likely.
    known: Words to take new ones from.
    rng: Random numbers.
  """
  result = []
  for word, draw in zip(text, rng.random(len(text)).tolist(), strict=True):
    if draw >= rate:
      result.append(word)
      continue
    if draw < rate / 3:
      result.append(word)
    if draw < 2 * rate / 3:
      result.append(known[int(rng.integers(len(known)))])
  return result


def ngrams_of(text: Text) -> set[tuple[str, ...]]:
  """The distinct n-grams of a text, or the whole text if it is shorter."""
  width = min(_NGRAM.value, len(text))
  return {tuple(text[n : n + width]) for n in range(len(text) - width + 1)}


def common_fraction(first: Text, second: Text) -> float:
  """The exact fraction of n-grams that two texts have in common."""
  of_both = ngrams_of(first), ngrams_of(second)
  return len(of_both[0] & of_both[1]) / len(of_both[0] | of_both[1])


def shingled(texts: list[Text]) -> list[np.ndarray]:
  """The shingles of each text, [shingles] uint32 each."""
  ids: dict[str, int] = {}
  return [
    minhash.shingles(
      np.array([ids.setdefault(w, len(ids)) for w in text], np.uint32),
      _NGRAM.value,
    )
    for text in texts
  ]


def ours(
  texts: list[Text], config: NearDuplicatesConfig, is_star: bool
) -> np.ndarray:
  """Whether both texts of each pair are in one group, [pairs] bool."""
  hashes = shingled(texts)
  signer = minhash.Signer(config)
  keys = np.stack([signer.keys(of_text) for of_text in hashes], axis=1)
  groups = verified_groups.Groups(
    lambda number: np.unique(hashes[number]), config.min_jaccard, is_star
  )
  first = groups.find(
    [verified_groups.buckets(of_band) for of_band in keys],
    np.arange(len(texts)),
    'compared',
  )
  return first[::2] == first[1::2]


def of_datasketch(
  texts: list[Text], seed: int, bands: tuple[int, int] | None
) -> np.ndarray:
  """Whether the index of all texts gives one for the other, [pairs] bool.

  Args:
    texts: The two texts of each pair, one after the other.
    seed: Of the hashes.
    bands: Bands and rows; None to let `datasketch` choose them for the threshold
      and its default of 128 values.
  """
  size = bands[0] * bands[1] if bands else 128
  index = datasketch.MinHashLSH(
    threshold=_THRESHOLD.value, num_perm=size, params=bands
  )
  blank = datasketch.MinHash(
    size, seed=seed, hashfunc=int, scheme=minhash.SCHEME
  )
  sketches = []
  for number, hashes in enumerate(shingled(texts)):
    sketches.append(blank.copy())
    sketches[-1].update_batch(hashes.tolist())
    index.insert(number, sketches[-1])
  return np.array(
    [
      number + 1 in index.query(sketches[number])
      for number in range(0, len(texts), 2)
    ]
  )


if __name__ == '__main__':
  app.run(main)
