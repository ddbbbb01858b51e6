"""What two arms both keep."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings, strategies as st

from infoprune_jax.report.selection import overlaps
from infoprune_jax.selection.examples import ExampleTable
from infoprune_jax.selection.keep_set import KeepSet


def jaccards(by_seed: list[np.ndarray], tokens: np.ndarray) -> dict[str, list]:
  """Of the masks of arms, for each seed."""
  masks = np.concatenate(by_seed).astype(int)
  numbers = np.arange(len(masks)).reshape(len(by_seed), -1)
  return {
    'tokens': overlaps.jaccard((masks * tokens) @ masks.T, numbers),
    'examples': overlaps.jaccard(masks @ masks.T, numbers),
  }


def masks(*rows: str) -> np.ndarray:
  return np.array([[mark == '1' for mark in row] for row in rows])


TOKENS = np.array([10, 20, 30, 40])


def test_overlaps_by_hand():
  content = jaccards([masks('1100', '0110', '0000')], TOKENS)
  assert content['tokens'] == [
    [1.0, pytest.approx(20 / 60), 0.0],
    [pytest.approx(20 / 60), 1.0, 0.0],
    [0.0, 0.0, 0.0],
  ]
  assert content['examples'][0][1] == pytest.approx(1 / 3)


def test_draws_are_averaged_and_meet_each_other():
  """The second arm draws; it is compared with the first seed by seed."""
  first, second = masks('1100', '1100'), masks('1100', '0011')
  content = jaccards([first, second], TOKENS)['tokens']
  assert content[0][1] == content[1][0] == (1.0 + 0.0) / 2
  assert content[0][0] == 1.0
  assert content[1][1] == 0.0  # Its draws have nothing in common.
  three = jaccards([first, first, second], TOKENS)['tokens']
  assert three[1][1] == pytest.approx(1 / 3)


@given(data=st.data())
@settings(max_examples=20, deadline=None)
def test_in_common_is_what_masks_say(data):
  """Over steps of five, of documents that are not all scored."""
  count = data.draw(st.integers(1, 23))
  index = np.flatnonzero(
    data.draw(st.lists(st.booleans(), min_size=count, max_size=count))
  )
  mask = st.lists(st.booleans(), min_size=count, max_size=count)
  masks = np.array(data.draw(st.lists(mask, min_size=1, max_size=4)))
  tokens = np.arange(len(index), dtype=np.int32) + 1
  examples = ExampleTable(pa.table({'num_tokens': tokens}), index)
  keep_sets = [KeepSet(np.packbits(row), [count], {}) for row in masks]
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(overlaps, '_BATCH', 5)
    content = overlaps.in_common(examples, keep_sets)
    marked = np.arange(len(index)) % 3 == 1
    kept_marked = overlaps.how_many(examples, keep_sets, marked)
  kept = masks[:, index].astype(int)
  assert kept_marked.tolist() == kept[:, marked].sum(axis=1).tolist()
  assert content['tokens'].tolist() == ((kept * tokens) @ kept.T).tolist()
  assert content['examples'].tolist() == (kept @ kept.T).tolist()
