"""Which host makes which shard, and in how many steps."""

import types

import pytest

from infoprune_jax.runtime import distributed
from infoprune_jax.score import shard_scores, shards

rows = {0: [3, 9], 1: [20, 4], 2: [0, 0], 3: [8, 8], 4: [1, 30]}  # by fold


class Scorer(shards.ShardScorer):
  """Of a store whose shards have so many sequences for each model."""

  def _packed(self, fold, number):
    sequences = rows[number][fold.number]
    documents = types.SimpleNamespace(
      sequences=range(sequences), max_segments=lambda: sequences + fold.number
    )
    return types.SimpleNamespace(documents=documents)


def schedules(monkeypatch, groups, folds, to_do):
  """The schedule of each group of hosts, of four sequences at once each."""
  store = types.SimpleNamespace(
    num_shards=len(rows),
    manifest={
      'splits': {
        name: {'documents': 3, 'tokens': 9} for name in ('scored', 'reference')
      }
    },
  )

  def scorer(group):
    members = [([number], [number]) for number in range(groups)]
    return types.SimpleNamespace(
      groups=members,
      group=group,
      batch_size=4,
      scoring=types.SimpleNamespace(
        sequence_length=1, scored_tokens=lambda documents, tokens: tokens
      ),
    )

  def made(group):
    model = shard_scores.Model('nll_sum', scorer(group), None)
    scored = [shard_scores.Fold(number, (model,)) for number in range(folds)]
    return Scorer(store, scored, None, to_do)

  counted: dict[int, list[int]] = {}
  for group in range(groups):
    monkeypatch.setattr(
      distributed,
      'all_gather',
      lambda name, value, g=group: counted.setdefault(g, value) and [value],
    )
    made(group)._schedule()
  monkeypatch.setattr(
    distributed, 'all_gather', lambda name, value: list(counted.values())
  )
  return [(scorer, scorer._schedule()) for scorer in map(made, range(groups))]


@pytest.mark.parametrize('groups', [1, 2, 3, 7])
@pytest.mark.parametrize('folds', [1, 2])
@pytest.mark.parametrize('to_do', [[0, 1, 2, 3, 4], [1, 4], [2]])
def test_every_shard_once_and_equal_steps(monkeypatch, groups, folds, to_do):
  found = [blocks for _, blocks in schedules(monkeypatch, groups, folds, to_do)]
  for fold in range(folds):
    scored = [
      shard
      for segments in found
      for segment in segments
      if segment.fold.number == fold
      for shard in segment.shards
    ]
    assert sorted(scored) == to_do
  # All use the same model at once, for as long.
  shapes = {
    tuple((s.fold.number, s.steps, s.max_segments) for s in segments)
    for segments in found
  }
  assert len(shapes) == 1
  for segments in found:
    for segment in segments:
      own = sum(rows[p][segment.fold.number] for p in segment.shards)
      assert own <= 4 * segment.steps or groups == 1


def test_a_shard_is_done_before_the_next_is_begun(monkeypatch):
  """With two folds: what is killed loses a few shards a host, not all."""
  monkeypatch.setattr(shards, '_BLOCK_BATCHES', 0)
  [(_, segments)] = schedules(monkeypatch, 1, 2, [0, 3, 4])
  assert [(s.fold.number, s.shards) for s in segments] == [
    (0, [0]),
    (1, [0]),
    (0, [3]),
    (1, [3]),
    (0, [4]),
    (1, [4]),
  ]


def test_sequences_of_several_shards_fill_a_batch(monkeypatch):
  """A shard ends with the batch of its last sequence, or with the next one."""
  [(scorer, [block])] = schedules(monkeypatch, 1, 1, [0, 1, 2, 3, 4])
  batches = list(scorer._batches(block))
  sizes = [[len(chosen) for _, chosen in pieces] for pieces, _ in batches]
  # 3, 20, 0, 8 and 1 sequences, four at once.
  assert sizes == [[3, 1], *[[4]] * 4, [3, 1], [4], [3, 1], []]
  taken = [chosen for pieces, _ in batches for _, chosen in pieces]
  assert [first for first, *_ in taken if not first] == [0, 0, 0, 0]
  assert [len(finished) for _, finished in batches] == [
    1,
    0,
    0,
    0,
    0,
    2,
    0,
    1,
    1,
  ]
