"""Words of a text, and the hashes of their n-grams."""

import random
import sys
import unicodedata

import numpy as np
import pytest

from infoprune_jax.corpus import words


def plain_words(text: str) -> list[str]:
  """As the docs say it, with nothing of the module."""
  lower = unicodedata.normalize('NFKC', text).lower()
  kept = [
    c for c in lower if unicodedata.category(c)[0] in 'LMN' or c.isspace()
  ]
  return ''.join(kept).split()


def test_words_are_in_lower_case_without_punctuation():
  assert words.plain("Don't  STOP!\n(ﬁne…)\xa0²") == 'dont stop fine 2'


def random_text(rng: random.Random) -> str:
  most = rng.choice((0x80, 0x250, 0x1000, 0x3100, 0xD7FF, sys.maxunicode))
  pieces = [
    rng.choice('  \n\tabCΣéß.-_')
    if rng.random() < 0.5
    # Marks, jamo and other characters that change with their neighbours.
    else chr(rng.choice((0x301, 0x1161, 0x11A8, 0x3099, 0x9BE, 0x130)))
    if rng.random() < 0.1
    else chr(rng.randrange(most))
    for _ in range(rng.randrange(40))
  ]
  return ''.join(pieces).encode('utf-8', 'ignore').decode()


@pytest.mark.parametrize('ngram', [1, 2, 5])
def test_equal_hashes_are_equal_ngrams(ngram):
  rng = random.Random(ngram)
  of_ngram: dict[tuple[str, ...], int] = {}
  for _ in range(20_000):
    text = random_text(rng)
    own = plain_words(text)
    assert words.plain(text) == ' '.join(own)
    ngrams = list(zip(*(own[n:] for n in range(ngram)), strict=False))
    hashes = words.hashes(text.encode(), ngram).tolist()
    assert len(hashes) == len(ngrams), text
    for one, value in zip(ngrams, hashes, strict=True):
      assert of_ngram.setdefault(one, value) == value, text
  assert len({*of_ngram.values()}) == len(of_ngram) > 5_000


def test_every_character_between_others():
  """No character changes with its neighbours, or it is known to."""
  for code in range(sys.maxunicode + 1):
    if 0xD800 <= code < 0xE000:
      continue
    text = f'ka{chr(code)}e b'
    expected = words.hashes(' '.join(plain_words(text)).encode(), 1)
    np.testing.assert_array_equal(words.hashes(text.encode(), 1), expected)


def test_the_order_of_words_counts():
  first, second = (
    set(words.hashes(text, 3).tolist()) for text in (b'a b c d', b'b a c d')
  )
  assert len(first) == len(second) == 2
  assert not first & second
