"""MinHash signatures of texts, and the groups that pairs of texts join. No JAX.

A signature (by `datasketch`) is cut into bands. Two texts are candidates if
their signatures agree in all rows of a band (Broder, "On the resemblance and
containment of documents", 1997; Leskovec, Rajaraman and Ullman, "Mining of
Massive Datasets", chapter 3).
"""

import numpy as np

from infoprune_jax.config.selection import NearDuplicatesConfig
from infoprune_jax.runtime.hashing import offset, scramble

# The hash of `datasketch`: (a h + b) mod 2^32, the same on any machine.
SCHEME = 'affine32'
_PIECE = 1024  # shingles hashed at once; their hashes stay in the cache


class Signer:
  """Makes the keys of texts, one text after another."""

  def __init__(self, settings: NearDuplicatesConfig):
    """Draws the hashes.

    Args:
      settings: The bands and the seed.
    """
    import datasketch

    self._bands = settings.bands
    self._blank = datasketch.MinHash(
      settings.bands * settings.rows_per_band,
      seed=settings.seed,
      hashfunc=int,  # Shingles are hashes already.
      scheme=SCHEME,
    )

  def keys(self, hashes: np.ndarray) -> np.ndarray:
    """The keys of the bands of one text, [bands] uint64.

    Args:
      hashes: Its shingles, [shingles] uint32.
    """
    sketch = self._blank.copy()
    for start in range(0, len(hashes), _PIECE):
      sketch.update_batch(hashes[start : start + _PIECE].tolist())
    values = sketch.hashvalues.astype(np.uint32)
    return band_keys(values[None], self._bands)[:, 0]


def shingles(tokens: np.ndarray, ngram: int) -> np.ndarray:
  """A hash of each n-gram, or of the whole text if it is shorter than one.

  Args:
    tokens: [T], ids.
    ngram: Tokens of an n-gram.

  Returns:
    [max(T - ngram + 1, 1)] uint32; [0] if T is 0.
  """
  width = min(ngram, len(tokens))
  hashes = np.zeros(len(tokens) - width + 1 if width else 0, np.uint64)
  for first in range(width):
    ids = tokens[first : first + len(hashes)].astype(np.uint64)
    hashes = scramble(hashes + ids + offset(0))
  return (hashes >> np.uint64(32)).astype(np.uint32)


def band_keys(signatures: np.ndarray, bands: int) -> np.ndarray:
  """A hash of each band of each signature.

  Args:
    signatures: [documents, bands * rows_per_band] uint32.
    bands: Number of bands.

  Returns:
    [bands, documents] uint64.
  """
  banded = signatures.reshape(len(signatures), bands, -1).astype(np.uint64)
  keys = np.zeros(banded.shape[:2], np.uint64)
  for row in range(banded.shape[2]):
    keys = scramble(keys + banded[:, :, row] + offset(0))
  return np.ascontiguousarray(keys.T)


def joined(pairs: np.ndarray, count: int) -> np.ndarray:
  """The connected components of a graph.

  Args:
    pairs: The edges, [2, pairs] int64, of nodes below `count`.
    count: N, the number of nodes.

  Returns:
    The first node of each node's component, [N] int64.
  """
  from scipy import sparse

  group = np.arange(count)
  if pairs.size:
    nodes, numbers = np.unique(pairs, return_inverse=True)
    first, second = numbers.reshape(2, -1)
    graph = sparse.coo_array(
      (np.ones(len(first), np.int8), (first, second)), (len(nodes), len(nodes))
    )
    _, label = sparse.csgraph.connected_components(graph, directed=False)
    _, first_of_label = np.unique(label, return_index=True)
    group[nodes] = nodes[first_of_label[label]]
  return group
