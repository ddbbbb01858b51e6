"""Shingles, the keys of bands, and what pairs join."""

import hypothesis
import numpy as np
from hypothesis import given, strategies as st

from infoprune_jax.corpus import minhash


@given(
  tokens=st.lists(st.integers(0, 5), max_size=20),
  other=st.lists(st.integers(0, 5), max_size=20),
  ngram=st.integers(1, 6),
)
def test_shingles_are_equal_where_ngrams_are(tokens, other, ngram):
  def ngrams(ids):
    width = min(ngram, len(ids))
    count = len(ids) - width + 1 if width else 0
    return [tuple(ids[n : n + width]) for n in range(count)]

  found = {}
  for ids in (tokens, other):
    hashes = minhash.shingles(np.array(ids, np.uint16), ngram)
    assert hashes.dtype == np.uint32
    assert len(hashes) == len(ngrams(ids))
    for gram, value in zip(ngrams(ids), hashes.tolist(), strict=True):
      assert found.setdefault(gram, value) == value
  assert len(set(found.values())) == len(found)


@given(
  values=st.lists(
    st.lists(st.integers(0, 2), min_size=6, max_size=6), min_size=1, max_size=9
  ),
  bands=st.sampled_from([1, 2, 3, 6]),
)
def test_keys_of_a_band_are_equal_where_its_rows_are(values, bands):
  keys = minhash.band_keys(np.array(values, np.uint32), bands)
  assert keys.shape == (bands, len(values))
  rows = 6 // bands
  for band in range(bands):
    shards = [tuple(one[band * rows : (band + 1) * rows]) for one in values]
    for a, first in enumerate(shards):
      for b, second in enumerate(shards):
        assert (keys[band, a] == keys[band, b]) == (first == second)


@hypothesis.settings(deadline=None)  # The first call imports SciPy.
@given(
  count=st.integers(1, 12),
  pairs=st.lists(st.tuples(st.integers(0, 11), st.integers(0, 11)), max_size=9),
)
def test_groups_are_what_pairs_join(count, pairs):
  pairs = [(a % count, b % count) for a, b in pairs]
  member = [{n} for n in range(count)]
  for a, b in pairs:
    together = member[a] | member[b]
    for n in together:
      member[n] = together
  array = np.array(pairs, np.int64).reshape(-1, 2).T
  group = minhash.joined(array, count)
  assert group.tolist() == [min(members) for members in member]
