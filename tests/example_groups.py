"""The examples of each budget, for tests that go through them."""

import numpy as np

from infoprune_jax.selection import groups
from infoprune_jax.selection.examples import Examples


def members(examples: Examples, per: str) -> list[np.ndarray]:
  """The positions of the examples that share a budget, ascending."""
  names, group = groups.of(examples, per)
  return [np.flatnonzero(group == number) for number in range(len(names))]
