"""Selecting by shards: the bits of one machine."""

import functools

import numpy as np
import pytest

from infoprune_jax.config.validation import UserError
from infoprune_jax.selection import budget, by_shard

SIZE, COUNT, GROUPS = 1000, 5, 3


def ranking_of(kinds: int, shard: int) -> budget.Ranking:
  """Examples of lognormal length, with so many different scores; 0: any."""
  rng = np.random.default_rng(shard)
  values = rng.normal(size=SIZE)
  if kinds:
    values = np.floor(values * kinds)
  return budget.Ranking(
    budget.ordered_bits(values),
    np.arange(SIZE) + shard * SIZE,
    rng.lognormal(5, 1, SIZE).astype(np.int32),
    rng.integers(0, GROUPS, SIZE).astype(np.int32),
    seed=7,
  )


@pytest.mark.parametrize('kinds', [0, 2, 1e-9])
@pytest.mark.parametrize('num_workers', [1, 2])
def test_the_bits_are_those_of_one_machine(kinds, num_workers):
  """Also where most scores are equal, so that the hash decides."""
  ranking = functools.partial(ranking_of, kinds)
  shards = by_shard.Shards(ranking, COUNT, GROUPS, num_workers)
  total = by_shard.totals(shards)
  most = np.array([total[0] // 2, total[1] + 1, 0])
  bits = list(by_shard.lowest(shards, most))
  *columns, seeds = zip(*map(ranking, range(COUNT)), strict=True)
  whole = budget.Ranking(*map(np.concatenate, columns), seed=seeds[0])
  everything = np.ones(SIZE * COUNT, bool)
  expected = budget.lowest(whole, everything, most)
  assert np.unpackbits(np.concatenate(bits)).tolist() == expected.tolist()
  assert 0 < expected[whole.group == 0].mean() < 1
  assert expected[whole.group == 1].all()


def test_many_groups_are_refused():
  shards = by_shard.Shards(functools.partial(ranking_of, 0), COUNT, 1000, 1)
  with pytest.raises(UserError, match='at most 256 groups, got 1000'):
    by_shard.totals(shards)
