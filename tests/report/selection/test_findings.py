"""What arms keep, compared."""

import dataclasses
import pathlib
import shutil

import numpy as np
import pytest

from infoprune_jax.config.validation import UserError
from infoprune_jax.report.selection import findings, inputs, overlaps
from infoprune_jax.runtime.workdir import keep_set_dir
from infoprune_jax.selection import arrays


@pytest.fixture(scope='module')
def made(make_workdir):
  return make_workdir(num_documents=5, everything=True, kinds=True)


def gathered_from(config, workdir):
  selected = inputs.open_selected(config, workdir)
  return findings.gather(config, workdir, selected)


@pytest.fixture(scope='module')
def content(made):
  return made[0], gathered_from(*made)


@pytest.fixture
def copied(made, tmp_path):
  config, workdir = made
  return config, shutil.copytree(workdir, str(tmp_path / 'demo'))


def test_overlaps_of_a_workdir(content):
  config, gathered = content
  at = {arm: a for a, arm in enumerate(config.arms)}
  tokens = gathered['overlaps']['tokens']
  assert tokens[at['full']][at['everything']] == 1.0
  assert tokens[at['top_nll']][at['bottom_nll']] == 0.0
  assert tokens[at['random']][at['random']] == 0.0  # Odd and even examples.
  assert tokens[at['random']][at['full']] == pytest.approx(0.5, abs=0.05)
  assert np.array(tokens).tolist() == np.array(tokens).T.tolist()


def test_kept_by_length(content):
  _, gathered = content
  lengths = gathered['lengths']
  assert len(lengths) == 10
  assert all(row['arms']['full'] == 1.0 for row in lengths)
  for row in lengths:
    both = row['arms']['top_nll'] + row['arms']['bottom_nll']
    assert both == pytest.approx(1.0)
  sizes = [row['examples'] for row in lengths]
  assert sum(sizes) == 900 and max(sizes) - min(sizes) < 30


def test_examples_of_each_decile(content):
  _, gathered = content
  deciles = gathered['kept']['deciles']
  assert len(gathered['decile_examples']) == len(deciles) == 10
  for bounds, rows in zip(deciles, gathered['decile_examples'], strict=True):
    assert len(rows) == findings.EXAMPLES_PER_DECILE
    scores = [row['score'] for row in rows]
    assert scores == sorted(scores)
    assert bounds['low'] <= scores[0] and scores[-1] <= bounds['high']
    assert all(row['text'] and row['cut'] for row in rows)


def test_fewer_examples_when_asked(made):
  config, workdir = made
  config = dataclasses.replace(
    config, report=dataclasses.replace(config.report, num_examples=1)
  )
  gathered = gathered_from(config, workdir)
  assert {len(decile) for decile in gathered['decile_examples']} == {1}
  for item in gathered['decisions']:
    assert {len(rows) for rows in item['drawn'].values()} == {1}


def test_kept_and_thrown_away_are_all(content):
  config, gathered = content
  total = gathered['scored']
  assert [arm['name'] for arm in gathered['arms']] == list(config.arms)
  for arm in gathered['arms']:
    for unit in ('examples', 'tokens', 'bytes'):
      assert arm['kept'][unit] + arm['thrown'][unit] == total[unit]
    kept = arm['kept']['tokens']
    for part in (
      gathered['kept']['sources'],
      gathered['kept']['deciles'],
      gathered['kinds'],
    ):
      assert sum(row['tokens'] for row in part) == total['tokens']
      of_shards = sum(row['tokens'] * row['arms'][arm['name']] for row in part)
      assert of_shards == pytest.approx(kept, abs=1)
    lengths = gathered['lengths']
    assert sum(row['examples'] for row in lengths) == total['examples']
    assert sum(
      row['examples'] * row['arms'][arm['name']] for row in lengths
    ) == pytest.approx(arm['kept']['examples'], abs=1)
    heat = gathered['heat'][arm['name']]
    for rows in heat.values():
      thrown = sum(row['thrown'] * row['tokens'] for row in rows)
      assert thrown == pytest.approx(arm['thrown']['tokens'], abs=1)


def test_copies_are_on_one_side_or_the_other(content):
  _, gathered = content
  arms = {arm['name']: arm for arm in gathered['arms']}
  copies = arms['full']['kept_copies']
  assert copies > 40  # One document in twenty.
  for arm in arms.values():
    assert arm['kept_copies'] + arm['thrown_copies'] == copies


def test_decisions_show_both_sides(content):
  config, gathered = content
  by_arm = {arm: item for item in gathered['decisions'] for arm in item['arms']}
  # Nothing is thrown away by the others.
  assert set(by_arm) == {'random', 'top_nll', 'top_sum', 'bottom_nll'}
  assert by_arm['random']['near'] == [] and by_arm['random']['score'] is None
  [low], [high] = by_arm['top_nll']['near'], by_arm['bottom_nll']['near']
  assert (low['side'], high['side']) == ('low', 'high')
  assert low['kept'][0]['score'] == low['score']
  # What one arm keeps next to the threshold the other throws away.
  assert low['kept'] == high['thrown'] and low['thrown'] == high['kept']
  for item in gathered['decisions']:
    assert {len(rows) for rows in item['drawn'].values()} == {
      config.report.num_examples
    }
    for sides in (*item['near'], item['drawn']):
      for rows in (sides['kept'], sides['thrown']):
        assert all(row['text'] and row['cut'] for row in rows)


def test_arms_that_keep_the_same_say_so(content):
  _, gathered = content
  arms = {arm['name']: arm for arm in gathered['arms']}
  assert arms['everything']['same_as'] == 'full'
  assert [arm['by_chance'] for arm in gathered['arms']] == [
    name == 'random' for name in arms
  ]
  assert {n for n, arm in arms.items() if arm['same_as']} == {'everything'}


def test_a_kind_without_a_source_is_refused(made):
  config, workdir = made
  kinds = {'none': ('nothing-*',)}
  config = dataclasses.replace(
    config, report=dataclasses.replace(config.report, kinds=kinds)
  )
  with pytest.raises(
    UserError, match="pattern 'nothing-\\*' of kind 'none' matches no source"
  ):
    gathered_from(config, workdir)


def test_a_damaged_keep_set_is_refused_by_name(copied):
  config, workdir = copied
  file = pathlib.Path(keep_set_dir(workdir, 'top_sum'), 'keep.npy')
  data = bytearray(file.read_bytes())
  data[-3] ^= 4
  file.write_bytes(data)
  with pytest.raises(
    UserError, match=r'keep_sets/top_sum/keep\.npy is damaged'
  ):
    gathered_from(config, workdir)


def test_the_summary_of_another_keep_set_is_refused_by_name(copied):
  config, workdir = copied
  folder = pathlib.Path(keep_set_dir(workdir, 'random-seed-1'))
  other = keep_set_dir(workdir, 'random-seed-0')
  shutil.copy(pathlib.Path(other, 'summary.json'), folder)
  with pytest.raises(
    UserError, match='random-seed-1/summary.json says that .* are kept'
  ):
    gathered_from(config, workdir)


def test_in_batches_it_is_the_same(content, made):
  """Of examples, of scratch files and of keep sets."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(arrays, 'STEP', 101)
    patch.setattr(arrays, '_IN_MEMORY', 64)
    patch.setattr(overlaps, '_BATCH', 77)
    assert gathered_from(*made) == content[1]
