"""An arm that repeats examples, from its keep set to the page and verify."""

import json
import pathlib
import re
import shutil

import numpy as np
import pytest
from ml_collections import ConfigDict
from selected_arms import opened, shown

from configs import base
from infoprune_jax.config import experiment as config_lib
from infoprune_jax.report.selection import page
from infoprune_jax.selection import keep_set, select
from infoprune_jax.tokens.token_store import TokenStore
from infoprune_jax.verify import keep_sets
from infoprune_jax.verify.artifacts import ArtifactStatus

CURVE = ((0.0, 0.0), (0.4, 1.0), (0.95, 7.0))


@pytest.fixture(scope='module')
def made(experiment, scored, tmp_path_factory):
  """A config of four arms, and a workdir up to the selection report."""
  edits = experiment.copy_and_resolve_references()
  edits.select.arms = ConfigDict(
    dict(
      full=base.arm('all'),
      random=base.arm('random', fraction=0.5),
      often=base.arm('repeat', base.INFORMATION, curve=CURVE),
      books=base.arm('repeat', "CASE WHEN source = 'books' THEN 3 ELSE 1 END"),
    ),
    sort_keys=False,
  )
  edits.report.baseline = 'full'
  edits.train.seeds = (0,)
  workdir = str(tmp_path_factory.mktemp('repeats') / 'work')
  shutil.copytree(scored, workdir)
  config = config_lib.from_mapping(edits)
  select.run(config, workdir)
  page.run(config, workdir)
  return config, workdir


def counts_of(workdir: str, arm: str) -> np.ndarray:
  kept = opened(workdir, arm)
  index = np.arange(sum(kept.documents_per_shard))
  return kept.of_documents(index).astype(int)


def column(workdir: str, name: str) -> np.ndarray:
  store = TokenStore.open(workdir)
  return np.concatenate(
    [store.shard(n).column(name) for n in range(store.num_shards)]
  ).astype(int)


def test_every_copy_counts(made):
  _, workdir = made
  tokens, scored = column(workdir, 'num_tokens'), column(workdir, 'split') == 1
  for arm in ('often', 'books'):
    counts, found = counts_of(workdir, arm), shown(workdir, arm)
    assert not counts[~scored].any()
    assert found['kept']['examples'] == counts.sum()
    assert found['kept']['tokens'] == (counts * tokens).sum()
    assert found['repeats'] == [
      {
        'repeats': number,
        'examples': int((here := scored & (counts == number)).sum()),
        'tokens': int(tokens[here].sum()),
        'bytes': int(column(workdir, 'num_bytes')[here].sum()),
      }
      for number in np.unique(counts[scored]).tolist()
    ]
    by_decile = [row['unique_tokens_by_decile'] for row in found['sources']]
    assert np.sum(by_decile) == tokens[counts > 0].sum()
  assert set(counts[scored].tolist()) == {1, 3}
  assert 'repeats' not in shown(workdir, 'random-seed-0')


def test_python_reads_an_entry_for_each_copy(made):
  _, workdir = made
  found = keep_set.read_keep_set(workdir, 'often')
  counts = counts_of(workdir, 'often')
  assert found.tolist() == np.repeat(np.arange(len(counts)), counts).tolist()


@pytest.fixture(scope='module')
def report(made):
  path = pathlib.Path(made[1], 'selection_report/selections.json')
  return json.loads(path.read_text())


def test_what_an_arm_uses_and_throws_away_is_all(made, report):
  _, workdir = made
  arms = {arm['name']: arm for arm in report['arms']}
  for name in ('often', 'books'):
    arm, counts = arms[name], counts_of(workdir, name)
    for unit in ('examples', 'tokens', 'bytes'):
      total = report['scored'][unit]
      assert arm['unique'][unit] + arm['thrown'][unit] == total
      rows = arm['repeats']
      assert sum(r['repeats'] * r[unit] for r in rows) == arm['kept'][unit]
    assert arm['unique']['examples'] == (counts > 0).sum()
    for row in report['heat'][name]['sources']:
      assert 0.0 <= row['thrown'] <= 1.0
  assert arms['often']['kept_tokens'] > 2.0
  # What is compared is what an epoch trains on.
  often, books = (counts_of(workdir, name) for name in ('often', 'books'))
  tokens = column(workdir, 'num_tokens')
  assert report['overlaps']['tokens'][2][3] == pytest.approx(
    (np.minimum(often, books) * tokens).sum()
    / (np.maximum(often, books) * tokens).sum()
  )
  assert arms['books']['same_as'] is None


def test_the_page_has_tokens_by_repeats(made):
  text = pathlib.Path(made[1], 'selection_report/index.html').read_text()
  words = ' '.join(re.sub(r'<[^>]*>', ' ', text).split())
  assert 'Repeats of often' in words and 'Repeats of books' in words
  assert 'every copy of it' in words and 'with straight lines between' in words
  assert 'Repeats of full' not in words
  table = pathlib.Path(made[1], 'selection_report/tables/repeats_of_books.csv')
  assert [line.split(',')[0] for line in table.read_text().splitlines()][
    1:
  ] == ['1', '3']


def test_verify_checks_counts(made, tmp_path):
  """Their sum, their length, and that a rule allows them."""
  workdir = shutil.copytree(made[1], str(tmp_path / 'work'))
  folder = pathlib.Path(workdir, 'keep_sets/often')
  manifest = json.loads((folder / 'manifest.json').read_text())

  def problems(manifest: dict) -> str:
    status = ArtifactStatus(str(folder), 'keep set', 'select', manifest, 1)
    return '\n'.join(keep_sets.problems(status, workdir))

  assert not problems(manifest)
  [rule] = manifest['options']['rules']
  options = {**manifest['options'], 'rules': [{**rule, 'max_repeats': 6}]}
  found = problems({**manifest, 'options': options})
  assert '7 times an epoch, but max_repeats is 6' in found
  counts = np.load(folder / 'repeats.npy')
  counts[np.flatnonzero(counts)[0]] += 1
  np.save(folder / 'repeats.npy', counts)
  assert 'but its manifest says' in problems(manifest)
  np.save(folder / 'repeats.npy', counts[1:])
  assert 'but the token store has 200' in problems(manifest)
