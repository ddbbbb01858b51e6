"""Artifacts written shard by shard: what a later job writes, logs and counts."""

import dataclasses
import functools
import logging
import os

import pytest

from infoprune_jax.config.validation import UserError
from infoprune_jax.runtime import resumable
from infoprune_jax.runtime.artifacts import Artifact
from infoprune_jax.runtime.workdir import data_file


@dataclasses.dataclass(frozen=True)
class Task:
  artifact: Artifact
  shard: int
  num_shards: int
  bad: bool = False


def write(task: Task) -> dict:
  if task.bad:
    raise UserError(f'shard {task.shard} is bad')
  data = bytes(task.shard)
  return task.artifact.finish_shard(
    task.shard,
    task.num_shards,
    {
      data_file(task.shard, task.num_shards, '.bin'): (
        lambda file: file.write(data)
      )
    },
    num_bytes=task.shard,
    pid=os.getpid(),
  )


@pytest.fixture
def artifact(tmp_path) -> Artifact:
  made = Artifact(str(tmp_path / 'table'), 'table', 'score', {}, {})
  return made.begin()


def work(artifact: Artifact, num_shards: int = 4, bad: tuple[int, ...] = ()):
  tasks = [
    Task(artifact, shard, num_shards, shard in bad)
    for shard in range(num_shards)
  ]
  return resumable.ShardWork('stage', write, tasks, 'B', range(num_shards))


@pytest.fixture
def log(caplog, monkeypatch):
  """What is logged, with a line of progress for each shard."""
  progress = functools.partial(resumable.Progress, every=0)
  monkeypatch.setattr(resumable, 'Progress', progress)
  caplog.set_level(logging.INFO, 'infoprune_jax')
  return caplog


@pytest.mark.parametrize('num_workers', [1, 2])
def test_markers_come_in_the_order_of_shards(artifact, num_workers):
  markers = resumable.write_missing_shards(
    artifact, work(artifact), num_workers
  )
  assert [marker['num_bytes'] for marker in markers] == [0, 1, 2, 3]
  assert {m['pid'] == os.getpid() for m in markers} == {num_workers == 1}


def test_only_missing_shards_are_written(artifact):
  """Tasks of shards that are done would raise here."""
  write(Task(artifact, 1, 4))
  write(Task(artifact, 3, 4))
  markers = resumable.write_missing_shards(
    artifact, work(artifact, bad=(1, 3)), 1
  )
  assert [marker['num_bytes'] for marker in markers] == [0, 1, 2, 3]


def test_what_is_written_before_an_error_is_kept(artifact):
  with pytest.raises(UserError, match='shard 2 is bad'):
    resumable.write_missing_shards(artifact, work(artifact, bad=(2,)), 1)
  assert [*resumable.finished_shards(artifact, 4, 'stage')] == [0, 1]


def test_a_damaged_shard_is_refused(artifact):
  write(Task(artifact, 1, 4))
  [name] = os.listdir(f'{artifact.path}/data')
  with open(os.path.join(artifact.path, 'data', name), 'wb') as file:
    file.write(b'xx')
  with pytest.raises(UserError, match=name):
    resumable.write_missing_shards(artifact, work(artifact), 1)


def test_progress_counts_units_and_shards(artifact, log):
  write(Task(artifact, 2, 4))
  resumable.write_missing_shards(artifact, work(artifact), 1)
  done_before, *progress, last = log.messages
  assert done_before == 'stage: 1 of 4 shards were finished before'
  for line, start, end in zip(
    progress,
    (
      'stage: 33.3 % of 6 B, ',
      'stage: 50.0 % of 6 B, ',
      'stage: 100.0 % of 6 B, ',
    ),
    (', 2 of 4 shards', ', 3 of 4 shards', ', 4 of 4 shards'),
    strict=True,
  ):
    assert line.startswith(start)
    assert line.endswith(f' left{end}')
  assert last.startswith('stage: done, 6 B in ')
  assert last.endswith(f', 4 shards in {artifact.path}')


def test_a_fresh_artifact_has_no_line_of_shards_done_before(artifact, log):
  assert not resumable.finished_shards(artifact, 4, 'stage')
  assert not log.messages


def test_the_manifest_has_files_sums_and_facts(artifact):
  markers = resumable.write_missing_shards(artifact, work(artifact), 1)
  extra = artifact.write_file(
    os.path.join(artifact.path, 'more'), lambda file: file.write(b'more')
  )
  manifest = resumable.finish_from_markers(
    artifact,
    markers,
    sums=['num_bytes'],
    more_files={'more': extra},
    color='red',
  )
  names = [data_file(shard, 4, '.bin') for shard in range(4)]
  assert [*manifest['files']] == [*names, 'more']
  assert (manifest['num_shards'], manifest['num_bytes']) == (4, 6)
  assert manifest['color'] == 'red'
  assert artifact.finished() == manifest
