"""Whether artifacts are those of a config: chains of small ones."""

import dataclasses
import pathlib
from typing import Any

import pytest

from infoprune_jax.config.validation import UserError
from infoprune_jax.runtime import artifacts, files, filesystems, lineage
from infoprune_jax.runtime.artifacts import Artifact
from infoprune_jax.runtime.lineage import Planned, StageState

SECTIONS = {'': 'made', 'folds': 'other.folds'}


def planned(folder: pathlib.Path, seed: int = 0) -> list[Planned]:
  """A table, a set of it, and a run of the set; `seed` decides the table."""

  def one(name: str, options: Any, **made_from: str) -> Planned:
    artifact = Artifact(str(folder / name), name, name, options, {}, SECTIONS)
    paths = {key: str(folder / path) for key, path in made_from.items()}
    return Planned(artifact, paths)

  return [
    one('table', {'seed': seed, 'folds': 1}),
    one('set', {}, table='table'),
    one('run', {}, kept='set'),
  ]


def write(chain: list[Planned], text: str = '') -> None:
  """Writes the artifacts that are missing, each from those before it."""
  prints: dict[str, str] = {}
  for one in chain:
    inputs = {name: prints[path] for name, path in one.made_from.items()}
    artifact = dataclasses.replace(one.artifact, inputs=inputs)
    manifest = artifact.finished()
    if manifest is None:
      artifact = artifact.begin()
      marker = artifact.finish_shard(
        0, 1, {'data/a.txt': lambda file: file.write(text.encode())}
      )
      manifest = artifact.finish(marker['files'])
    prints[one.path] = manifest['fingerprint']


def causes(chain: list[Planned]) -> list[tuple[str, ...]]:
  return [state.causes for state in lineage.states(chain).values()]


def test_a_change_is_inherited_with_its_cause(tmp_path):
  write(planned(tmp_path))
  assert causes(planned(tmp_path)) == [(), (), ()]
  cause = ('made: seed 0 -> 1',)
  assert causes(planned(tmp_path, seed=1)) == [cause] * 3


def test_what_is_made_again_alike_makes_nothing_stale(tmp_path):
  chain = planned(tmp_path)
  write(chain)
  chain[0].artifact.delete()
  assert causes(chain) == [(), (), ()]
  write(chain)
  assert causes(chain) == [(), (), ()]
  chain[0].artifact.delete()
  write(chain[:1], 'other')
  again = ('the table was made again',)
  assert causes(chain) == [(), again, again]


def test_what_has_begun_is_compared_too(tmp_path):
  planned(tmp_path)[0].artifact.begin()
  [state, _, _] = lineage.states(planned(tmp_path, seed=1)).values()
  assert state.causes == ('made: seed 0 -> 1',) and not state.is_finished


def test_an_input_that_is_new_or_gone_is_a_change(tmp_path):
  chain = planned(tmp_path)
  write(chain)
  more = {**chain[2].made_from, 'table': chain[0].path}
  more_planned = dataclasses.replace(chain[2], made_from=more)
  assert causes([*chain[:2], more_planned])[2] == (
    'it was made without the table',
  )
  fewer = Planned(chain[2].artifact, inputs_are_known=True)
  assert causes([*chain[:2], fewer])[2] == ('it was made from kept, too',)


def test_what_follows_another_is_stale_with_it(tmp_path):
  chain = planned(tmp_path, seed=1)
  follows = dataclasses.replace(
    chain[1], made_from={}, stale_with=chain[0].path
  )
  write(planned(tmp_path))
  assert causes([chain[0], follows])[1] == ('made: seed 0 -> 1',)


def test_only_what_is_read_is_compared(tmp_path):
  chain = planned(tmp_path)
  assert lineage.upstream(chain, chain[1:2]) == chain[:2]
  assert lineage.upstream(chain, chain[:1]) == chain[:1]


def settle(chain: list[Planned], made: list[Planned], stale: str) -> None:
  found = lineage.states(chain)
  workdir = str(pathlib.Path(chain[0].path).parent)
  lineage.settle(chain, found, made, stale, workdir)


def test_what_is_stale_is_refused_or_deleted(tmp_path):
  write(planned(tmp_path))
  settle(planned(tmp_path), [], 'refuse')
  chain = planned(tmp_path, seed=1)
  with pytest.raises(UserError) as caught:
    settle(chain, chain, 'refuse')
  assert 'made: seed 0 -> 1 (table, set, run)' in str(caught.value)
  with pytest.raises(UserError, match='--job=table with --stale=redo first'):
    settle(chain, chain[1:], 'redo')
  assert causes(planned(tmp_path)) == [(), (), ()]
  settle(chain, chain, 'redo')
  assert list(tmp_path.iterdir()) == []


def test_the_state_of_a_stage(tmp_path):
  chain = planned(tmp_path)

  def state(own, seed=0) -> StageState:
    changed = planned(tmp_path, seed)
    paths = [one.path for one in own]
    own = [one for one in changed if one.path in paths]
    return lineage.stage_state(own, lineage.states(changed))

  assert state(chain) == StageState('to do')
  chain[0].artifact.begin()
  chain[0].artifact.finish_shard(0, 3, {})
  assert state(chain) == StageState('resumes', 'after 1 shards')
  chain[0].artifact.delete()
  write(chain[:2])
  assert state(chain) == StageState('resumes', 'after 2 of 3')
  write(chain)
  assert state(chain) == StageState('finished')
  assert str(state(chain[2:], seed=1)) == 'stale because made: seed 0 -> 1'
  chain[2].artifact.delete()
  assert str(state(chain[2:], seed=1)) == 'refused because made: seed 0 -> 1'
  manifest = tmp_path / 'table/manifest.json'
  manifest.write_bytes(manifest.read_bytes()[:-9])
  assert state(chain[2:]).kind == 'refused'


class Killed(Exception):
  pass


def test_a_killed_deletion_leaves_no_shard_without_its_options(
  tmp_path, monkeypatch
):
  """A shard of old options must not be taken for one of new options."""
  calls = [0, 0]  # how many deletions, and after how many to stop

  def stopping(function):
    def call(path):
      if calls[0] == calls[1]:
        raise Killed
      calls[0] += 1
      function(path)

    return call

  was_killed = True
  while was_killed:
    folder = tmp_path / str(calls[1])
    write(planned(folder)[:1])
    calls[0] = 0
    with monkeypatch.context() as patch:
      patch.setattr(files, 'remove', stopping(files.remove))
      patch.setattr(
        filesystems, 'delete_folder', stopping(filesystems.delete_folder)
      )
      try:
        planned(folder)[0].artifact.delete()
        was_killed = False
      except Killed:
        pass
    left = {path.name for path in folder.rglob('*')}
    if calls[0]:
      assert artifacts.MANIFEST not in left
    if any(name.endswith(artifacts.DONE) for name in left):
      assert artifacts.BEGUN in left
    planned(folder, seed=1)[0].artifact.delete()  # It can be repeated.
    assert not (folder / 'table').exists()
    calls[1] += 1
  assert calls[1] > 4
