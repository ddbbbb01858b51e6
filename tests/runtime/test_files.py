"""Files: whole or not at all, and one writer a folder."""

import errno
import hashlib
import os
import subprocess
import sys

import fsspec
import pytest
from hypothesis import given, settings, strategies as st

from infoprune_jax.config.validation import UserError
from infoprune_jax.runtime import files, filesystems

HOLD = """
import sys, time
from infoprune_jax.runtime import files
with files.lock(sys.argv[1]):
  print('held', flush=True)
  time.sleep(60)
"""


@pytest.fixture(params=['', 'file://', 'memory://'])
def folder(request, tmp_path):
  """A folder on each kind of file system."""
  return f'{request.param}{tmp_path}/folder'


@pytest.fixture
def holder(tmp_path):
  """A process that holds the lock of `tmp_path`."""
  command = [sys.executable, '-c', HOLD, str(tmp_path)]
  paths = {**os.environ, 'PYTHONPATH': os.pathsep.join(sys.path)}
  with subprocess.Popen(command, env=paths, stdout=subprocess.PIPE) as process:
    assert process.stdout.readline() == b'held\n'
    yield process
    process.kill()


def test_write_and_read(folder):
  path = f'{folder}/deep/er/name.bin'
  data = bytes(range(256)) * 100
  facts = files.write_file(path, lambda file: file.write(data))
  assert files.read_bytes(path) == data
  assert facts == {
    'sha256': hashlib.sha256(data).hexdigest(),
    'bytes': len(data),
  }


def test_a_second_write_replaces_the_first(folder):
  path = f'{folder}/name'
  files.write_text(path, 'long before')
  files.write_text(path, 'now')
  assert files.read_bytes(path) == b'now'


def test_checksums_cover_every_piece_written(folder):
  pieces = [b'one', bytearray(b'two'), memoryview(b'three'), b'']

  def write(file):
    for piece in pieces:
      assert file.write(piece) == len(piece)
    assert file.tell() == 11

  facts = files.write_file(f'{folder}/name', write)
  assert facts['bytes'] == 11
  assert facts['sha256'] == hashlib.sha256(b'onetwothree').hexdigest()


def interrupted(file):
  file.write(b'half')
  raise KeyboardInterrupt


@pytest.mark.parametrize('before', [None, 'old'])
def test_an_interrupted_write_changes_nothing(tmp_path, before):
  path = tmp_path / 'name'
  if before is not None:
    files.write_text(str(path), before)
  with pytest.raises(KeyboardInterrupt):
    files.write_file(str(path), interrupted)
  assert [p.name for p in tmp_path.iterdir()] == ['name'] * (before is not None)
  assert before is None or path.read_text() == before


@pytest.mark.parametrize('protocol', ['local', 'memory'])
def test_an_interrupted_write_by_fsspec_changes_nothing(tmp_path, protocol):
  path = f'{protocol}://{tmp_path}/name'
  files.write_text(path, 'old')
  with pytest.raises(KeyboardInterrupt):
    files.write_file(path, interrupted)
  assert files.read_bytes(path) == b'old'
  assert protocol == 'memory' or len(list(tmp_path.iterdir())) == 1


def test_nobody_sees_a_file_grow(tmp_path):
  path = tmp_path / 'name'

  def write(file):
    file.write(b'x' * 10_000)
    file.flush()
    assert not path.exists()

  files.write_file(str(path), write)
  assert path.stat().st_size == 10_000


def test_a_killed_write_is_written_over(tmp_path):
  (tmp_path / 'name.tmp').write_text('left by a kill')
  files.write_text(str(tmp_path / 'name'), 'whole')
  assert [p.name for p in tmp_path.iterdir()] == ['name']


json_values = st.recursive(
  st.none()
  | st.booleans()
  | st.integers()
  | st.floats(allow_nan=False, allow_infinity=False)
  | st.text(st.characters(exclude_categories=['Cs'])),
  lambda inner: st.lists(inner) | st.dictionaries(st.text(max_size=4), inner),
  max_leaves=8,
)


@settings(max_examples=50)
@given(value=json_values)
def test_json_round_trip(value):
  path = 'memory://json/round_trip.json'
  files.write_json(path, value)
  assert files.read_json(path) == value


def test_json_refuses_what_json_cannot_say(tmp_path):
  with pytest.raises(ValueError, match='not JSON compliant'):
    files.write_json(str(tmp_path / 'a.json'), {'loss': float('nan')})
  assert not list(tmp_path.iterdir())


def test_no_json_file_is_none(folder):
  assert files.read_json(f'{folder}/nothing.json') is None


@pytest.mark.parametrize('data', [b'', b'{"a": ', b'\xff\xfe', b'{} {}'])
def test_damaged_json_is_named(folder, data):
  path = f'{folder}/manifest.json'
  files.write_file(path, lambda file: file.write(data))
  with pytest.raises(UserError, match=r'manifest\.json is damaged') as caught:
    files.read_json(path)
  assert path in str(caught.value)


@pytest.mark.parametrize(
  'path, local',
  [('runs/a', True), ('/a', True), ('file:///a', True), ('gs://b/a', False)],
)
def test_is_local(path, local):
  assert files.is_local(path) is local


def test_local_copy(tmp_path):
  path = str(tmp_path / 'name')
  assert filesystems.local_copy(path) == path
  remote = f'memory://{tmp_path}/name'
  files.write_text(remote, 'content')
  with open(filesystems.local_copy(remote)) as file:
    assert file.read() == 'content'


def test_a_lock_is_held_once(tmp_path, holder):
  with (
    pytest.raises(UserError, match=rf'pid {holder.pid}\)') as caught,
    files.lock(str(tmp_path)),
  ):
    raise AssertionError('held twice')
  assert str(tmp_path) in str(caught.value)


def test_a_killed_process_leaves_no_lock(tmp_path, holder):
  holder.kill()
  holder.wait()
  with files.lock(str(tmp_path)):
    assert (tmp_path / '.lock').read_text() == f'{os.getpid()}\n'


def test_a_lock_ends_with_its_block(tmp_path):
  path = str(tmp_path / 'new')
  with pytest.raises(KeyError), files.lock(path):
    raise KeyError
  with files.lock(path), files.lock(f'{path}/inner'):
    pass


def test_object_stores_have_no_locks():
  with files.lock('memory://locked'), files.lock('memory://locked'):
    assert not fsspec.filesystem('memory').exists('/locked/.lock')


@pytest.mark.parametrize(
  'error, expected',
  [
    (OSError(errno.ENOSPC, 'x'), 'No space left on device. Free some space'),
    (OSError(errno.EROFS, 'x', '/a/b'), 'Read-only file system: /a/b. Make it'),
    (OSError(errno.ENOENT, 'No space left on device'), ''),
    (
      RuntimeError('UNAVAILABLE: No space left on device [type.googl'),
      'No space left on device. Free',
    ),
    (ValueError('No such file'), ''),
    (None, ''),
  ],
)
def test_refusals_of_the_file_system(error, expected):
  found = files.refusal(error)
  assert found.startswith(expected) and bool(found) == bool(expected)


def test_a_full_disk_is_told_as_such():
  if not os.path.exists('/dev/full'):
    pytest.skip('no /dev/full here')
  with pytest.raises(OSError) as caught, open('/dev/full', 'wb', 0) as file:
    file.write(b'x')
  assert files.refusal(caught.value)


def test_a_workdir_is_tried_and_left_empty(tmp_path):
  files.check_writable(str(tmp_path / 'new' / 'er'))
  assert [path.name for path in tmp_path.rglob('*')] == ['new', 'er']
  (tmp_path / 'file').touch()
  with pytest.raises(UserError, match='file cannot be written: File exists'):
    files.check_writable(str(tmp_path / 'file'))


def test_a_record_is_held_to_the_byte(folder):
  path = f'{folder}/record.json'
  value = {'b': 1.5, 'a': ['\u00e9', None, {'c': 2**70}]}
  files.write_record(path, value)
  assert files.read_record(path, '') == value
  data = files.read_bytes(path)
  for bit in range(8 * len(data)):
    damaged = bytearray(data)
    damaged[bit // 8] ^= 1 << bit % 8
    files.write_file(path, lambda file, d=damaged: file.write(d))
    with pytest.raises(UserError, match=r'record\.json is damaged.* Fix it\.'):
      files.read_record(path, 'Fix it.')


@pytest.mark.parametrize(
  'text', ['', '[]', '7', '{}', '{"a": 1}', '[' * 100_000, '{"checksum": NaN}']
)
def test_what_is_no_record_is_damaged(folder, text):
  files.write_text(f'{folder}/record.json', text)
  with pytest.raises(UserError, match=r'record\.json is damaged'):
    files.read_record(f'{folder}/record.json', '')


def test_no_record_is_none(folder):
  assert files.read_record(f'{folder}/record.json', '') is None


def test_facts_follow_a_file(tmp_path):
  path = tmp_path / 'name'
  for text in ('one', 'two', 'three'):
    facts = files.write_text(str(path), text)
    assert files.facts_of(str(path)) == facts


def test_a_file_is_digested_once(tmp_path, monkeypatch):
  path = str(tmp_path / 'name')
  files.write_text(path, 'text')
  first = files.facts_of(path)
  monkeypatch.setattr(files.hashlib, 'file_digest', None)
  assert files.facts_of(path) == first
