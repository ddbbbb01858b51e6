"""The keys of examples and records, and which are equal."""

import numpy as np
import pyarrow as pa

from infoprune_jax.selection import join_keys


def test_copies_share_the_record_of_their_text():
  examples = np.array([[5, 3, 5, 4]], np.uint64)
  matches = join_keys.match(examples, np.array([[9, 5, 3]], np.uint64))
  assert matches.there.tolist() == [True, True, True, False]
  assert matches.records[:3].tolist() == [1, 2, 1]
  assert matches.duplicate is None


def test_two_texts_with_one_first_word_are_told_apart():
  records = np.array([[7, 7, 8], [1, 2, 1]], np.uint64)
  examples = np.array([[7, 7, 7, 8], [2, 1, 3, 1]], np.uint64)
  matches = join_keys.match(examples, records)
  assert matches.there.tolist() == [True, True, False, True]
  assert matches.records[[0, 1, 3]].tolist() == [1, 0, 2]
  assert matches.duplicate is None
  twice = join_keys.match(examples, np.append(records, [[7], [2]], axis=1))
  assert twice.duplicate.tolist() == [7, 2]


def test_words_of_texts_do_not_depend_on_where_they_are():
  texts = pa.array(['', 'a', 'ab', 'b', 'é', 'x' * 50])
  alone = np.concatenate(
    [join_keys.words([texts[n : n + 1]]) for n in range(6)], 1
  )
  assert (join_keys.words([texts]) == alone).all()
  assert len(set(map(tuple, alone.T.tolist()))) == 6
  moved = [pa.array(['a', 'ab']), pa.array(['bc', 'c'])]
  one, other = join_keys.words(moved).T.tolist()
  assert one != other
