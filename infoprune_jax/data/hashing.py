"""Hashes: the same on every machine, in every process."""

import hashlib
import unicodedata

import numpy as np


def text_hash(text: str) -> int:
  """A signed 64-bit hash."""
  digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
  return int.from_bytes(digest, 'little', signed=True)


def content_hash(text: str) -> int:
  """A signed 64-bit hash that is blind to white space and composition.

  >>> content_hash('a  b') == content_hash('a b')
  True
  """
  return text_hash(' '.join(unicodedata.normalize('NFC', text).split()))


def mix(values: np.ndarray, seed: int) -> np.ndarray:
  """A seeded bijection of 64-bit integers, as good as random.

  The finaliser of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014).
  """
  with np.errstate(over='ignore'):
    x = values.astype(np.int64).view(np.uint64)
    x = x + np.uint64(0x9E3779B97F4A7C15) * np.uint64(2 * seed + 1)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def uniform(values: np.ndarray, seed: int) -> np.ndarray:
  """A float64 in [0, 1) for each 64-bit integer, by a seeded hash."""
  return (mix(values, seed) >> np.uint64(11)).astype(np.float64) * 2.0**-53
