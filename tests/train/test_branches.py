"""Arms of several phases, and runs that start from another run."""

import shutil

import numpy as np
import pytest
from small_corpus import small_config

from configs import base
from infoprune_jax import dry_run, stages
from infoprune_jax.config import experiment as config_lib
from infoprune_jax.config.experiment import Config
from infoprune_jax.config.validation import UserError
from infoprune_jax.model import checkpoints
from infoprune_jax.runtime import files, manifests
from infoprune_jax.runtime.workdir import run_dir
from infoprune_jax.selection import keep_set, select
from infoprune_jax.train import hooks

HALF = base.arm('random', fraction=0.5)
ARMS = {
  'apart': base.phases((0.0, base.arm('all')), (0.5, HALF)),
  'full': base.arm('all'),
  # It comes before the run that it starts from.
  'after': base.branch('late', at=0.75, then=base.arm('all')),
  'late': base.branch('full', at=0.5, then=HALF),
}


class Killed(Exception):
  """Stands for a kill right after a checkpoint."""


def experiment(corpus_path: str, **arms) -> Config:
  edits = small_config(corpus_path)
  edits.select.arms = {**ARMS, **arms}
  edits.train.seeds = (0,)
  edits.report.baseline = 'full'
  edits.train.training.update(num_steps=8, warmup_steps=1, log_every=1)
  edits.train.training.update(max_checkpoints=1, eval_every=4)
  return config_lib.from_mapping(edits)


@pytest.fixture(scope='module')
def config(corpus_path) -> Config:
  return experiment(corpus_path)


@pytest.fixture(scope='module')
def branched(config, store, store_workdir, tmp_path_factory) -> str:
  """A workdir with finished runs, whose arms keep all or every other document."""
  path = tmp_path_factory.mktemp('branched')
  workdir = str(path)
  for name in ('token_store', 'vocabulary'):
    (path / name).symlink_to(f'{store_workdir}/{name}')
  made_from = {'token_store': store.fingerprint}
  for arm, rules in config.select.arms.items():
    artifact = select.describe(config, workdir, arm, 0, made_from)
    mask = np.ones(sum(store.documents_per_shard), bool)
    mask[1::2] = rules[0].keep == 'all'
    keep_set.write(artifact.begin(), mask)
  stages.run(config, workdir, 'train')
  return workdir


def manifest_of(workdir: str, arm: str) -> dict:
  return files.read_json(f'{run_dir(workdir, arm, 0)}/{manifests.MANIFEST}')


def outcome(workdir: str, arm: str) -> tuple[str, bytes]:
  """What is the same, bit for bit, in every repetition of a run."""
  metrics = files.read_bytes(f'{run_dir(workdir, arm, 0)}/metrics.jsonl')
  return manifest_of(workdir, arm)['params_hash'], metrics


def test_a_branch_equals_a_run_that_takes_all_steps(branched):
  late, apart = (manifest_of(branched, arm) for arm in ('late', 'apart'))
  assert outcome(branched, 'late') == outcome(branched, 'apart')
  assert outcome(branched, 'late') != outcome(branched, 'full')
  for name in ('step', 'tokens', 'flops', 'epochs'):
    assert late[name] == apart[name]
  assert late['shared_steps'] == 4 and 'shared_steps' not in apart
  assert manifest_of(branched, 'after')['shared_steps'] == 6


def test_the_other_run_keeps_the_checkpoint(branched):
  assert checkpoints.steps(run_dir(branched, 'full', 0)) == [4, 8]
  assert checkpoints.steps(run_dir(branched, 'late', 0)) == [6, 8]
  assert checkpoints.steps(run_dir(branched, 'apart', 0)) == [8]


@pytest.mark.parametrize('arm, stop_at', [('late', 5), ('apart', 4)])
def test_a_resumed_run_is_the_same(
  config, branched, tmp_path, monkeypatch, arm, stop_at
):
  """Also if it is killed where a phase starts."""
  workdir = str(tmp_path / 'run')
  shutil.copytree(branched, workdir, symlinks=True)
  shutil.rmtree(run_dir(workdir, arm, 0))
  save = hooks.Checkpoint.save

  def and_die(self, number, state):
    save(self, number, state)
    self._session.saved.wait()
    raise Killed

  monkeypatch.setattr(hooks.Checkpoint, 'save', and_die)
  monkeypatch.setattr(
    hooks.Checkpoint, 'is_due', lambda self, number: number == stop_at
  )
  with pytest.raises(Killed):
    stages.run(config, workdir, 'train')
  monkeypatch.undo()
  assert checkpoints.steps(run_dir(workdir, arm, 0)) == [stop_at]
  stages.run(config, workdir, 'train')
  assert outcome(workdir, arm) == outcome(branched, arm)
  assert manifest_of(workdir, arm) == manifest_of(branched, arm)


def test_a_run_without_that_checkpoint_is_refused_first(corpus_path, branched):
  early = experiment(corpus_path, early=base.branch('full', 0.25, then=HALF))
  with pytest.raises(UserError, match=r'step 2 of .*are: \[4, 8\].*phases'):
    stages.run(early, branched, None)
  state = stages.state('train', early, branched)
  assert state.kind == 'refused'
  assert 'early, seed 0, starts from step 2 of' in state.reason


def test_another_step_makes_only_the_branch_stale(corpus_path, branched):
  other = experiment(corpus_path, late=base.branch('full', 0.4, then=HALF))
  cause = r'select.arms.late: phases\[1\] 4 -> 3 \(train/late/seed-0\)'
  with pytest.raises(UserError, match=cause) as error:
    stages.run(other, branched, 'train')
  assert 'train/full' not in str(error.value)


def test_phases_without_a_step_are_refused(corpus_path, tmp_path):
  short = experiment(corpus_path, apart=base.phases((0.0, HALF), (0.05, HALF)))
  with pytest.raises(UserError, match='0.0, 0.05 of 8 steps'):
    stages.run(short, str(tmp_path), 'train')


def test_the_dry_run_counts_shared_steps_once(config, branched, capsys):
  dry_run.run(config, branched, 'train')
  printed = capsys.readouterr().out
  assert 'late starts from full at step 4' in printed
  # full 8, apart 8, late 8 - 4, after 8 - 6.
  flops = 22 * manifest_of(branched, 'full')['flops'] / 8
  assert f'{flops / 1e9:.2f} GFLOP' in printed


def with_budgets(corpus_path: str, num_steps: int, budgets: tuple) -> Config:
  edits = small_config(corpus_path)
  edits.select.arms = {'full': base.arm('all')}
  edits.train.seeds = (0,)
  edits.report.baseline = 'full'
  edits.train.budgets = budgets
  edits.train.training.update(num_steps=num_steps, warmup_steps=1, log_every=1)
  edits.train.training.update(schedule='wsd', decay_fraction=0.25)
  return config_lib.from_mapping(edits)


def test_a_smaller_and_a_larger_budget_share_steps(
  corpus_path, branched, tmp_path
):
  """They equal runs that have that budget from the start."""
  together, apart = tmp_path / 'together', tmp_path / 'apart'
  for workdir in (together, apart):
    workdir.mkdir()
    for name in ('token_store', 'vocabulary', 'keep_sets'):
      (workdir / name).symlink_to(f'{branched}/{name}')
  config = with_budgets(corpus_path, 8, (0.5, 1.0, 1.5))
  stages.run(config, str(together), 'train')
  shared = {
    arm: manifest_of(str(together), arm).get('shared_steps', 0)
    for arm in ('full', 'full_x0_5', 'full_x1_5')
  }
  # Half of 8 steps decays from step 3; 8 steps decay from step 6.
  assert shared == {'full': 0, 'full_x0_5': 3, 'full_x1_5': 6}
  assert manifest_of(str(together), 'full_x1_5')['step'] == 12
  stages.run(with_budgets(corpus_path, 4, ()), str(apart), 'train')
  assert outcome(str(together), 'full_x0_5') == outcome(str(apart), 'full')
