"""Reading what there is before training."""

import posixpath
import shutil

import pytest

from infoprune_jax.config.validation import UserError
from infoprune_jax.report.selection import inputs
from infoprune_jax.runtime import files
from infoprune_jax.runtime.workdir import keep_set_dir


@pytest.fixture(scope='module')
def small(make_workdir):
  return make_workdir(num_documents=5, seeds=(0, 1))


@pytest.fixture
def copied(small, tmp_path):
  config, workdir = small
  return config, shutil.copytree(workdir, str(tmp_path / 'copy'))


def reseal(path: str, **changed) -> None:
  files.write_record(path, {**files.read_record(path, ''), **changed})


def test_what_training_writes_is_not_asked_for(copied):
  config, workdir = copied
  for folder in ('train', 'evaluate', 'reference'):
    shutil.rmtree(posixpath.join(workdir, folder))
  selected = inputs.open_selected(config, workdir)
  assert len(selected.fingerprints) == 4 + 6
  assert selected.selections_of('random') == ('random-seed-0', 'random-seed-1')
  assert selected.selections_of('top_nll') == ('top_nll',)


@pytest.mark.parametrize(
  ('folder', 'changed', 'expected'),
  [
    (
      'keep_sets/top_nll',
      {'inputs': {'token_store': 'f' * 16}},
      'keep set top_nll was made from token store f{16}',
    ),
    (
      'scores',
      {'fingerprint': 'f' * 16},
      'keep set top_nll was made from score table .* is f{16}',
    ),
    (
      'statistics',
      {'inputs': {'token_store': 'f' * 16}},
      'table of statistics was made from token store f{16}',
    ),
    (
      'scores',
      {'inputs': {'token_store': 'f' * 16}},
      'score table was made from token store f{16}',
    ),
  ],
)
def test_another_lineage_is_refused_by_name(copied, folder, changed, expected):
  config, workdir = copied
  reseal(posixpath.join(workdir, folder, 'manifest.json'), **changed)
  with pytest.raises(UserError, match=expected):
    inputs.open_selected(config, workdir)


def test_a_missing_keep_set_is_named_with_its_job(copied):
  config, workdir = copied
  shutil.rmtree(keep_set_dir(workdir, 'top_sum'))
  with pytest.raises(
    UserError, match=r'keep set top_sum in .* is not there. Run --job=select'
  ):
    inputs.open_selected(config, workdir)


@pytest.mark.parametrize(
  ('changed', 'expected'),
  [
    ({'version': 2}, 'full/summary.json has version 2, but this program reads'),
    ({'scores': 'f' * 16}, 'full/summary.json was made with the scores f{16}'),
  ],
)
def test_a_summary_of_something_else_is_refused(copied, changed, expected):
  config, workdir = copied
  selected = inputs.open_selected(config, workdir)
  path = keep_set_dir(workdir, 'full')
  reseal(posixpath.join(path, 'summary.json'), **changed)
  with pytest.raises(UserError, match=expected):
    inputs.keep_summaries(workdir, selected)


def test_a_missing_summary_is_named(copied):
  config, workdir = copied
  selected = inputs.open_selected(config, workdir)
  path = posixpath.join(keep_set_dir(workdir, 'full'), 'summary.json')
  shutil.move(path, path + '.gone')
  with pytest.raises(UserError, match='full/summary.json is missing'):
    inputs.keep_summaries(workdir, selected)
