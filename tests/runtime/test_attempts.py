"""Of several attempts at an artifact, the newest alone writes."""

import os
import pathlib
import shutil
import signal
import subprocess
import sys

import pytest

from infoprune_jax.config.validation import UserError
from infoprune_jax.runtime import artifacts, filesystems
from infoprune_jax.runtime.workdir import data_file

# Writes a shard, and stops itself: while it writes, or right before the rename.
WRITER = """
import os, signal, sys
from infoprune_jax.runtime import artifacts
from infoprune_jax.runtime.workdir import data_file
from infoprune_jax.config.validation import UserError

path, when = sys.argv[1:]
made = artifacts.Artifact(path, 'table', 'job', {}, {}).begin()
stop = lambda: os.kill(os.getpid(), signal.SIGSTOP)
check, written = artifacts.Artifact._check_newest, []

def write(file):
  file.write(b'old')
  written.append(1)
  if when == 'writing':
    stop()

def checked(*arguments):
  check(*arguments)
  if when == 'checked' and written:
    stop()

artifacts.Artifact._check_newest = checked
try:
  made.finish_shard(0, 1, {data_file(0, 1): write})
except UserError as error:
  print(error)
  sys.exit(2)
"""


def artifact(path) -> artifacts.Artifact:
  return artifacts.Artifact(str(path), 'table', 'job', {}, {})


def shard(text: str, number: int = 0, num_shards: int = 1):
  name = data_file(number, num_shards)
  return {name: lambda file: file.write(text.encode())}


def content(path: pathlib.Path) -> dict[str, bytes]:
  return {
    str(file.relative_to(path)): file.read_bytes()
    for file in path.rglob('*')
    if file.is_file()
  }


@pytest.mark.parametrize('deleted', [False, True])
@pytest.mark.parametrize('when', ['writing', 'checked'])
def test_a_stopped_process_that_goes_on_changes_nothing(
  tmp_path, when, deleted
):
  path = tmp_path / 'table'
  paths = {**os.environ, 'PYTHONPATH': os.pathsep.join(sys.path)}
  command = [sys.executable, '-c', WRITER, str(path), when]
  with subprocess.Popen(
    command, env=paths, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
  ) as old:
    os.waitpid(old.pid, os.WUNTRACED)  # Until it has stopped.
    try:
      assert any(name.endswith('.tmp') for name in content(path))
      if deleted:
        shutil.rmtree(path)
      made = artifact(path).begin()
      marker = made.finish_shard(0, 1, shard('new'))
      made.finish(marker['files'])
      expected = content(path)
      assert not any('tmp' in name or 'attempt' in name for name in expected)
      os.kill(old.pid, signal.SIGCONT)
      output = old.communicate(timeout=60)[0].decode()
    finally:
      old.kill()  # It would be waited for if it had stopped again.
  assert old.returncode == 2, output
  assert 'another job that began later' in output
  assert content(path) == expected


@pytest.mark.parametrize('home', ['', 'memory://'])
def test_an_older_attempt_may_not_write(tmp_path, home):
  path = f'{home}{tmp_path}/table'
  old = artifact(path).begin()
  old.finish_shard(0, 2, shard('old', 0, 2))
  new = artifact(path).begin()
  for write in (
    lambda: old.finish_shard(1, 2, shard('old', 1, 2)),
    lambda: old.write_file(f'{path}/other', lambda file: file.write(b'x')),
    lambda: old.finish({}),
  ):
    with pytest.raises(UserError, match='another job that began later'):
      write()
  assert new.finished() is None and new.finished_shard(1, 2) is None
  new.finish_shard(1, 2, shard('new', 1, 2))
  assert new.finish({})['job'] == 'job'
  with pytest.raises(UserError, match='another job that began later'):
    new.finish_shard(1, 2, shard('late', 1, 2))
  names = filesystems.names_in(path)
  assert not any('tmp' in name or 'attempt' in name for name in names)


def test_what_a_killed_attempt_left_is_swept(tmp_path):
  old = artifact(tmp_path).begin()
  temporary = old.temporary(str(tmp_path / 'a/part'))
  pathlib.Path(temporary).mkdir(parents=True)
  pathlib.Path(f'{temporary}/records').touch()
  pathlib.Path(old.temporary(str(tmp_path / 'b'))).touch()
  (tmp_path / 'notes.tmp').touch()  # Of somebody else.
  artifact(tmp_path).begin()
  assert {path.name for path in tmp_path.rglob('*')} == {
    *('a', 'begun.json', 'notes.tmp', artifacts.ATTEMPT)
  }


def test_who_is_refused_takes_nothing_over(tmp_path):
  made = artifact(tmp_path).begin()
  other = artifacts.Artifact(str(tmp_path), 'table', 'job', {'x': 1}, {})
  with pytest.raises(UserError, match='does not belong to this config'):
    other.begin()
  made.finish_shard(0, 1, shard('x'))
