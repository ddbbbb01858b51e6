import dataclasses
import json
import os

import numpy as np
import pytest

from infoprune_jax import artifacts, config as config_lib, files
from infoprune_jax.config import UserError
from infoprune_jax.model import checkpoints
from infoprune_jax.train import loop, metrics, runs, state


class Killed(Exception):
  """Stands for a kill right after a checkpoint."""


def copy_of_store(store_workdir: str, workdir: str) -> str:
  os.makedirs(workdir, exist_ok=True)
  for name in ('token_store', 'vocabulary'):
    os.symlink(f'{store_workdir}/{name}', f'{workdir}/{name}')
  return workdir


def manifest_of(workdir: str) -> dict:
  return files.read_json(f'{artifacts.reference_dir(workdir)}/manifest.json')


@pytest.fixture(scope='module')
def uninterrupted(small, store_workdir, tmp_path_factory):
  """A workdir whose reference run was never stopped."""
  path = str(tmp_path_factory.mktemp('uninterrupted') / 'run')
  workdir = copy_of_store(store_workdir, path)
  runs.run_reference(small, workdir)
  return workdir


def test_loss_falls_and_metrics_are_whole(small, uninterrupted):
  lines = metrics.read(artifacts.reference_dir(uninterrupted))
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
  folder = f'{artifacts.reference_dir(uninterrupted)}/tensorboard'
  assert any('tfevents' in name for name in os.listdir(folder))


@pytest.mark.parametrize('stop_at', [5, 10])
def test_resumed_equals_uninterrupted(
  small, store_workdir, uninterrupted, tmp_path, monkeypatch, stop_at
):
  workdir = copy_of_store(store_workdir, str(tmp_path / 'run'))
  checkpoint = loop._Loop._checkpoint

  def and_die(self, step, state):
    checkpoint(self, step, state)
    if step == stop_at:
      raise Killed

  monkeypatch.setattr(loop._Loop, '_checkpoint', and_die)
  with pytest.raises(Killed):
    runs.run_reference(small, workdir)
  monkeypatch.undo()
  assert manifest_of(workdir) is None
  runs.run_reference(small, workdir)
  assert manifest_of(workdir) == manifest_of(uninterrupted)
  found, expected = (
    metrics.read(artifacts.reference_dir(path))
    for path in (workdir, uninterrupted)
  )
  assert found == expected


def test_metrics_after_the_last_checkpoint_are_dropped(tmp_path):
  run = str(tmp_path)
  lines = [{'step': step, 'loss': 1.0} for step in (1, 2, 3)]
  text = ''.join(json.dumps(line) + '\n' for line in lines) + '{"step": 4, "lo'
  files.write_text(f'{run}/{metrics.FILE}', text)
  assert metrics.read(run) == lines
  writer = metrics.MetricsWriter(run, restored_step=2)
  writer.write(3, {'loss': 2.0})
  writer.close()
  assert metrics.read(run) == [*lines[:2], {'step': 3, 'loss': 2.0}]


def test_more_steps_go_on_from_where_a_run_ended(
  small, store_workdir, uninterrupted, tmp_path
):
  workdir = copy_of_store(store_workdir, str(tmp_path / 'run'))
  runs.run_reference(small, workdir)
  assert manifest_of(workdir) == manifest_of(uninterrupted)
  training = dataclasses.replace(small.reference.training, num_steps=15)
  longer = dataclasses.replace(
    small, reference=dataclasses.replace(small.reference, training=training)
  )
  runs.run_reference(longer, workdir)
  assert manifest_of(workdir)['step'] == 15
  with pytest.raises(UserError, match='has gone 15 steps'):
    runs.run_reference(small, workdir)


def test_another_model_in_the_same_workdir_is_refused(small, uninterrupted):
  model = dataclasses.replace(small.reference.model, mlp_dim=96)
  other = dataclasses.replace(
    small, reference=dataclasses.replace(small.reference, model=model)
  )
  with pytest.raises(UserError, match=r'options.model.mlp_dim is 64, not 96'):
    runs.run_reference(other, uninterrupted)


def test_loss_that_is_not_finite_stops_at_its_step(
  small, store_workdir, tmp_path, monkeypatch
):
  workdir = copy_of_store(store_workdir, str(tmp_path / 'run'))
  put = state.Program.put
  calls = []

  def poisoned(self, batch):
    calls.append(1)
    if len(calls) == 8:
      weights = batch['decoder_loss_weights']
      batch = {**batch, 'decoder_loss_weights': np.full_like(weights, np.nan)}
    return put(self, batch)

  monkeypatch.setattr(state.Program, 'put', poisoned)
  with pytest.raises(UserError, match='not finite at step 8') as error:
    runs.run_reference(small, workdir)
  assert 'checkpoint is of step 5' in str(error.value)
  saved = checkpoints.Checkpoints(artifacts.reference_dir(workdir), 2)
  assert saved.latest_step() == 5
  saved.close()


def test_one_program_serves_every_seed(small, store):
  mesh = state.partitioning.make_mesh(small.mesh)
  args = (small.model, small.train.training, store.vocab_size, mesh)
  again = config_lib.from_mapping(config_lib.to_plain(small))
  assert state.compile_program(*args) is state.compile_program(
    again.model, again.train.training, store.vocab_size, mesh
  )
  program = state.compile_program(*args)
  first, second = program.init(0), program.init(1)
  hashes = {
    checkpoints.params_hash(tree['params'])
    for tree in (first, second, program.init(0))
  }
  assert len(hashes) == 2
