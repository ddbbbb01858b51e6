"""Levels of an excess, and the highest fraction of them."""

import numpy as np
import pytest

from infoprune_jax.tokens import token_excess


def test_levels_ascend_with_the_excess():
  excess = np.random.default_rng(0).standard_cauchy(10_000).astype(np.float32)
  excess = np.sort(np.concatenate([excess, [0.0, -0.0, 1e-6, -1e6, 1e6]]))
  levels = token_excess.levels(excess.astype(np.float32))
  assert levels.dtype == np.uint8
  assert (np.diff(levels.astype(int)) >= 0).all()
  assert (levels.min(), levels.max()) == (1, token_excess.NUM_LEVELS - 1)
  assert (levels[excess == 0.0] == 128).all()
  # The other sign has the other level.
  opposite = token_excess.levels(-excess.astype(np.float32))
  assert (opposite.astype(int) + levels == 256).all()


@pytest.mark.parametrize('fraction', [1e-9, 0.1, 0.5, 0.999, 1.0])
@pytest.mark.parametrize('seed', range(5))
def test_the_cut_holds_the_fraction(fraction, seed):
  rng = np.random.default_rng(seed)
  counts = rng.integers(0, 50, token_excess.NUM_LEVELS)
  counts[rng.random(len(counts)) < 0.5] = 0
  level, ties = token_excess.cut(counts, fraction)
  assert 0.0 < ties <= 1.0 and counts[level]
  inside = counts[level + 1 :].sum() + ties * counts[level]
  assert inside == pytest.approx(fraction * counts.sum())


def test_nothing_is_cut_from_nothing():
  assert token_excess.cut(np.zeros(token_excess.NUM_LEVELS, int), 0.5)[1] == 0.0
