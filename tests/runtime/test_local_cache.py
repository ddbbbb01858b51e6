"""Local copies of objects: bounded in size, and deleted."""

import multiprocessing
import os
import pathlib
import signal
import tempfile
import threading

import fsspec
import pytest

from infoprune_jax.config.validation import UserError
from infoprune_jax.runtime import local_cache
from infoprune_jax.runtime.local_cache import LocalCache


@pytest.fixture
def store():
  """Ten objects of 100 bytes each."""
  filesystem = fsspec.filesystem('memory')
  for number in range(10):
    filesystem.pipe(f'/cached/{number}', b'%d' % number * 100)
  yield filesystem
  filesystem.rm('/cached', recursive=True)


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch) -> pathlib.Path:
  """The folder for temporary files."""
  monkeypatch.setattr(tempfile, 'tempdir', str(tmp_path))
  return tmp_path


def copies(cache: LocalCache) -> set[bytes]:
  return {
    path.read_bytes()[:1]
    for path in pathlib.Path(cache.folder).iterdir()
    if path.name != '.lock'
  }


def test_what_was_not_used_for_longest_goes(store):
  cache = LocalCache(350)
  for number in (0, 1, 2, 0, 3):
    path = cache.get(store, f'/cached/{number}')
    assert pathlib.Path(path).read_bytes() == b'%d' % number * 100
  assert copies(cache) == {b'0', b'2', b'3'}
  store.pipe('/cached/0', b'new')
  old = cache.get(store, '/cached/0')
  assert pathlib.Path(old).read_bytes() == b'0' * 100
  assert cache.get(store, '/cached/0', anew=True) == old
  assert pathlib.Path(old).read_bytes() == b'new'
  cache.delete()
  assert not os.path.exists(cache.folder)


def test_a_copy_larger_than_the_limit_is_alone(store):
  cache = LocalCache(50)
  for number in range(3):
    assert os.path.exists(cache.get(store, f'/cached/{number}'))
  assert copies(cache) == {b'2'}
  cache.delete()


def test_the_copy_that_another_thread_is_about_to_open_stays(store):
  cache = LocalCache(100)
  got, go_on = threading.Event(), threading.Event()
  read = []

  def other():
    path = cache.get(store, '/cached/0')
    got.set()
    go_on.wait()
    read.append(pathlib.Path(path).read_bytes())

  thread = threading.Thread(target=other)
  thread.start()
  got.wait()
  for number in range(1, 5):
    cache.get(store, f'/cached/{number}')
  assert copies(cache) == {b'0', b'4'}
  go_on.set()
  thread.join()
  assert read == [b'0' * 100]
  cache.get(store, '/cached/5')
  assert copies(cache) == {b'5'}
  cache.delete()


def test_threads_that_ask_for_the_same_get_whole_copies(store):
  cache = LocalCache(250)

  def ask():
    for number in range(200):
      data = pathlib.Path(cache.get(store, f'/cached/{number % 10}'))
      assert len(data.read_bytes()) == 100

  errors = []
  threads = [threading.Thread(target=_noting(ask, errors)) for _ in range(4)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  assert not errors
  cache.delete()


def _noting(function, errors):
  def noting():
    try:
      function()
    except Exception as error:
      errors.append(error)

  return noting


def test_a_failed_download_leaves_nothing(store):
  cache = LocalCache(1000)
  with pytest.raises(FileNotFoundError):
    cache.get(store, '/cached/none')
  assert copies(cache) == set()
  cache.delete()


def _hold(temporary: str, pipe) -> None:
  tempfile.tempdir = temporary
  cache = LocalCache(1)
  pipe.send(cache.folder)
  signal.pause()


def test_the_folder_of_a_killed_process_is_deleted(folder):
  here, there = multiprocessing.Pipe()
  process = multiprocessing.get_context('fork').Process(
    target=_hold, args=(str(folder), there)
  )
  process.start()
  left = here.recv()
  LocalCache(1).delete()
  assert os.path.exists(left)  # Its process lives.
  process.kill()
  process.join()
  LocalCache(1).delete()
  assert not os.path.exists(left)


def test_a_process_has_a_cache_of_its_own(store, monkeypatch):
  monkeypatch.setattr(local_cache, '_caches', {})
  monkeypatch.setattr(local_cache.atexit, 'register', lambda function: None)
  monkeypatch.setenv(local_cache.LIMIT, '3e-7')
  for number in range(5):
    local_cache.copy_of(store, f'/cached/{number}')
  [cache] = local_cache._caches.values()
  assert copies(cache) == {b'2', b'3', b'4'}
  cache.delete()


@pytest.mark.parametrize('value', ['', '0', '-1', 'many', 'inf', 'nan'])
def test_a_limit_that_is_no_size(monkeypatch, value):
  monkeypatch.setenv(local_cache.LIMIT, value)
  with pytest.raises(UserError, match=f'{local_cache.LIMIT} is {value!r}, exp'):
    local_cache.limit()


def test_the_limit_is_half_of_the_disk_by_default(monkeypatch, folder):
  monkeypatch.delenv(local_cache.LIMIT, raising=False)
  free = os.statvfs(folder)
  half = free.f_bavail * free.f_frsize / 2
  assert local_cache.limit() == pytest.approx(half, rel=0.2)
