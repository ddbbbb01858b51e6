"""The select stage, on a score table that no model made."""

import pathlib
import shutil

import numpy as np
import pytest
from ml_collections import ConfigDict
from selected_arms import mask, opened, run, shown, times
from small_corpus import only_arms

from configs import base
from infoprune_jax.config import experiment as config_lib
from infoprune_jax.config.validation import UserError
from infoprune_jax.runtime import files
from infoprune_jax.runtime.workdir import (
  keep_set_dir,
  near_duplicates_dir,
  scores_dir,
)
from infoprune_jax.selection import select
from infoprune_jax.selection.keep_set import KeepSet
from infoprune_jax.statistics import near_duplicates
from infoprune_jax.tokens import tables, tokenize
from infoprune_jax.tokens.token_store import TokenStore

NAMES = [
  'bottom_nll',
  'full',
  'random-seed-0',
  'random-seed-1',
  'top_nll',
  'top_sum',
]


def test_a_keep_set_for_each_arm_and_draw(experiment, workdir):
  run(experiment, workdir)
  folder = pathlib.Path(workdir) / 'keep_sets'
  assert sorted(path.name for path in folder.iterdir()) == NAMES
  assert not list(folder.rglob('*.tmp'))


def test_only_scored_documents_are_kept(experiment, workdir):
  run(experiment, workdir)
  store = TokenStore.open(workdir)
  for name in NAMES:
    kept = opened(workdir, name)
    for shard in range(store.num_shards):
      scored = store.shard(shard).documents_of('scored')
      assert np.isin(kept.doc_indices(shard), scored).all(), name
    if name == 'full':
      scored = store.manifest['splits']['scored']['documents']
      assert mask(kept).sum() == scored


def test_a_keep_set_is_the_rule_over_the_table(experiment, workdir):
  resolved = run(experiment, workdir)
  scores = tables.read_table(scores_dir(workdir))
  nll = scores['nll_sum'].to_numpy() / scores['num_tokens'].to_numpy()
  tokens = scores['num_tokens'].to_numpy()
  order = np.argsort(-nll)
  expected = order[np.cumsum(tokens[order]) <= int(0.5 * tokens.sum())]
  places = {
    (scores['shard'][int(i)].as_py(), scores['doc_index'][int(i)].as_py())
    for i in expected
  }
  kept = opened(workdir, 'top_nll')
  found = {
    (shard, int(row)) for shard in range(3) for row in kept.doc_indices(shard)
  }
  assert found == places
  assert resolved.select.arms['top_nll'][0].fraction == 0.5


def test_random_arms_differ_by_seed(experiment, workdir):
  run(experiment, workdir)
  first, second = (opened(workdir, f'random-seed-{seed}') for seed in (0, 1))
  assert (mask(first) != mask(second)).any()
  assert first.manifest['options']['draw'] == 0
  assert second.manifest['options']['draw'] == 1


def test_summaries_agree_with_keep_sets(experiment, workdir):
  run(experiment, workdir)
  store = TokenStore.open(workdir)
  for name in NAMES:
    kept, found = opened(workdir, name), shown(workdir, name)
    tokens = [
      int(
        store.shard(shard).column('num_tokens')[kept.doc_indices(shard)].sum()
      )
      for shard in range(store.num_shards)
    ]
    assert found['kept']['tokens'] == sum(tokens)
    assert found['kept']['examples'] == mask(kept).sum()
    assert found['kept'] == kept.manifest['kept']
    scored = store.manifest['splits']['scored']
    assert found['total'] == {
      'examples': scored['documents'],
      'tokens': scored['tokens'],
      'bytes': scored['bytes'],
    }
    ranked = name not in ('full', 'random-seed-0', 'random-seed-1')
    assert len(found['most']) == len(found['least']) == 4 * ranked


def test_running_again_does_nothing(experiment, workdir):
  run(experiment, workdir)
  before = times(workdir)
  run(experiment, workdir)
  assert times(workdir) == before


def test_one_more_arm_leaves_the_others(experiment, workdir):
  run(experiment, workdir)
  before = times(workdir)
  run(experiment, workdir, more=base.arm('middle', 'num_tokens', fraction=0.2))
  after = times(workdir)
  assert {name: after[name] for name in before} == before
  assert mask(opened(workdir, 'more')).any()


def test_another_rule_under_the_same_name_is_refused(experiment, workdir):
  run(experiment, workdir)
  with pytest.raises(UserError, match='keep set top_nll') as caught:
    run(experiment, workdir, top_nll=base.arm('top', 'num_bytes', fraction=0.5))
  assert "'nll_sum / num_tokens'" in str(caught.value)
  assert "'num_bytes'" in str(caught.value)


def test_a_damaged_store_of_scores_is_refused(experiment, workdir):
  [path] = pathlib.Path(workdir).glob('scores/data/part-00001*.parquet')
  path.write_bytes(path.read_bytes()[:-1])
  with pytest.raises(UserError, match=r'part-00001-of-00003\.parquet has'):
    run(experiment, workdir)


def test_scores_of_another_store_are_refused(
  experiment, workdir, tmp_path_factory, make_scores
):
  other = str(tmp_path_factory.mktemp('other'))
  edits = experiment.copy_and_resolve_references()
  edits.corpus.seed = 1
  tokenize.run(config_lib.from_mapping(edits), other)
  store = TokenStore.open(other).fingerprint
  made_from = TokenStore.open(workdir).fingerprint
  (pathlib.Path(workdir) / 'scores').rename(pathlib.Path(other) / 'scores')
  with pytest.raises(UserError, match='score table was made from') as caught:
    run(edits, other)
  assert store in str(caught.value) and made_from in str(caught.value)


def test_other_scores_need_other_keep_sets(experiment, workdir, make_scores):
  run(experiment, workdir)
  kept = mask(opened(workdir, 'random-seed-0'))
  shutil.rmtree(scores_dir(workdir))
  make_scores(workdir, seed=9)
  with pytest.raises(
    UserError, match=r'keep set \w+ in .* another version of scores'
  ):
    run(experiment, workdir)
  # An arm that reads no score keeps its set, and shows the new deciles.
  edits = experiment.copy_and_resolve_references()
  only_arms(edits, 'full', 'random')
  run(edits, workdir)
  manifest = files.read_json(f'{scores_dir(workdir)}/manifest.json')
  for name in ('full', 'random-seed-0'):
    assert shown(workdir, name)['scores'] == manifest['fingerprint']
  assert (mask(opened(workdir, 'random-seed-0')) == kept).all()


def test_a_killed_arm_is_written_again(experiment, workdir):
  run(experiment, workdir)
  expected = opened(workdir, 'top_sum').manifest
  folder = pathlib.Path(keep_set_dir(workdir, 'top_sum'))
  (folder / 'manifest.json').unlink()
  (folder / 'keep.npy').write_bytes(b'half')
  before = times(workdir, 'keep_sets/full')
  run(experiment, workdir)
  assert opened(workdir, 'top_sum').manifest == expected
  assert times(workdir, 'keep_sets/full') == before


def test_missing_scores_name_the_job(experiment, tmp_path):
  tokenize.run(config_lib.from_mapping(experiment), str(tmp_path))
  with pytest.raises(UserError, match=r'score table .* --job=score first'):
    run(experiment, str(tmp_path))


def test_every_arm_is_selected_whichever_are_trained(experiment, workdir):
  edits = experiment.copy_and_resolve_references()
  edits.train.arms = ('top_nll',)
  run(edits, workdir)
  for name in ('full', 'top_nll', 'random-seed-0'):
    assert mask(opened(workdir, name)).any()


def test_a_keep_set_knows_its_place_in_the_store(experiment, workdir):
  """The number of a document is its part's offset and its row."""
  run(experiment, workdir)
  store = TokenStore.open(workdir)
  kept = opened(workdir, 'full')
  offset = 0
  for shard, size in enumerate(store.documents_per_shard):
    found = np.flatnonzero(mask(kept)[offset : offset + size])
    assert found.tolist() == store.shard(shard).documents_of('scored').tolist()
    offset += size


def test_infinite_scores_are_refused(experiment, workdir):
  with pytest.raises(UserError, match='no finite number'):
    run(experiment, workdir, odd=base.arm('top', 'nll_sum / 0', fraction=0.5))


def test_more_examples_are_shown_when_asked_for(experiment, workdir):
  edits = experiment.copy_and_resolve_references()
  edits.report.num_examples = 1
  run(edits, workdir)
  few = opened(workdir, 'top_nll').manifest
  assert len(shown(workdir, 'top_nll')['most']) == 1
  edits.report.num_examples = 4
  run(edits, workdir)
  assert len(shown(workdir, 'top_nll')['most']) == 4
  # What was trained on the keep set stays what it was trained on.
  assert opened(workdir, 'top_nll').manifest == few


def test_everything_is_all_but_the_heldout_split(experiment, workdir):
  run(experiment, workdir, everything=base.arm('all_plus_reference'))
  store, kept = TokenStore.open(workdir), opened(workdir, 'everything')
  assert mask(kept).sum() > mask(opened(workdir, 'full')).sum()
  by_source: dict[str, int] = {}
  for number in range(store.num_shards):
    shard = store.shard(number)
    reference = shard.documents_of('reference')
    expected = np.union1d(shard.documents_of('scored'), reference)
    assert kept.doc_indices(number).tolist() == expected.tolist()
    names = shard.table('source')['source'].to_pylist()
    for row in reference:
      tokens = int(shard.column('num_tokens')[row])
      by_source[names[row]] = by_source.get(names[row], 0) + tokens
  found = shown(workdir, 'everything')
  sizes = store.manifest['splits']['reference']
  assert found['added'] == {
    'examples': sizes['documents'],
    'tokens': sizes['tokens'],
    'bytes': sizes['bytes'],
    'sources': by_source,
  }
  # What it keeps is counted as every arm's is: of what was scored.
  assert found['kept'] == found['total'] == shown(workdir, 'full')['kept']
  assert 'added' not in shown(workdir, 'full')


def test_bounds_that_hold_nothing_are_refused(experiment, workdir):
  nothing = base.arm('threshold', 'num_tokens', low=1e9)
  with pytest.raises(UserError, match='keep no example: .* widen low and high'):
    run(experiment, workdir, nothing=nothing)


def test_a_sample_is_drawn_anew_for_each_seed(experiment, workdir):
  warm = base.arm('sample', 'nll_sum / num_tokens', fraction=0.5)
  run(experiment, workdir, warm=warm)
  first, second = (opened(workdir, f'warm-seed-{seed}') for seed in (0, 1))
  assert (mask(first) != mask(second)).any()


def test_summaries_of_an_earlier_version_are_written_again(experiment, workdir):
  run(experiment, workdir)
  path = pathlib.Path(keep_set_dir(workdir, 'top_nll'))
  current = (path / 'summary.json').read_bytes()
  old = {**shown(workdir, 'top_nll'), 'version': 1}
  files.write_record(str(path / 'summary.json'), old)
  run(experiment, workdir)
  assert (path / 'summary.json').read_bytes() == current


def test_near_duplicates_need_their_table(experiment, workdir):
  """And the arm that goes by them alone has it among its inputs."""
  edits = experiment.copy_and_resolve_references()
  edits.select.arms = ConfigDict(
    dict(
      random=base.arm('random', fraction=0.5),
      apart=base.arm('distinct', 'near_duplicate_group'),
    ),
    sort_keys=False,
  )
  edits.near_duplicates.update(ngram=1, bands=20, rows_per_band=1)
  edits.report.baseline = 'random'
  made = config_lib.from_mapping(edits)
  with pytest.raises(UserError, match='--job=near_duplicates'):
    select.run(made, workdir)
  near_duplicates.run(made, workdir)
  select.run(made, workdir)
  store = TokenStore.open(workdir)
  groups = tables.read_table(near_duplicates_dir(workdir))
  kept = KeepSet.open(workdir, 'apart', store)
  first = np.cumsum([0, *store.documents_per_shard])
  number = first[groups['shard'].to_numpy()] + groups['doc_index'].to_numpy()
  alone = groups['near_duplicate_group'].to_numpy() == number
  assert 0 < alone.sum() < len(alone)
  assert kept.of_documents(number).tolist() == alone.tolist()
  assert set(kept.manifest['inputs']) == {
    *('token_store', 'scores', 'statistics', 'near_duplicates')
  }
  other = KeepSet.open(workdir, 'random-seed-0', store)
  assert set(other.manifest['inputs']) == {'token_store'}
