import dataclasses
import itertools
import pathlib
import shutil
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from infoprune_jax.config.experiment import MeshConfig
from infoprune_jax.config.validation import UserError
from infoprune_jax.model import checkpoints, digests, mesh as mesh_lib, network
from infoprune_jax.runtime import artifacts, files
from infoprune_jax.score import scorer


def mesh_of(data, fsdp, tensor):
  return mesh_lib.make_mesh(MeshConfig(data=data, fsdp=fsdp, tensor=tensor))


@pytest.fixture(scope='module')
def saved(small, tmp_path_factory):
  """Parameters sharded one way, and the folder they were saved to."""
  run = str(tmp_path_factory.mktemp('run'))
  mesh = mesh_of(4, 2, 1)
  shapes = scorer.abstract_params(small.model, 64, mesh)
  params = jax.jit(
    lambda: network.init_params(small.model, 64, jax.random.key(3)),
    out_shardings=jax.tree.map(lambda x: x.sharding, shapes),
  )()
  writer = checkpoints.Checkpoints(run, max_to_keep=2)
  for step in (5, 10, 15):
    writer.save(step, {'params': params, 'rest': {'step': jnp.int32(step)}})
  writer.close()
  made = artifacts.Artifact(run, 'run', 'train', {}, {})
  made.finish({}, step=15, params_hash=digests.params_hash(params))
  return run, params


def test_params_alone_onto_another_mesh(small, saved):
  run, params = saved
  shapes = scorer.abstract_params(small.model, 64, mesh_of(2, 2, 2))
  loaded = checkpoints.load_params(run, 15, shapes)
  assert digests.params_hash(loaded) == digests.params_hash(params)
  assert loaded['embedding'].sharding == shapes['embedding'].sharding
  assert loaded['embedding'].sharding != params['embedding'].sharding


@pytest.mark.parametrize(
  'edits, message',
  [
    (
      {'embed_dim': 64},
      r'embedding of shape \(64, 32\), .* config has embedding of shape \(64, 64\)',
    ),
    ({'tie_embeddings': False}, r'has no head, .* head of shape \(32, 64\)'),
  ],
)
def test_another_model_is_refused(small, saved, edits, message):
  run, _ = saved
  model = dataclasses.replace(small.model, **edits)
  shapes = scorer.abstract_params(model, 64, mesh_of(8, 1, 1))
  with pytest.raises(UserError, match=message):
    checkpoints.load_params(run, 15, shapes)


def test_keeps_the_newest(saved):
  run, _ = saved
  assert checkpoints.steps(run) == [10, 15]
  with pytest.raises(UserError, match=r'no checkpoint of step 5.*\[10, 15\]'):
    checkpoints.load_params(run, 5, {})


class Killed(BaseException):
  """The end of a process, for a test in one."""


@pytest.mark.parametrize('moment', ['marked', 'half', 'deleted'])
def test_killed_while_an_old_one_is_deleted(tmp_path, monkeypatch, moment):
  """It is a checkpoint no more, and the next start deletes the rest."""
  run = str(tmp_path)
  writer = checkpoints.Checkpoints(run, max_to_keep=1)
  writer.save(5, {'rest': {'step': jnp.int32(5)}})
  writer.save(10, {'rest': {'step': jnp.int32(10)}})
  delete = writer._manager.delete

  def killed(step):
    if moment == 'half':
      shutil.rmtree(tmp_path / f'checkpoints/{step}/rest')
    elif moment == 'deleted':
      delete(step)
    raise Killed

  monkeypatch.setattr(writer._manager, 'delete', killed)
  with pytest.raises(Killed):
    writer.wait()
  writer._manager.close()
  assert checkpoints.leftovers(run) == ['5']
  assert checkpoints.steps(run) == [10]
  assert checkpoints.newest_sound(run, ['rest'], 'train')[0] == 10
  checkpoints.delete_leftovers(run)
  assert [path.name for path in (tmp_path / 'checkpoints').iterdir()] == ['10']


def test_too_many_go_though_nothing_more_is_saved(tmp_path):
  """Killed between the last checkpoint and the deletion of an older one."""
  run = str(tmp_path)
  for keep in (9, 2):
    writer = checkpoints.Checkpoints(run, max_to_keep=keep, keep_every=10)
    for step in (5, 10, 15, 20, 25) if keep == 9 else ():
      writer.save(step, {'rest': {'step': jnp.int32(step)}})
    writer.close()
    expected = [5, 10, 15, 20, 25] if keep == 9 else [10, 20, 25]
    assert checkpoints.steps(run) == expected


@pytest.mark.parametrize('hours', [2, -2, 24 * 365 * 20])
def test_a_clock_that_jumps_while_saving_does_no_harm(
  tmp_path, monkeypatch, hours
):
  """At any of the moments at which Orbax reads it."""
  clock = time.time
  for moment in itertools.count(1, 8):
    calls = itertools.count()
    monkeypatch.setattr(
      time,
      'time',
      lambda c=calls, m=moment: clock() + 3600 * hours * (next(c) > m),
    )
    run = str(tmp_path / str(moment))
    writer = checkpoints.Checkpoints(run, max_to_keep=1)
    for step in (5, 10):
      writer.save(step, {'rest': {'step': jnp.int32(step)}})
    writer.close()
    assert checkpoints.newest_sound(run, ['rest'], 'train')[0] == 10
    if next(calls) <= moment:  # It was not read so often: the clock was right.
      break
  assert moment > 100


def test_what_orbax_cannot_wait_for_is_one_message(tmp_path, monkeypatch):
  writer = checkpoints.Checkpoints(str(tmp_path), max_to_keep=2)

  def late():
    raise TimeoutError('Timed out after 7200 seconds.')

  monkeypatch.setattr(writer._manager, 'wait_until_finished', late)
  with pytest.raises(UserError, match='7200 seconds.*machine jumped'):
    writer.wait()


@pytest.mark.parametrize('folder, asked', [('gs://b/run', 2), ('/run', 1)])
def test_an_old_listing_is_not_the_last_word(monkeypatch, folder, asked):
  answers = [False, True]
  parent = checkpoints.PosixGPath
  monkeypatch.setattr(parent, 'is_dir', lambda self: answers.pop(0))
  assert checkpoints._Folder(folder).is_dir() == (asked == 2)
  assert len(answers) == 2 - asked


def test_hash_sees_values_names_and_dtypes():
  tree = {'a': np.zeros(3, np.float32), 'b': np.ones(3, np.float32)}
  hashes = {
    digests.params_hash(t)
    for t in (
      tree,
      {**tree, 'b': tree['b'] + 1e-7},
      {'a': tree['b'], 'b': tree['a']},
      {'a': tree['a'], 'c': tree['b']},
      {**tree, 'a': tree['a'].astype(np.int32)},
      {**tree, 'a': tree['a'].reshape(1, 3)},
    )
  }
  assert len(hashes) == 6


def test_what_was_saved_comes_back_with_its_facts(saved):
  run, _ = saved
  writer = checkpoints.Checkpoints(run, max_to_keep=3)
  writer.save(20, {'rest': {'step': jnp.int32(20)}}, {'lines': 7})
  writer.close()
  reader = checkpoints.Checkpoints(run, max_to_keep=3)
  shape = {'step': jax.ShapeDtypeStruct((), jnp.int32)}
  step, facts = checkpoints.newest_sound(run, ['rest'], 'train')
  items = reader.restore(step, {'rest': shape})
  reader.close()
  assert items['rest']['step'] == 20
  assert facts == {'lines': 7}


def test_a_checkpoint_is_whole_with_its_checksums(saved):
  """They are there before the checkpoint has its name, of every file."""
  folder = pathlib.Path(saved[0]) / 'checkpoints' / '15'
  record = files.read_record(str(folder / checkpoints.RECORD), '')
  names = {
    str(path.relative_to(folder))
    for path in folder.rglob('*')
    if path.is_file()
  }
  # Orbax adds these two while it gives the name; they hold no value of ours.
  added = {checkpoints._TIMED, 'commit_success.txt'}
  assert names - added == {*record['files'], checkpoints.RECORD}


def test_other_parameters_than_the_manifest_says_are_refused(
  small, saved, tmp_path
):
  run = shutil.copytree(saved[0], tmp_path / 'run')
  made = artifacts.Artifact(str(run), 'run', 'train', {}, {})
  made.finish({}, step=15, params_hash='0' * 16)
  shapes = scorer.abstract_params(small.model, 64, mesh_of(2, 2, 2))
  with pytest.raises(UserError, match=r'manifest of .* says 0{16}'):
    checkpoints.load_params(str(run), 15, shapes)
