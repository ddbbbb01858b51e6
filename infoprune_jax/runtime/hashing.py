"""Hashes that are the same on every machine and in every process."""

import hashlib
import unicodedata
from typing import Any

import numpy as np


def text_hash(text: str) -> int:
  """A signed 64-bit hash."""
  return utf8_hash(text.encode())


def utf8_hash(data: bytes | memoryview) -> int:
  """The `text_hash` of a text in UTF-8."""
  digest = hashlib.blake2b(data, digest_size=8).digest()
  return int.from_bytes(digest, 'little', signed=True)


def content_hash(text: str) -> int:
  """A signed 64-bit hash, blind to white space and Unicode composition.

  One text at a time: hashing many texts in one NumPy call was only 1.4 to 1.8
  times as fast on 1M documents of 250 characters, 2 of 6 seconds.

  >>> content_hash('a  b ') == content_hash('a b')
  True
  """
  return text_hash(' '.join(unicodedata.normalize('NFC', text).split()))


def mix(values: np.ndarray, seed: int) -> np.ndarray:
  """A seeded bijection of 64-bit integers, as good as random.

  The finaliser of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014).
  """
  with np.errstate(over='ignore'):
    return scramble(values.astype(np.int64).view(np.uint64) + offset(seed))


def offset(seed: int) -> np.uint64:
  """The offset that a seed adds to values before they are scrambled."""
  return np.uint64(0x9E3779B97F4A7C15 * (2 * seed + 1) % 2**64)


def scramble(x: Any) -> Any:
  """The finaliser, for uint64 arrays, or scalars in compiled code."""
  x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
  x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
  return x ^ (x >> np.uint64(31))


def uniform(values: np.ndarray, seed: int) -> np.ndarray:
  """A float64 in [0, 1) for each 64-bit integer, by a seeded hash."""
  return (mix(values, seed) >> np.uint64(11)).astype(np.float64) * 2.0**-53
