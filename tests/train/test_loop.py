import dataclasses
import itertools
import os
import pathlib
import shutil
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from infoprune_jax.config import experiment as config_lib, validation
from infoprune_jax.config.validation import UserError
from infoprune_jax.model import checkpoints, digests, mesh as mesh_lib
from infoprune_jax.runtime import manifests
from infoprune_jax.runtime.workdir import reference_dir
from infoprune_jax.train import bad_steps, hooks, metrics, runs, state


class Killed(Exception):
  """Stands for a kill right after a checkpoint."""


def copy_of_store(store_workdir: str, workdir: str) -> str:
  os.makedirs(workdir, exist_ok=True)
  for name in ('token_store', 'vocabulary'):
    os.symlink(f'{store_workdir}/{name}', f'{workdir}/{name}')
  return workdir


def manifest_of(workdir: str) -> dict:
  return manifests.read_manifest(reference_dir(workdir), 'reference')


def metrics_of(workdir: str) -> list[dict]:
  run = reference_dir(workdir)
  return metrics.read(run, manifest_of(workdir)['metrics'], 'reference')


@pytest.fixture(scope='module')
def uninterrupted(small, store_workdir, tmp_path_factory):
  """A workdir whose reference run was never stopped."""
  path = str(tmp_path_factory.mktemp('uninterrupted') / 'run')
  workdir = copy_of_store(store_workdir, path)
  runs.run_reference(small, workdir)
  return workdir


def test_loss_falls_and_metrics_are_whole(small, uninterrupted):
  lines = metrics_of(uninterrupted)
  training = [line for line in lines if 'loss' in line]
  heldout = [line for line in lines if 'heldout_nll' in line]
  assert [line['step'] for line in training] == [3, 6, 9, 12]
  assert [line['step'] for line in heldout] == [6, 12]
  assert training[-1]['loss'] < training[0]['loss']
  assert heldout[-1]['heldout_nll'] < heldout[0]['heldout_nll']
  slots = small.reference.training.batch_size * 64
  assert [line['tokens'] for line in heldout] == [6 * slots, 12 * slots]
  manifest = manifest_of(uninterrupted)
  assert manifest['step'] == 12
  assert manifest['tokens'] == 12 * slots
  folder = f'{reference_dir(uninterrupted)}/tensorboard'
  assert any('tfevents' in name for name in os.listdir(folder))


@pytest.mark.parametrize('stop_at', [5, 10])
def test_resumed_equals_uninterrupted(
  small, store_workdir, uninterrupted, tmp_path, monkeypatch, stop_at
):
  workdir = copy_of_store(store_workdir, str(tmp_path / 'run'))
  save = hooks.Checkpoint.save

  def and_die(self, number, state):
    save(self, number, state)
    if number == stop_at:
      raise Killed

  monkeypatch.setattr(hooks.Checkpoint, 'save', and_die)
  with pytest.raises(Killed):
    runs.run_reference(small, workdir)
  monkeypatch.undo()
  assert manifest_of(workdir) is None
  runs.run_reference(small, workdir)
  assert manifest_of(workdir) == manifest_of(uninterrupted)
  assert metrics_of(workdir) == metrics_of(uninterrupted)


def test_more_steps_go_on_from_where_a_run_ended(
  small, store_workdir, uninterrupted, tmp_path, caplog
):
  """Which is said: the learning rate of the first was that of a short run."""
  workdir = copy_of_store(store_workdir, str(tmp_path / 'run'))
  runs.run_reference(small, workdir)
  assert 'and continues' not in caplog.text
  assert manifest_of(workdir) == manifest_of(uninterrupted)
  training = dataclasses.replace(small.reference.training, num_steps=15)
  longer = dataclasses.replace(
    small, reference=dataclasses.replace(small.reference, training=training)
  )
  with pytest.raises(UserError, match='num_steps 12 -> 15. --extend'):
    runs.run_reference(longer, workdir)
  runs.run_reference(longer, workdir, extend=True)
  assert 'ended at step 12, where its learning rate had fallen' in caplog.text
  assert manifest_of(workdir)['step'] == 15
  with pytest.raises(
    UserError, match='num_steps 15 -> 12. A finished run cannot become'
  ):
    runs.run_reference(small, workdir)


def test_a_budget_in_tokens_is_the_same_run(
  small, store_workdir, uninterrupted, tmp_path, caplog
):
  """Whole steps only, which is said."""
  workdir = copy_of_store(store_workdir, str(tmp_path / 'run'))
  training = dataclasses.replace(
    small.reference.training, num_steps=0, num_tokens=12 * 8 * 64 + 100
  )
  other = dataclasses.replace(
    small, reference=dataclasses.replace(small.reference, training=training)
  )
  with caplog.at_level('INFO'):
    runs.run_reference(other, workdir)
  assert 'reference.training.num_tokens=6244: 12 whole steps of' in caplog.text
  assert manifest_of(workdir) == manifest_of(uninterrupted)


def test_another_model_in_the_same_workdir_is_refused(small, uninterrupted):
  model = dataclasses.replace(small.reference.model, mlp_dim=96)
  other = dataclasses.replace(
    small, reference=dataclasses.replace(small.reference, model=model)
  )
  with pytest.raises(UserError, match='reference.model: mlp_dim 64 -> 96'):
    runs.run_reference(other, uninterrupted)


@pytest.fixture
def poisoned(monkeypatch):
  """The eighth batch makes the loss NaN."""
  put = state.Program.put
  calls = []

  def put_poisoned(self, batch, requests):
    calls.append(1)
    if len(calls) == 8:
      weights = batch['decoder_loss_weights']
      batch = {**batch, 'decoder_loss_weights': np.full_like(weights, np.nan)}
    return put(self, batch, requests)

  monkeypatch.setattr(state.Program, 'put', put_poisoned)


@pytest.mark.parametrize('every, last', [(5, 5), (4, 4), (8, None)])
def test_loss_that_is_not_finite_stops_at_its_step(
  small, store_workdir, tmp_path, poisoned, every, last
):
  """Before that step is saved."""
  workdir = copy_of_store(store_workdir, str(tmp_path / 'run'))
  training = dataclasses.replace(
    small.reference.training, checkpoint_every=every
  )
  reference = dataclasses.replace(small.reference, training=training)
  config = dataclasses.replace(small, reference=reference)
  with pytest.raises(UserError, match='step 8 is bad: loss nan') as error:
    runs.run_reference(config, workdir)
  assert f'checkpoint is of step {last or "none"};' in str(error.value)
  saved = [last] if last else []
  assert checkpoints.steps(reference_dir(workdir)) == saved


def test_a_bad_step_can_be_skipped(
  small, store_workdir, tmp_path, monkeypatch, caplog, poisoned
):
  """Its examples are named, and the parameters stay as they were."""
  workdir = copy_of_store(store_workdir, str(tmp_path / 'run'))
  kept = []

  def save(self, number, state):
    kept.append(digests.params_hash(state['params']))
    # The schedule goes by steps, skipped ones too.
    leaves = jax.tree.leaves(state['opt_state'])
    assert {int(x) for x in leaves if x.dtype == np.int32} == {number}

  monkeypatch.setattr(hooks.Checkpoint, 'save', save)
  training = dataclasses.replace(
    small.reference.training, on_bad_step='skip', checkpoint_every=1
  )
  reference = dataclasses.replace(small.reference, training=training)
  with caplog.at_level('WARNING', logger='infoprune_jax'):
    runs.run_reference(dataclasses.replace(small, reference=reference), workdir)
  assert [a == b for a, b in itertools.pairwise(kept)] == [
    step == 8 for step in range(2, 13)
  ]
  assert 'step 8 is bad: loss nan' in caplog.text and 'doc-' in caplog.text
  assert {'step': 8, 'skipped': 1.0} in [
    {name: line[name] for name in ('step', 'skipped')}
    for line in metrics_of(workdir)
    if 'skipped' in line
  ]


def test_a_spike_is_over_the_running_mean():
  training = SimpleNamespace(max_loss_spike=2.0)

  def judged(loss, step, mean=3.0, norm=1.0):
    before = {'loss_mean': np.float32(mean), 'step': np.int32(step)}
    bad, after = bad_steps.check_loss(
      training, before, np.float32(loss), np.float32(norm)
    )
    return bool(bad), float(after)

  settled = bad_steps.SETTLED_AFTER
  assert judged(6.1, settled) == (True, 3.0)
  assert not judged(5.9, settled)[0]
  assert not judged(6.1, settled - 1)[0]  # The mean is of too few losses.
  assert judged(np.nan, 0) == (True, 3.0)
  assert judged(2.0, 0, norm=np.inf) == (True, 3.0)
  # The first losses weigh alike.
  assert judged(5.0, 1, mean=3.0) == (False, 4.0)
  assert judged(4.0, 10**6)[1] == pytest.approx(
    3.0 + (1 - bad_steps.MEAN_DECAY)
  )


def test_a_damaged_checkpoint_is_put_aside_and_the_one_before_used(
  small, store_workdir, uninterrupted, tmp_path, caplog
):
  workdir = copy_of_store(store_workdir, str(tmp_path / 'run'))
  runs.run_reference(small, workdir)
  run = reference_dir(workdir)
  os.remove(f'{run}/{manifests.MANIFEST}')
  shutil.rmtree(f'{run}/checkpoints/12')
  with open(f'{run}/checkpoints/10/rest/manifest.ocdbt', 'ab') as file:
    file.write(b'x')
  with caplog.at_level('INFO', logger='infoprune_jax'):
    # Two are kept: there is none before, and the run starts anew.
    runs.run_reference(small, workdir)
  assert 'checkpoint of step 10 is damaged. It is renamed' in caplog.text
  assert 'manifest.ocdbt is damaged' in caplog.text
  assert os.path.isdir(f'{run}/checkpoints/damaged-10')
  assert 'resumed' not in caplog.text
  assert manifest_of(workdir) == manifest_of(uninterrupted)
  assert metrics_of(workdir) == metrics_of(uninterrupted)


@pytest.mark.parametrize('first, steps', [(1, 2), (2, 1), (2, 99)])
def test_chosen_steps_are_traced(small, store_workdir, tmp_path, first, steps):
  """Also where the run ends before them."""
  workdir = copy_of_store(store_workdir, str(tmp_path / 'run'))
  training = dataclasses.replace(
    small.reference.training,
    num_steps=4,
    profile_from=first,
    profile_steps=steps,
  )
  reference = dataclasses.replace(small.reference, training=training)
  runs.run_reference(dataclasses.replace(small, reference=reference), workdir)
  profile = pathlib.Path(reference_dir(workdir)) / 'profile'
  assert list(profile.rglob('*.xplane.pb'))


def test_one_program_serves_every_seed(small, store):
  mesh = mesh_lib.make_mesh(small.mesh)
  args = (small.model, small.train.training, store.vocab_size, mesh)
  again = config_lib.from_mapping(validation.to_plain(small))
  assert state.compile_program(*args) is state.compile_program(
    again.model, again.train.training, store.vocab_size, mesh
  )
  program = state.compile_program(*args)
  first, second = program.init(0), program.init(1)
  hashes = {
    digests.params_hash(tree['params'])
    for tree in (first, second, program.init(0))
  }
  assert len(hashes) == 2
