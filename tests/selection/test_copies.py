"""Equal hashes are found, whatever bits they share."""

import numpy as np
import pytest
from hypothesis import given, strategies as st

from infoprune_jax.selection import copies

HASHES = st.integers(0, 2).map(lambda n: n << 40) | st.integers(0, 3)


@given(
  rows=st.lists(st.tuples(HASHES, st.booleans()), max_size=40),
  at_once=st.integers(1, 50),
)
def test_groups_hold_all_that_are_equal(rows, at_once):
  """One bit for several hashes does not make copies of them."""
  content = np.array([row[0] for row in rows], np.uint64)
  candidates = np.array([row[1] for row in rows], bool)
  expected = {
    value: np.flatnonzero(candidates & (content == value)).tolist()
    for value in content[candidates].tolist()
  }
  found = {}
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(copies, '_SORTED', at_once)
    for same, starts in copies.groups(content, candidates):
      for group in np.split(same, starts[1:]):
        [value] = set(content[group].tolist())
        assert value not in found
        found[value] = sorted(group.tolist())
  assert found.items() <= expected.items()
  alone = [v for v in expected if len(expected[v]) == 1]
  assert expected.keys() - alone <= found.keys()
