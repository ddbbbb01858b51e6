"""What is stale is made again by one switch; longer runs are asked for."""

import pathlib
import re
import shutil
from typing import Any

import pytest
from three_arms import digests, edited, run, times

from infoprune_jax import stages
from infoprune_jax.config.validation import UserError
from infoprune_jax.model import checkpoints
from infoprune_jax.runtime import artifacts, manifests
from infoprune_jax.train import hooks


@pytest.fixture
def copied(three_arms_run, tmp_path) -> pathlib.Path:
  return shutil.copytree(three_arms_run, tmp_path / 'work')


RULE = {'select.arms.top_nll.fraction': 0.7}


@pytest.fixture(scope='module')
def fresh_rule(three_arms, tmp_path_factory) -> pathlib.Path:
  """A workdir that has had the changed rule from the start."""
  workdir = tmp_path_factory.mktemp('fresh') / 'work'
  run(edited(three_arms, **RULE), workdir, None)
  return workdir


def check_equal(workdir: pathlib.Path, fresh: pathlib.Path) -> None:
  """Compares all bytes but those of exports, which run on request alone."""
  shutil.rmtree(workdir / 'export')
  assert digests(workdir) == digests(fresh)
  assert (workdir / 'report/report.json').read_bytes() == (
    fresh / 'report/report.json'
  ).read_bytes()


def written_since(before: dict[str, int], workdir: pathlib.Path) -> set[str]:
  """The folders of files that are new or were written again."""
  after = times(workdir)
  new = {name for name, time in after.items() if before.get(name) != time}
  return {'/'.join(name.split('/')[:2]) for name in new}


def test_a_rule_is_redone_with_its_arm_alone(
  three_arms, copied, fresh_rule, caplog
):
  before = times(copied)
  with caplog.at_level('INFO'):
    run(edited(three_arms, **RULE), copied, None, stale='redo')
  made = ('keep_sets/top_nll', 'train/top_nll', 'evaluate/top_nll')
  assert written_since(before, copied) == {*made}
  check_equal(copied, fresh_rule)
  deleted = re.findall(r'stale: .*/work/(\S+) is deleted: (.*)', caplog.text)
  cause = 'select.arms.top_nll: fraction 0.5 -> 0.7'
  assert deleted == [
    ('keep_sets/top_nll', cause),
    ('train/top_nll/seed-0', cause),
    ('evaluate/top_nll/seed-0', cause),
  ]


def test_a_corpus_is_redone_with_all_that_is_made_from_it(
  three_arms, copied, tmp_path
):
  """The vocabulary, too: the corpus decides it."""
  config = edited(three_arms, **{'corpus.seed': 1})
  before = times(copied)
  run(config, copied, None, stale='redo')
  kept = {*times(copied).items()} & {*before.items()}
  assert {name.split('/')[0] for name, _ in kept} == {'export'}
  fresh = tmp_path / 'fresh' / 'work'
  run(config, fresh, None)
  check_equal(copied, fresh)


def test_redo_deletes_only_what_the_job_makes(three_arms, copied):
  config = edited(three_arms, **RULE)
  before = times(copied)
  with pytest.raises(UserError, match='--job=select with --stale=redo first'):
    run(config, copied, 'train', stale='redo')
  assert times(copied) == before
  run(config, copied, 'select', stale='redo')
  written = {n for n, time in times(copied).items() if before[n] != time}
  assert {name.split('/')[1] for name in written} == {'top_nll'}
  # Downstream the cause is no longer known, but the change is.
  state = stages.state('train', config, str(copied))
  again = 'the keep set top_nll was made again'
  assert state == stages.StageState('stale', again)
  run(config, copied, 'train', stale='redo')
  assert str(stages.state('train', config, str(copied))) == 'finished'
  # One rule decides the table of all arms.
  with pytest.raises(UserError, match=again):
    run(config, copied, 'export')
  run(config, copied, 'export', stale='redo')


class Killed(Exception):
  pass


def test_killed_while_it_deletes(three_arms, copied, fresh_rule, monkeypatch):
  """What is left is stale for the same reason, until all of it is deleted."""
  config = edited(three_arms, **RULE)
  delete, deleted = artifacts.Artifact.delete, []

  def killed(self):
    if len(deleted) == 2:
      raise Killed
    deleted.append(self.path)
    delete(self)

  for number in range(3):
    with monkeypatch.context() as patch, pytest.raises(Killed):
      patch.setattr(artifacts.Artifact, 'delete', killed)
      deleted[:] = [''] * (2 - number % 2)  # None, or one more.
      run(config, copied, None, stale='redo')
    with pytest.raises(UserError, match='fraction 0.5 -> 0.7'):
      run(config, copied, None)
  run(config, copied, None, stale='redo')
  check_equal(copied, fresh_rule)


def test_killed_while_it_makes_again(
  three_arms, copied, fresh_rule, monkeypatch
):
  """All is deleted by then: a plain run goes on."""
  config = edited(three_arms, **RULE)
  save = hooks.Checkpoint.save

  def killed(self, number, state):
    save(self, number, state)
    if number == 2:
      raise Killed

  with monkeypatch.context() as patch, pytest.raises(Killed):
    patch.setattr(hooks.Checkpoint, 'save', killed)
    run(config, copied, None, stale='redo')
  state = str(stages.state('train', config, str(copied)))
  assert state == 'resumes after 1 of 2, at step 2'
  run(config, copied, None)
  check_equal(copied, fresh_rule)


def end_of(workdir: pathlib.Path) -> tuple[int, str]:
  """The last step of a run, and the hash of its parameters."""
  path = str(workdir / 'train/top_nll/seed-0')
  manifest: Any = manifests.read_manifest(path, 'train')
  assert checkpoints.steps(path) == [manifest['step']]
  return manifest['step'], manifest['params_hash']


def test_a_longer_run_is_asked_for(three_arms, copied, tmp_path, monkeypatch):
  """The last checkpoint of the finished run is kept until the new end."""
  longer = edited(three_arms, **{'train.training.num_steps': 6})
  cause = 'train.training: num_steps 4 -> 6'
  with pytest.raises(UserError, match=f'{cause}.*--extend'):
    run(longer, copied, 'train')
  with pytest.raises(UserError, match='num_steps 4 -> 6.*--extend'):
    stages.STAGES['train'].run(longer, str(copied))
  state = stages.state('train', longer, str(copied), extend=True)
  assert str(state) == 'resumes at step 4'
  kept = []
  save = hooks.Checkpoint.save

  def watched(self, number, state):
    kept.append(checkpoints.steps(self._run.artifact.path))
    save(self, number, state)
    if len(kept) == 2:
      raise Killed

  with monkeypatch.context() as patch, pytest.raises(Killed):
    patch.setattr(hooks.Checkpoint, 'save', watched)
    run(longer, copied, 'train', extend=True)
  assert all(4 in steps for steps in kept)
  # Until the new end it is the run of 4 steps, for every other stage.
  run(edited(three_arms), copied, 'evaluate', 'report', 'verify')
  with pytest.raises(UserError, match=cause):
    run(longer, copied, 'train')
  run(longer, copied, 'train', extend=True)
  run(longer, copied, 'train')  # It is finished.
  # With a constant learning rate it is the run that had 6 steps at once.
  fresh = shutil.copytree(copied, tmp_path / 'fresh')
  shutil.rmtree(fresh / 'train')
  run(longer, fresh, 'train')
  assert end_of(copied) == end_of(fresh) and end_of(fresh)[0] == 6
  run(longer, copied, 'evaluate', stale='redo')
  # It cannot become shorter.
  with pytest.raises(UserError, match='num_steps 6 -> 4'):
    run(edited(three_arms), copied, 'train', extend=True)


def test_what_was_made_from_a_shorter_run_is_stale(three_arms, copied):
  longer = edited(three_arms, **{'reference.training.num_steps': 6})
  before = times(copied)
  # That is known before the run is longer.
  cause = 'reference.training: num_steps 4 -> 6'
  with pytest.raises(UserError, match=f'{cause} .*scores'):
    run(longer, copied, None, extend=True)
  assert times(copied) == before
  run(longer, copied, 'reference', extend=True)
  state = stages.state('score', longer, str(copied))
  assert state.kind == 'stale' and 'step 4 -> 6' in state.reason
  with pytest.raises(UserError, match='step 4 -> 6'):
    run(longer, copied, 'score', extend=True)
  run(longer, copied, 'score', stale='redo')
  assert stages.state('select', longer, str(copied)).kind == 'stale'
