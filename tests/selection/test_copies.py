"""Examples of one hash are one group."""

import numpy as np
import pytest
from hypothesis import given, strategies as st

from infoprune_jax.selection import arrays, copies

HASHES = st.integers(0, 2).map(lambda n: n << 40) | st.integers(0, 3)


@given(
  rows=st.lists(st.tuples(HASHES, st.booleans()), max_size=40),
  at_once=st.integers(1, 50),
)
def test_each_candidate_is_in_the_group_of_its_hash(rows, at_once):
  content = np.array([row[0] for row in rows], np.uint64)
  candidates = np.array([row[1] for row in rows], bool)
  expected = {
    value: np.flatnonzero(candidates & (content == value)).tolist()
    for value in content[candidates].tolist()
  }
  result = {}
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(copies, '_SORTED', at_once)
    patch.setattr(arrays, 'STEP', 7)
    for positions, starts in copies.groups(content, candidates):
      for group in np.split(positions, starts[1:]):
        [value] = set(content[group].tolist())
        assert value not in result
        result[value] = sorted(group.tolist())
  assert result == expected
