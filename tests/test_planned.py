"""A changed config: every stage, page, verify and the dry run know it."""

import pathlib
import re
import shutil

import pytest
from three_arms import edited, run, times

from infoprune_jax import dry_run, stages
from infoprune_jax.config.validation import UserError

# By stage: an option that decides its artifacts, a new value, how the cause is
# named, and a stage downstream of it.
CHANGES = (
  ('tokenize', 'corpus.seed', 1, 'corpus: seed 0 -> 1', 'score'),
  ('tokenize', 'vocabulary.size', 500, 'vocabulary: size 400 -> 500', 'train'),
  ('statistics', 'reference.folds', 2, 'reference: folds 1 -> 2', 'select'),
  (
    'near_duplicates',
    'near_duplicates.bands',
    3,
    'near_duplicates: bands 14 -> 3',
    'select',
  ),
  (
    'reference',
    'reference.training.weight_decay',
    0.5,
    'reference.training: weight_decay 0.1 -> 0.5',
    'score',
  ),
  (
    'reference',
    'reference.training.num_steps',
    6,
    'reference.training: num_steps 4 -> 6',
    'train',
  ),
  (
    'score',
    'score.dtype',
    'bfloat16',
    "score: dtype 'float32' -> 'bfloat16'",
    'train',
  ),
  (
    'select',
    'select.arms.top_nll.fraction',
    0.7,
    'select.arms.top_nll: fraction 0.5 -> 0.7',
    'export',
  ),
  ('train', 'model.mlp_dim', 96, 'model: mlp_dim 64 -> 96', 'evaluate'),
  (
    'train',
    'train.training.num_steps',
    3,
    'train.training: num_steps 4 -> 3',
    'report',
  ),
  (
    'evaluate',
    'evaluate.scoring.dtype',
    'bfloat16',
    "evaluate.scoring: dtype 'float32' -> 'bfloat16'",
    'report',
  ),
  (
    'export',
    'export.include_locations',
    True,
    'export: include_locations False -> True',
    'export',
  ),
)


@pytest.fixture
def copied(three_arms_run, tmp_path) -> pathlib.Path:
  return shutil.copytree(three_arms_run, tmp_path / 'work')


def test_what_is_finished_is_of_this_config(three_arms, three_arms_run, capsys):
  config = edited(three_arms)
  before = times(three_arms_run)
  for name in stages.needed(config):
    state = stages.state(name, config, str(three_arms_run))
    page = stages.STAGES[name].always_anew
    assert str(state) == ('to do' if page else 'finished'), name
  run(config, three_arms_run, 'verify')
  assert 'STALE' not in capsys.readouterr().out
  run(config, three_arms_run)
  assert times(three_arms_run) == before


@pytest.mark.parametrize(
  'stage, option, value, cause, later', CHANGES, ids=[c[1] for c in CHANGES]
)
def test_a_change_is_known_everywhere(
  stage, option, value, cause, later, three_arms, three_arms_run, capsys
):
  config, workdir = edited(three_arms, **{option: value}), str(three_arms_run)
  before = times(three_arms_run)
  assert stages.state(stage, config, workdir) == stages.StageState(
    'stale', cause
  )
  for job in (stage, later, *((None,) if stage != 'export' else ())):
    with pytest.raises(UserError) as caught:
      stages.run(config, workdir, job)
    assert cause in str(caught.value) and '--stale=redo' in str(caught.value)
  if stage in ('tokenize', 'score', 'select'):
    with pytest.raises(UserError, match=re.escape(cause)):
      stages.run(config, workdir, 'selection_report')
  if stage != 'export':
    with pytest.raises(UserError, match=re.escape(cause)):
      stages.run(config, workdir, 'report')
    dry_run.run(config, workdir)
    assert f'{stage:16} {"stale":9} because {cause}' in capsys.readouterr().out
  with pytest.raises(UserError, match='are wrong'):
    stages.run(config, workdir, 'verify')
  printed = capsys.readouterr().out
  assert 'STALE' in printed and f'       {cause}\n' in printed
  assert 'WRONG' not in printed
  assert times(three_arms_run) == before


def test_pages_of_another_config_are_stale_and_made_anew(
  three_arms, three_arms_run, copied
):
  config = edited(three_arms, **{'report.num_examples': 3})
  cause = 'report: num_examples 10 -> 3'
  state = stages.state('selection_report', config, str(copied))
  assert state == stages.StageState('stale', cause)
  run(config, copied, 'selection_report', 'select', 'selection_report')
  assert str(stages.state('selection_report', config, str(copied))) == 'to do'


def test_train_arms_choose_what_is_trained(three_arms, three_arms_run, copied):
  """Every arm is selected, shown and exported; those that are named train."""
  names = {path.name for path in (three_arms_run / 'keep_sets').iterdir()}
  assert names == {'random-seed-0', 'top_nll', 'distinct'}
  page = (three_arms_run / 'selection_report/index.html').read_text()
  assert 'distinct' in page
  trained = {path.name for path in (three_arms_run / 'train').iterdir()}
  assert trained == {'random', 'top_nll'}
  report = (three_arms_run / 'report/report.json').read_text()
  assert '"chosen": ' in report
  before = times(copied)
  more = edited(three_arms, **{'train.arms': ('top_nll', 'random', 'distinct')})
  for name in ('select', 'export'):
    assert str(stages.state(name, more, str(copied))) == 'finished'
  run(more, copied)
  after = times(copied)
  assert {name: after[name] for name in before} == before
  assert (copied / 'evaluate/distinct/seed-0/manifest.json').exists()
