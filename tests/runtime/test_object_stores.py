"""Objects of a store whose answers are short, late or lost."""

import dataclasses
import json
import os
import pathlib
import posixpath

import fsspec
import numpy as np
import object_store
import pytest
from fault_proxy import FAULTS, FaultProxy, Plan

from infoprune_jax.config.validation import UserError
from infoprune_jax.runtime import files, filesystems, manifests
from infoprune_jax.runtime.artifacts import Artifact

emulator = pytest.fixture(scope='module')(object_store.serving)
ROOT = f'gs://{object_store.BUCKET}'
DATA = np.random.default_rng(0).bytes(100_000)


@dataclasses.dataclass(frozen=True)
class Scripted(Plan):
  """Disturbs the requests that it is told of, once each."""

  # Kinds of requests and what they meet, in order.
  left: list[tuple[str, str]] = dataclasses.field(default_factory=list)

  def fault(self, kind, name, nth):
    del name, nth
    if self.left and self.left[0][0] == kind:
      return self.left.pop(0)[1]
    return ''


@pytest.fixture(scope='module')
def proxy(emulator):
  with pytest.MonkeyPatch.context() as patch:
    made = FaultProxy(emulator.url)
    for name, value in emulator.environment.items():
      patch.setenv(name, value.replace(emulator.url, made.url))
    fsspec.get_filesystem_class('gs').clear_instance_cache()
    yield made
    made.stop()
    fsspec.get_filesystem_class('gs').clear_instance_cache()


@pytest.fixture
def disturb(proxy):
  """Sets the faults that come next; checks that they came."""

  def disturb(*faults):
    proxy.plan = Scripted(0, 0.0, left=[*faults])

  yield disturb
  left = proxy.plan.left if proxy.plan else []
  proxy.plan = None
  assert not left


@pytest.fixture
def path(request, proxy, emulator) -> str:
  name = f'{request.node.name}/x'
  emulator.put(name, DATA)
  return f'{ROOT}/{name}'


def content(emulator, path: str) -> bytes:
  return emulator.folder(path.removeprefix(f'{ROOT}/')).read_bytes()


def read_in_blocks(path: str) -> bytes:
  with filesystems.open_file(path) as file:
    return b''.join(iter(lambda: file.read(30_000), b''))


def read_at_once(path: str) -> bytes:
  with filesystems.open_file(path) as file:
    return file.read()


def read_copy(path: str) -> bytes:
  return pathlib.Path(filesystems.local_copy(path)).read_bytes()


@pytest.mark.parametrize('fault', ['short', 'cut', '503', 'reset'])
@pytest.mark.parametrize(
  'read', [files.read_bytes, read_at_once, read_in_blocks, read_copy]
)
def test_a_read_gives_the_whole_object(path, disturb, read, fault):
  disturb(('read', fault))
  assert read(path) == DATA


@pytest.mark.parametrize('read', [files.read_bytes, read_copy])
def test_a_store_that_sends_too_little_each_time(path, disturb, read):
  disturb(*[('read', 'short')] * 4)
  with pytest.raises(OSError, match='x: the store sent fewer or other bytes'):
    read(path)


@pytest.mark.parametrize('read', [files.read_bytes, read_at_once, read_copy])
def test_no_object(path, read):
  for missing in (f'{path}.not', posixpath.dirname(path)):
    with pytest.raises(FileNotFoundError):
      read(missing)


def test_a_copy_of_a_file_that_was_made_again_is_not_damage(path):
  folder, name = posixpath.split(path)
  for text in ('one', 'two'):
    facts = files.write_text(path, text)
    copy = manifests.verify(folder, name, facts, '')
    assert pathlib.Path(copy).read_text() == text


@pytest.mark.parametrize('fault', ['lost', '503', 'reset'])
@pytest.mark.parametrize('data', [b'', b'x', DATA], ids=['0', '1', 'all'])
def test_a_write_whose_answer_is_lost(path, emulator, disturb, data, fault):
  # The second request carries the content.
  disturb(('write', fault), ('write', fault))
  facts = files.write_file(path, lambda file: file.write(data))
  assert facts['bytes'] == len(data)
  assert content(emulator, path) == data


def test_what_is_written_meanwhile_is_seen_before_the_next_try(path, emulator):
  """Another writer between the check and the upload, twice."""
  seen = []

  def check():
    seen.append(content(emulator, path))
    if len(seen) < 3:
      emulator.put(path.removeprefix(f'{ROOT}/'), b'another %d' % len(seen))

  files.write_file(path, lambda file: file.write(b'ours'), check=check)
  assert seen == [DATA, b'another 1', b'another 2']
  assert content(emulator, path) == b'ours'


def test_an_older_attempt_does_not_replace_what_a_newer_one_wrote(
  path, emulator
):
  folder = posixpath.dirname(path)
  older = Artifact(folder, 'table', 'score', {}, {}).take_over()

  def write(file):
    file.write(b'older')

  check = older._check_newest

  def slow():
    """Checks, and then stands still while a newer attempt writes."""
    check()
    newer = Artifact(folder, 'table', 'score', {}, {}).take_over()
    newer.write_file(path, lambda file: file.write(b'newer'))

  object.__setattr__(older, '_check_newest', slow)
  with pytest.raises(UserError, match='another job that began later'):
    files.write_file(path, write, check=lambda: older._check_newest())
  assert content(emulator, path) == b'newer'


def test_no_marker_of_other_options_counts(path, emulator):
  """One that a stale listing hid from the deletion, or that came late."""
  folder = posixpath.dirname(path)
  old = Artifact(folder, 'table', 'score', {'seed': 1}, {}).begin()
  write = {'data/part-00000-of-00001.txt': lambda file: file.write(b'old')}
  old.finish_shard(0, 1, write)
  [name] = [n for n in filesystems.names_in(folder) if n.endswith('.done')]
  marker = content(emulator, f'{folder}/{name}')
  old.delete()
  new = Artifact(folder, 'table', 'score', {'seed': 2}, {}).begin()
  below = folder.removeprefix(f'{ROOT}/')
  emulator.put(f'{below}/{name}', marker)
  emulator.put(f'{below}/{next(iter(write))}', b'old')
  assert new.finished_shard(0, 1) is None
  again = Artifact(folder, 'table', 'score', {'seed': 1}, {})
  with pytest.raises(UserError, match='does not belong to this config'):
    again.begin()
  # Markers of older versions name no options.
  record = json.loads(marker)
  files.write_record(
    f'{folder}/{name}', {'files': record['files'], 'begun': new.begun[-1]}
  )
  assert new.finished_shard(0, 1)
  files.write_record(f'{folder}/{name}', {'files': record['files']})
  assert new.finished_shard(0, 1)


def test_sizes_are_not_taken_from_a_stale_listing(path, disturb):
  folder, name = posixpath.split(path)
  facts = files.write_text(f'{folder}/data/{name}', 'new')
  manifest = {'files': {f'data/{name}': facts}}
  disturb(('list', 'stale'))
  manifests.check_sizes(folder, manifest, 'table', 'score')
  with pytest.raises(UserError, match='has 3 bytes, but'):
    manifest['files'][f'data/{name}'] = {**facts, 'bytes': 4}
    manifests.check_sizes(folder, manifest, 'table', 'score')


def test_a_listing_is_not_remembered(path, emulator):
  folder = posixpath.dirname(path)
  assert filesystems.names_in(folder) == ['x']
  emulator.put(f'{folder.removeprefix(f"{ROOT}/")}/y', b'of another process')
  filesystem, name = filesystems.filesystem_of(f'{folder}/y')
  assert filesystem.exists(name)


def test_a_folder_is_deleted_even_if_a_listing_shows_what_is_gone(
  path, disturb, emulator
):
  folder = posixpath.dirname(path)
  for name in ('y', 'z'):
    files.write_text(f'{folder}/{name}', name)
  files.remove(f'{folder}/y')
  filesystem, root = filesystems.filesystem_of(folder)
  disturb(('list', 'delay'), ('list', 'stale'), ('delete', 'lost'))
  filesystems.delete_folder(folder)
  # 'z' was too new for that listing.
  assert filesystem.find(root) in ([], [f'{root}/z'])


def test_faults_replay_by_their_seed():
  requests = [
    (kind, f'work/{number}.orbax-checkpoint-tmp-1234567{time}', nth)
    for kind in FAULTS
    for number in range(100)
    for nth in (1, 2)
    for time in '1'
  ]
  again = [(k, n.replace('12345671', '99999999'), i) for k, n, i in requests]

  def drawn(seed, asked):
    return [Plan(seed, 0.1).fault(*request) for request in asked]

  assert drawn(1, requests) == drawn(1, again) != drawn(2, requests)
  faults = {fault for fault in drawn(1, requests) if fault}
  assert faults == {fault for kind in FAULTS.values() for fault in kind}
  assert 70 < sum(map(bool, drawn(1, requests))) < 130


def test_a_bucket_that_may_not_be_written(proxy):
  proxy.refused_writes = True
  try:
    with pytest.raises(UserError) as error:
      files.check_writable(f'{ROOT}/work')
  finally:
    proxy.refused_writes = False
  message = str(error.value)
  assert message.startswith(f'The workdir {ROOT}/work cannot be written: ')
  assert 'Forbidden' in message and 'name another with --workdir' in message
  assert '\n' not in message and not os.path.exists('gs:')
