"""The words of a text, and hashes of its n-grams of words.

Words are what is left between white space when a text is in Unicode's NFKC and
in lower case, and all characters but letters, marks and numbers are removed:
'Don't  stop!' is 'dont stop'. This ignores much the same as the n-grams of
GPT-3 (arXiv 2005.14165, appendix C): punctuation, white space and case.

`plain` is this definition. `hashes` follows it, from the bytes of a text, one
character at a time. That is right as long as no character changes with its
neighbours. A text with one that may, such as a combining accent, goes through
`plain` first.

Two different n-grams have the same hash of 64 bits with a probability of about
2^-64: of 10^12 n-grams of a corpus and 10^6 of benchmarks, 0.05 pairs on
average.
"""

import functools
import unicodedata

import numba
import numpy as np

from infoprune_jax.runtime import hashing

_SPACE = 32
# Characters from here on are rare. A text that has one goes through `plain`.
_NUM_CHARACTERS = 0x20000
_PRIME = np.uint64(0x100000001B3)  # of FNV-1a, for the bytes of a word
_START = np.uint64(0xCBF29CE484222325)
_BASE = np.uint64(0x9E3779B97F4A7C15)  # odd, for the words of an n-gram


def plain(text: str) -> str:
  """The words of a text, with single spaces between them."""
  lower = unicodedata.normalize('NFKC', text).lower()
  return ' '.join(lower.translate(_KEPT).split())


class _Kept(dict):
  """For `str.translate`: removes all but letters, marks, numbers and spaces."""

  def __missing__(self, code: int) -> int | None:
    character = chr(code)
    is_kept = unicodedata.category(character)[0] in 'LMN' or character.isspace()
    self[code] = code if is_kept else None
    return self[code]


_KEPT = _Kept()


def hashes(data: bytes, ngram: int) -> np.ndarray:
  """A hash of each n-gram of words of a text, in order.

  Args:
    data: The text in UTF-8.
    ngram: Words of an n-gram.

  Returns:
    [max(words - ngram + 1, 0)] uint64.
  """
  characters = _characters()
  # No text has more words than that.
  out = np.empty(len(data) // 2 + 1, np.uint64)
  encoded = np.frombuffer(data, np.uint8)
  count = _hash(encoded, ngram, *characters, out)
  if count < 0:
    words = plain(data.decode()).encode()
    count = _hash_plain(np.frombuffer(words, np.uint8), ngram, out)
  return out[:count]


@functools.lru_cache(maxsize=1)
def _characters() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """What each character becomes, if it never changes with its neighbours.

  Returns:
    What each becomes as bytes of words and spaces, one after another, uint8;
    where that of each begins, [_NUM_CHARACTERS + 1] int32; and whether it may
    change, [_NUM_CHARACTERS] bool.
  """
  texts, varies = [], np.zeros(_NUM_CHARACTERS, bool)
  pairs = [
    unicodedata.decomposition(chr(code)).split()
    for code in range(_NUM_CHARACTERS)
  ]
  # Of canonical decompositions, into two characters.
  second = {
    int(pair[1], 16)
    for pair in pairs
    if len(pair) == 2 and not pair[0].startswith('<')
  }
  for code in range(_NUM_CHARACTERS):
    if 0xD800 <= code < 0xE000:  # Surrogates are in no text.
      texts.append(b'')
      continue
    composed = unicodedata.normalize('NFKC', chr(code))
    # A mark may be reordered, or be composed with what is before it, as some
    # letters are, too: the second ones of decompositions, and Hangul vowels and
    # consonants. The lower case of a sigma depends on its place.
    first = unicodedata.normalize('NFKD', chr(code))[0]
    varies[code] = (
      unicodedata.combining(first) > 0
      or ord(first) in second
      or 0x1160 <= ord(first) < 0x1200
      or 'Σ' in composed
    )
    kept = composed.lower().translate(_KEPT)
    spaced = ''.join(' ' if c.isspace() else c for c in kept)
    texts.append(spaced.encode())
  starts = np.cumsum([0, *map(len, texts)]).astype(np.int32)
  return np.frombuffer(b''.join(texts), np.uint8), starts, varies


_scramble = numba.njit(hashing.scramble, inline='always')


@numba.njit(cache=True, nogil=True)
def _hash(data, ngram, texts, starts, varies, out):
  """Hashes the n-grams of a text into `out`; returns their number.

  The number is -1 if a character may change with its neighbours.
  """
  num_words, word, inside, position = 0, _START, False, 0
  # What each character of ASCII becomes: one byte, or none.
  plain = np.zeros(0x80, np.uint8)
  for code in range(0x80):
    if starts[code] < starts[code + 1]:
      plain[code] = texts[starts[code]]
  while position < len(data):
    code = np.int64(data[position])
    position += 1
    if code < 0x80:
      byte = plain[code]
      if byte > _SPACE:
        word = (word ^ np.uint64(byte)) * _PRIME
        inside = True
      elif byte and inside:
        out[num_words] = _scramble(word)
        num_words, word, inside = num_words + 1, _START, False
      continue
    else:  # Valid UTF-8 of two, three or four bytes.
      more = 1 if code < 0xE0 else 2 if code < 0xF0 else 3
      code &= 0x3F >> more
      for _ in range(more):
        code = code << 6 | np.int64(data[position] & 0x3F)
        position += 1
      if code >= _NUM_CHARACTERS or varies[code]:
        return -1
    for place in range(starts[code], starts[code + 1]):
      byte = texts[place]
      if byte != _SPACE:
        word = (word ^ np.uint64(byte)) * _PRIME
        inside = True
      elif inside:
        out[num_words] = _scramble(word)
        num_words, word, inside = num_words + 1, _START, False
  if inside:
    out[num_words] = _scramble(word)
    num_words += 1
  return _join(out, num_words, ngram)


@numba.njit(cache=True, nogil=True)
def _hash_plain(data, ngram, out):
  """As `_hash`, of words with single spaces between them."""
  num_words, word = 0, _START
  for byte in data:
    if byte != _SPACE:
      word = (word ^ np.uint64(byte)) * _PRIME
    else:
      out[num_words] = _scramble(word)
      num_words, word = num_words + 1, _START
  if len(data):
    out[num_words] = _scramble(word)
    num_words += 1
  return _join(out, num_words, ngram)


@numba.njit(cache=True, nogil=True)
def _join(out, num_words, ngram):
  """Hashes of n-grams in place of those of words; returns their number.

  The hash of an n-gram is a polynomial in `_BASE` over its words. The next one
  follows from it: the first word goes, and another comes.
  """
  count = num_words - ngram + 1
  if count <= 0:
    return 0
  joined, highest = np.uint64(0), np.uint64(1)
  for place in range(ngram):
    joined = joined * _BASE + out[place]
    highest = highest * _BASE if place else highest
  for place in range(count):
    first = out[place]
    out[place] = _scramble(joined)
    if place + 1 < count:
      joined = (joined - first * highest) * _BASE + out[place + ngram]
  return count
