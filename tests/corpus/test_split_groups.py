"""A split that keeps groups of near-duplicates together."""

import collections
import random

import pytest

from configs import base
from infoprune_jax.config.selection import NearDuplicatesConfig
from infoprune_jax.corpus import split_groups
from infoprune_jax.runtime.hashing import content_hash


@pytest.fixture
def make_varied(tmp_path, make_jsonl, make_corpus):
  """Indexes 60 texts of 100 words, each in 4 versions that differ in a word.

  Records come in an order by `seed`, in two files.
  """
  rng = random.Random(0)
  texts = [[rng.randrange(10**6) for _ in range(100)] for _ in range(60)]

  def make(seed: int, **fields):
    rows = []
    for number, words in enumerate(texts):
      for version in range(4):
        varied = [*words]
        varied[50 + 10 * version] = -version
        text = ' '.join(map(str, varied))
        rows.append({'id': f'{number}-{version}', 'text': text})
    random.Random(seed).shuffle(rows)
    paths = [
      make_jsonl(tmp_path / f'{seed}-{n}.jsonl', rows[n::2]) for n in range(2)
    ]
    source = base.jsonl(*paths, id_column='id')
    groups = NearDuplicatesConfig(seed=0)
    made = make_corpus({'a': source}, **fields)
    index = split_groups.build(made, groups)
    group = dict(
      (content_hash(row['text']), int(row['id'].split('-')[0])) for row in rows
    )
    return index, [group[text] for text in index.content_hash.tolist()]

  return make


def test_near_duplicates_are_in_one_split(make_varied):
  """The same one in any order, with any number of shards."""
  fields = {'reference_fraction': 0.3, 'heldout_fraction': 0.3}
  by_group = {'split_by': 'near_duplicate_group'}
  index, group = make_varied(0, **by_group, **fields)
  splits = collections.defaultdict(set)
  for number, split in zip(group, index.split.tolist(), strict=True):
    splits[number].add(split)
  assert len(splits) == 60
  assert all(len(found) == 1 for found in splits.values())
  sizes = collections.Counter(found.pop() for found in splits.values())
  assert min(sizes.values()) > 8
  again, _ = make_varied(1, num_shards=5, **by_group, **fields)
  of_text, of_text_again = (
    dict(zip(one.content_hash.tolist(), one.split.tolist(), strict=True))
    for one in (index, again)
  )
  assert of_text == of_text_again


def test_texts_without_words_are_not_near_duplicates():
  texts = ['...', '!', 'one two', 'One, two.', 'one three']
  keys = [split_groups.shingles(text, 5).tolist() for text in texts]
  assert [len(one) for one in keys] == [1] * 5
  assert keys[2] == keys[3]
  assert len({one[0] for one in keys}) == 4
