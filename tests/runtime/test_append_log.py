"""Files that grow: at once on disks, by whole uploads in object stores."""

import pathlib

import pytest

from infoprune_jax.runtime import files
from infoprune_jax.runtime.append_log import AppendLog


class Clock:
  """Each upload takes as long as is said."""

  def __init__(self, upload: float = 0.0):
    self.now, self.upload, self.uploads = 0.0, upload, 0

  def __call__(self):
    return self.now

  def write_file(self, path, write):
    self.now += self.upload
    self.uploads += 1
    return files.write_file(path, write)


@pytest.mark.parametrize('home', ['', 'file://', 'memory://'])
def test_what_is_synced_is_there(tmp_path, home):
  path = f'{home}{tmp_path}/folder/log'
  log = AppendLog(path, b'kept\n')
  assert files.read_bytes(path) == b'kept\n'
  log.append(b'one\n')
  log.append(b'two\n')
  log.sync()
  assert files.read_bytes(path) == b'kept\none\ntwo\n'
  log.append(b'three\n')
  log.close()
  assert files.read_bytes(path) == b'kept\none\ntwo\nthree\n'


def test_on_a_disk_a_kill_loses_nothing(tmp_path):
  log = AppendLog(str(tmp_path / 'log'), b'')
  log.append(b'one\n')
  assert (tmp_path / 'log').read_bytes() == b'one\n'
  log.close()


def test_an_older_log_of_a_disk_does_not_touch_a_newer(tmp_path):
  path = str(tmp_path / 'log')
  old, new = AppendLog(path, b'old\n'), AppendLog(path, b'new\n')
  old.append(b'late\n')
  old.close()
  new.close()
  assert pathlib.Path(path).read_bytes() == b'new\n'


@pytest.mark.parametrize('upload, uploads', [(0.0, 10), (3.0, 2)])
def test_uploads_take_a_hundredth_of_the_time_at_most(
  tmp_path, upload, uploads
):
  clock = Clock(upload)
  path = f'memory://{tmp_path}/log'
  log = AppendLog(path, b'', clock.write_file, clock)
  clock.uploads, begin = 0, clock.now
  while clock.now < begin + 615:
    clock.now += 1.0
    log.append(b'x')
  assert clock.uploads == uploads
  log.close()
  log.close()  # Nothing is left to upload.
  assert clock.uploads <= uploads + 1
