"""One name for each file, however it is spelled; links; names like patterns."""

import os

import fsspec
import pytest

from infoprune_jax.config.validation import UserError
from infoprune_jax.runtime import filesystems

NAMES = ('lr[3e-4]', 'a*', 'b?', 'exp::1', 'File::Spec.3pm', 'c:d', 'e=1', '~f')


@pytest.fixture
def here(tmp_path, monkeypatch):
  """The current folder, and the home folder."""
  monkeypatch.chdir(tmp_path)
  monkeypatch.setenv('HOME', str(tmp_path))
  return str(tmp_path)


@pytest.mark.parametrize(
  'spelled',
  [
    '{here}/x',
    '{here}/x/',
    '{here}//x',
    '{here}/y/../x',
    '/..{here}/./x//',
    'x',
    'x/',
    './x',
    'y/../x',
    '~/x',
    '~/./x/',
    'file://{here}/x',
    'file://{here}/x/',
    'file:{here}/x',
    'file://localhost{here}/x',
    'file://~/x',
    'local://{here}/x',
  ],
)
def test_spellings_of_one_name(here, spelled):
  spelled = spelled.format(here=here)
  assert filesystems.is_local(spelled)
  assert filesystems.canonical(spelled) == f'{here}/x'
  assert filesystems.filesystem_of(spelled)[1] == f'{here}/x'


@pytest.mark.parametrize('name', NAMES)
@pytest.mark.parametrize('prefix', ['', './', '~/', 'file://{here}/'])
def test_a_local_name_is_a_name(here, name, prefix):
  if not prefix and name.startswith('~'):
    name = f'./{name}'
  path = prefix.format(here=here) + name
  assert filesystems.canonical(path) == os.path.normpath(f'{here}/{name}')
  filesystems.make_folder(path)
  assert os.listdir(here) == [os.path.basename(name)]
  assert filesystems.names_in('.') == [os.path.basename(name)]
  with open(f'{here}/{name}/text', 'w') as file:
    file.write(name)
  with filesystems.open_file(f'{path}/text') as opened:
    assert opened.read() == name.encode()
  assert filesystems.matching(path, 't*t') == [f'{path}/text']
  filesystems.delete_folder(path)
  assert os.listdir(here) == []


@pytest.mark.parametrize(
  'path, name',
  [
    ('gs://b/x/', 'gs://b/x'),
    ('memory://b/lr[3]/', 'memory://b/lr[3]'),
    ('zip://*.txt::/b.zip', 'zip://*.txt::/b.zip'),
    ('simplecache::gs://b/x', 'simplecache::gs://b/x'),
  ],
)
def test_what_is_not_local_keeps_its_name(path, name):
  assert not filesystems.is_local(path)
  assert filesystems.canonical(path) == name


def test_chains_are_of_file_systems_that_read_others():
  chain = filesystems.split_chain
  assert chain('zip://a/b::/c::d.zip') == ('zip://a/b', '/c::d.zip')
  assert chain('simplecache::memory://b/x') == ('simplecache', 'memory://b/x')
  for path in ('memory://b/a::1', '/b/a::1', 'zip', 'Zip::a', 'file:///zip::a'):
    assert chain(path) == (path, '')
  # Rather than the file `memory://b/a`, as fsspec would.
  fsspec.filesystem('memory').pipe('/chains/a', b'another')
  with (
    pytest.raises(FileNotFoundError),
    filesystems.open_file('memory://chains/a::1'),
  ):
    pass


def test_dots_after_a_link_go_where_the_system_goes(tmp_path):
  (tmp_path / 'far/deep').mkdir(parents=True)
  (tmp_path / 'link').symlink_to('far/deep')
  found = filesystems.canonical(f'{tmp_path}/link/../x')
  assert found == f'{tmp_path}/far/x'
  # And a link is no folder of its own without them.
  assert filesystems.canonical(f'{tmp_path}/link/x') == f'{tmp_path}/link/x'


def test_object_stores_with_names_like_patterns():
  store = fsspec.filesystem('memory')
  folder = 'memory://patterns/lr[3e-4]'
  store.pipe('/patterns/lr[3e-4]/part-1/x[1].txt', b'one')
  store.pipe('/patterns/lr3/part-2', b'two')
  assert filesystems.names_in(folder) == ['part-1']
  assert filesystems.matching(folder, 'part-*/x*') == [
    f'{folder}/part-1/x[1].txt'
  ]
  copy = filesystems.local_copy(f'{folder}/part-1/x[1].txt')
  with open(copy, 'rb') as file:
    assert file.read() == b'one'
  filesystems.delete_folder(folder)
  assert store.find('/patterns') == ['/patterns/lr3/part-2']


@pytest.fixture
def links(tmp_path):
  """Links to a folder and to a file, and three that lead nowhere."""
  (tmp_path / 'far').mkdir()
  (tmp_path / 'far/part-1').write_text('one')
  work = tmp_path / 'work'
  work.mkdir()
  (work / 'folder').symlink_to('../far')
  (work / 'part-2').symlink_to('../far/part-1')
  (work / 'gone').symlink_to('../missing')
  (work / 'self').symlink_to('self')
  (work / 'folder/part-3').symlink_to(tmp_path / 'missing')
  return work


def test_links_are_followed(links):
  filesystem, root = filesystems.filesystem_of(str(links))
  kinds = {
    os.path.basename(info['name']): (info['type'], info['size'])
    for info in filesystem.ls(root, detail=True)
    if info['type'] != 'directory'
  }
  assert kinds == {
    'part-2': ('file', 3),
    'gone': ('link', 0),
    'self': ('link', 0),
  }
  assert filesystem.isdir(f'{root}/folder')
  assert filesystems.matching(root, 'f*/part-1') == [f'{root}/folder/part-1']
  assert filesystems.local_copy(f'{root}/part-2') == f'{root}/part-2'


@pytest.mark.parametrize('name', ['gone', 'gone/x', 'self', 'folder/part-3'])
def test_a_link_to_nowhere_is_named(links, name):
  path = str(links / name)
  filesystem, _ = filesystems.filesystem_of(path)
  link = path.removesuffix('/x')
  message = rf'{link} is a symbolic link to \S+, which does not exist'
  for access in (
    lambda: filesystems.open_file(path).__enter__(),
    lambda: filesystems.local_copy(path),
    lambda: filesystems.names_in(path),
    lambda: filesystems.make_folder(f'{path}/new'),
    lambda: filesystem.exists(path),
    lambda: filesystems.matching(str(links), name),
  ):
    with pytest.raises(UserError, match=message):
      access()


def test_a_link_is_deleted_with_what_it_names(links):
  filesystems.delete_folder(str(links / 'folder'))
  assert not os.path.lexists(links / 'folder')
  assert not (links.parent / 'far').exists()


def test_names_that_are_not_utf8(tmp_path):
  name = os.fsdecode(os.fsencode(tmp_path) + b'/caf\xe9')
  assert filesystems.printable(name) == f'{tmp_path}/caf\\xe9'
  with pytest.raises(
    UserError, match=r'--workdir: the name .*caf\\xe9 .*UTF-8'
  ):
    filesystems.check_utf8(name, '--workdir')
  filesystems.check_utf8(f'{tmp_path}/café', '--workdir')
