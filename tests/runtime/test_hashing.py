"""Hashes."""

import numpy as np
import pytest
from hypothesis import given, strategies as st

from infoprune_jax.runtime import hashing

int64s = st.integers(-(2**63), 2**63 - 1)
characters = st.characters(exclude_categories=['Cs'])
WIDEST = np.array([-(2**63), -1, 0, 1, 2**63 - 1], np.int64)


def test_hashes_are_for_ever():
  # A change would move documents between splits, and change every draw.
  assert hashing.text_hash('') == -5426141060434712860
  assert hashing.content_hash('a  b') == 2952434739088078779
  assert hashing.mix(np.array([0, 1, -1]), 5).tolist() == [
    7313543279846440201,
    7455107161863376737,
    266333147328794389,
  ]


@given(text=st.text(characters))
def test_text_hash_is_an_int64(text):
  assert -(2**63) <= hashing.text_hash(text) < 2**63


@pytest.mark.parametrize(
  'other',
  [
    'Zu\u0308rich west',
    ' Zürich\n\twest ',
    'Zürich\u00a0west',
    'Zürich\u2003west',
  ],
)
def test_content_is_blind_to_white_space_and_composition(other):
  assert hashing.content_hash(other) == hashing.content_hash('Zürich west')


@pytest.mark.parametrize('other', ['zürich west', 'Zurich west', 'Zürichwest'])
def test_content_sees_the_rest(other):
  assert hashing.content_hash(other) != hashing.content_hash('Zürich west')


@given(
  values=st.sets(int64s, min_size=1, max_size=50), seed=st.integers(0, 2**31)
)
def test_mix_is_a_bijection(values, seed):
  mixed = hashing.mix(np.array(sorted(values), np.int64), seed)
  assert mixed.dtype == np.uint64
  assert len(np.unique(mixed)) == len(values)


def test_mix_of_neighbours_is_as_good_as_random():
  values = hashing.mix(np.arange(20_000), 0)
  for bit in range(64):
    share = float((values >> np.uint64(bit) & np.uint64(1)).mean())
    assert abs(share - 0.5) < 0.02, bit
  ranks = np.argsort(np.argsort(values))
  assert abs(np.corrcoef(ranks, np.arange(20_000))[0, 1]) < 0.03


def test_seeds_are_independent():
  first, second = (hashing.uniform(np.arange(20_000), s) for s in (0, 1))
  assert abs(np.corrcoef(first, second)[0, 1]) < 0.03


def test_uniform_is_uniform():
  points = hashing.uniform(np.arange(20_000), 3)
  assert points.min() >= 0.0 and points.max() < 1.0
  shares = np.histogram(points, 10, (0.0, 1.0))[0] / len(points)
  assert np.abs(shares - 0.1).max() < 0.01
  widest = hashing.uniform(WIDEST, 0)
  assert ((widest >= 0.0) & (widest < 1.0)).all()
