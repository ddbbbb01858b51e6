"""Keep sets: a bit for each document, or a count."""

import hashlib
import itertools
import types

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from configs import base
from infoprune_jax.config.arms import SelectConfig
from infoprune_jax.config.selection import RANKED_KINDS, RuleConfig
from infoprune_jax.config.validation import UserError
from infoprune_jax.runtime import artifacts
from infoprune_jax.runtime.workdir import keep_set_dir
from infoprune_jax.selection import keep_set
from infoprune_jax.selection.keep_set import KeepSet

STORE = types.SimpleNamespace(
  manifest={'fingerprint': 'a' * 16}, documents_per_shard=[3, 0, 10]
)
MASK = np.array([1, 0, 1, 0, 0, 0, 0, 0, 1, 1, 1, 0, 1], bool)


def write(workdir, mask=MASK, fingerprint='a' * 16) -> artifacts.Artifact:
  artifact = artifacts.Artifact(
    keep_set_dir(str(workdir), 'top'),
    'keep set top',
    'select',
    {},
    {'token_store': fingerprint},
  )
  keep_set.write(artifact, mask, kept={'examples': int(mask.sum())})
  return artifact


def rule(keep: str) -> RuleConfig:
  score = 'nll_sum' if keep in RANKED_KINDS else ''
  return RuleConfig(**base.arm(keep, score))


@settings(deadline=None)
@given(
  mask=st.lists(st.booleans(), min_size=1, max_size=40).filter(any),
  data=st.data(),
)
def test_masks_come_back(mask, data):
  """In shards of any sizes, at whatever bit they begin."""
  workdir = 'memory://keep_sets'
  cuts = data.draw(st.lists(st.integers(0, len(mask)), max_size=5))
  bounds = [0, *sorted(cuts), len(mask)]
  sizes = np.diff(bounds).tolist()
  store = types.SimpleNamespace(
    manifest=STORE.manifest, documents_per_shard=sizes
  )
  write(workdir, np.array(mask))
  found = KeepSet.open(workdir, 'top', store)
  assert found.of_documents(np.arange(len(mask))).tolist() == mask
  for shard, (first, last) in enumerate(itertools.pairwise(bounds)):
    rows = np.flatnonzero(mask[first:last]).tolist()
    assert found.doc_indices(shard).tolist() == rows


def test_rows_of_each_shard(tmp_path):
  write(tmp_path)
  found = KeepSet.open(str(tmp_path), 'top', STORE)
  assert [found.doc_indices(shard).tolist() for shard in range(3)] == [
    [0, 2],
    [],
    [5, 6, 7, 9],
  ]
  assert found.manifest['kept'] == {'examples': 6}


def test_a_document_is_a_bit(tmp_path):
  artifact = write(tmp_path, np.ones(80_000, bool))
  size = artifact.finished()['files'][keep_set.FILE]['bytes']
  assert size < 80_000 // 8 + 200


def test_bits_are_written_as_ever(tmp_path):
  """Workdirs of earlier versions stay valid, byte for byte."""
  artifact = write(tmp_path)
  assert list(artifact.finished()['files']) == ['keep.npy']
  [path] = tmp_path.rglob('*.npy')
  assert hashlib.sha256(path.read_bytes()).hexdigest() == (
    '9d441ad16aab2bcf8907e672549e58190bbfc9a533a840ff5734e64773754b17'
  )


def test_counts_come_back(tmp_path):
  """In shards, of which one is empty; a copy is one entry."""
  counts = np.array([3, 0, 1, 0, 0, 0, 0, 0, 2, 255, 1, 0, 0], np.uint8)
  artifact = write(tmp_path, counts)
  assert list(artifact.finished()['files']) == ['repeats.npy']
  found = KeepSet.open(str(tmp_path), 'top', STORE)
  assert found.of_documents(np.array([0, 9, 12])).tolist() == [3, 255, 0]
  assert [found.of_shard(shard).tolist() for shard in range(3)] == [
    *(counts[:3].tolist(), [], counts[3:].tolist()),
  ]
  assert [found.doc_indices(shard).tolist() for shard in range(3)] == [
    [0, 0, 0, 2],
    [],
    [*[5] * 2, *[6] * 255, 7],
  ]


def test_keeping_nothing_is_refused(tmp_path):
  with pytest.raises(UserError, match='keep no example: raise the fraction'):
    write(tmp_path, np.zeros(13, bool))
  assert not list(tmp_path.rglob('manifest.json'))


def test_another_store_is_refused(tmp_path):
  write(tmp_path, fingerprint='b' * 16)
  with pytest.raises(UserError, match='keep set top was made from') as caught:
    KeepSet.open(str(tmp_path), 'top', STORE)
  assert 'a' * 16 in str(caught.value) and 'b' * 16 in str(caught.value)


def test_a_missing_keep_set_names_the_job(tmp_path):
  with pytest.raises(UserError, match=r'keep set top .* --job=select first'):
    KeepSet.open(str(tmp_path), 'top', STORE)


def test_damage_is_found(tmp_path):
  write(tmp_path)
  [path] = tmp_path.rglob(keep_set.FILE)
  data = bytearray(path.read_bytes())
  data[-1] ^= 1
  path.write_bytes(data)
  with pytest.raises(UserError, match=r'keep\.npy is damaged.*--job=select'):
    KeepSet.open(str(tmp_path), 'top', STORE)


@pytest.mark.parametrize(
  'kinds, names',
  [
    (['top'], ['arm', 'arm']),
    (['all'], ['arm', 'arm']),
    (['random'], ['arm-seed-0', 'arm-seed-1']),
    (['top', 'random'], ['arm-seed-0', 'arm-seed-1']),
  ],
)
def test_arms_that_draw_have_a_keep_set_a_seed(kinds, names):
  rules = [rule(kind) for kind in kinds]
  assert keep_set.draws(rules) is (names[0] != names[1])
  select = SelectConfig(arms={'arm': tuple(rules)})
  assert [keep_set.selection_name(select, 'arm', s) for s in (0, 1)] == names
