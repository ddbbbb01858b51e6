"""Paths, globs and URLs, and what file systems refuse."""

import os
import zipfile

import pytest
from fsspec.registry import known_implementations

from configs import base
from infoprune_jax.config.corpus import SourceConfig
from infoprune_jax.config.validation import UserError
from infoprune_jax.corpus import paths, sources


def read(edits):
  files = sources.list_files({'mine': SourceConfig(**edits)})
  return [record for file in files for _, record in sources.read_records(file)]


@pytest.fixture
def tree(tmp_path):
  """A folder with files two folders deep."""
  for name in ('a.txt', 'en/b.txt', 'en/new/c.txt', 'en/new/d.md'):
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_text(name)
  return tmp_path


@pytest.mark.parametrize('scheme', ['', 'file://'])
@pytest.mark.parametrize(
  'pattern, names',
  [
    ('**/*.txt', ['a.txt', 'en/b.txt', 'en/new/c.txt']),
    ('en/**', ['b.txt', 'new/c.txt', 'new/d.md']),
    ('e?/[b]*', ['en/b.txt']),
    ('en/b.txt', ['b.txt']),
    ('en', ['b.txt', 'new/c.txt', 'new/d.md']),
  ],
)
def test_local_paths_and_globs(tree, scheme, pattern, names):
  found = read(base.text(f'{scheme}{tree}/{pattern}'))
  assert [record.example_id for record in found] == [f'mine/{n}' for n in names]


@pytest.mark.parametrize('container', ['{}/x.zip', 'file://{}/x.zip'])
def test_files_in_zips(tree, container):
  with zipfile.ZipFile(tree / 'x.zip', 'w') as file:
    for name in ('b.txt', 'new/c.txt'):
      file.write(tree / 'en' / name, name)
  container = container.format(tree)
  for inner in ('', '**/*.txt'):
    found = read(base.text(f'zip://{inner}::{container}'))
    assert [(record.example_id, record.text) for record in found] == [
      ('mine/b.txt', 'en/b.txt'),
      ('mine/new/c.txt', 'en/new/c.txt'),
    ]
  # Of two zips, the names tell which.
  (tree / 'y.zip').write_bytes((tree / 'x.zip').read_bytes())
  both = (f'zip://new/c.txt::{tree}/{name}.zip' for name in 'xy')
  assert [record.example_id for record in read(base.text(*both))] == [
    'mine/x.zip/new/c.txt',
    'mine/y.zip/new/c.txt',
  ]


def test_compression_goes_by_the_name_within_a_zip(tree):
  import gzip

  with zipfile.ZipFile(tree / 'x.zip', 'w') as file:
    file.writestr('a.txt.gz', gzip.compress(b'inner'))
  [record] = read(base.text(f'zip://a.txt.gz::{tree}/x.zip'))
  assert record.text == 'inner'


def test_a_damaged_zip_is_named(tree):
  (tree / 'x.zip').write_bytes(b'no zip at all')
  with pytest.raises(UserError, match=r'x\.zip.* cannot be read'):
    read(base.text(f'zip://::{tree}/x.zip'))


@pytest.mark.parametrize('format', [base.text, base.hf_dataset])
def test_an_unknown_scheme_is_refused(format):
  with pytest.raises(UserError, match=r"sources\.mine\.paths: 'xyz://a'.*gs"):
    read(format('xyz://a'))


@pytest.mark.parametrize('format', [base.text, base.hf_dataset])
def test_a_missing_driver_is_named(format, monkeypatch):
  known = {'class': 'no_such_driver.FileSystem', 'err': 'Install the driver'}
  monkeypatch.setitem(known_implementations, 'nodriver', known)
  with pytest.raises(
    UserError, match=r"'nodriver://a'.*driver.*pip install no_such_driver\."
  ):
    read(format('nodriver://a'))


@pytest.mark.parametrize('pattern', ['', '/**/*.txt'])
def test_a_folder_that_may_not_be_listed_is_refused(tree, monkeypatch, pattern):
  scandir = os.scandir

  def refuse(path):
    if str(path).rstrip('/').endswith('/new'):
      raise PermissionError(13, 'Permission denied', str(path))
    return scandir(path)

  monkeypatch.setattr(os, 'scandir', refuse)
  with pytest.raises(UserError, match=r'Permission denied.*permissions'):
    read(base.text(f'{tree}{pattern}'))


def test_a_file_that_vanishes_or_is_closed_is_refused(tree, monkeypatch):
  [file] = sources.list_files(
    {'mine': SourceConfig(**base.text(f'{tree}/a.txt'))}
  )
  (tree / 'a.txt').unlink()
  with pytest.raises(UserError, match=r'a\.txt cannot be read: .*No such file'):
    list(sources.read_records(file))
  (tree / 'a.txt').mkdir()
  with pytest.raises(UserError, match=r'a\.txt cannot be read: .*directory'):
    list(sources.read_records(file))


ROW = '{"text": "%s"}\n'


def ids_of(edits):
  return [record.example_id.removeprefix('mine/') for record in read(edits)]


@pytest.fixture
def linked(tmp_path):
  """Files of JSON lines, some of them by links to files and to folders."""
  root = tmp_path / 'corpus'
  for name in ('corpus/a', 'far/b', 'far/deep/c', 'far/.blobs/0f'):
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    suffix = '' if '.blobs' in name else '.jsonl'
    (tmp_path / (name + suffix)).write_text(ROW % name)
  (root / 'file.jsonl').symlink_to('../far/b.jsonl')
  (root / 'again.jsonl').symlink_to(tmp_path / 'far/b.jsonl')
  (root / 'folder').symlink_to('../far/deep')
  (root / 'cached.jsonl').symlink_to('../far/.blobs/0f')
  return root


@pytest.mark.parametrize('pattern', ['', '/', '/**', '/**/*.jsonl'])
def test_links_are_followed(linked, pattern):
  assert ids_of(base.jsonl(f'{linked}{pattern}')) == [
    'a.jsonl:1',
    'again.jsonl:1',
    'cached.jsonl:1',
    'file.jsonl:1',
    'folder/c.jsonl:1',
  ]


@pytest.mark.parametrize(
  'pattern, ids',
  [
    ('*/*.jsonl', ['folder/c.jsonl:1']),
    ('folder/*.jsonl', ['c.jsonl:1']),
    ('folder', ['c.jsonl:1']),
    ('c*', ['cached.jsonl:1']),
    ('file.jsonl', ['file.jsonl:1']),
  ],
)
def test_globs_and_names_pass_through_links(linked, pattern, ids):
  assert ids_of(base.jsonl(f'{linked}/{pattern}')) == ids
  (linked.parent / 'root').symlink_to(linked)
  assert ids_of(base.jsonl(f'{linked.parent}/root/{pattern}')) == ids


def test_compression_goes_by_the_name_of_a_link(tmp_path):
  import gzip

  (tmp_path / '.blob').write_bytes(gzip.compress(b'inner'))
  (tmp_path / 'a.txt.gz').symlink_to('.blob')
  [record] = read(base.text(str(tmp_path)))
  assert (record.text, record.example_id) == ('inner', 'mine/a.txt.gz')


@pytest.mark.parametrize(
  'pattern, is_named',
  [
    ('', True),
    ('/gone.jsonl', True),
    ('/*.jsonl', True),
    ('/**/*.jsonl', True),
    ('/gone.jsonl/*', True),
    ('/gone*/*.jsonl', True),  # It may have been a folder.
    ('/a*.jsonl', False),
    ('/folder', False),
  ],
)
def test_a_link_to_nowhere_is_named(linked, pattern, is_named):
  (linked / 'gone.jsonl').symlink_to('../far/gone.jsonl')
  # As editors leave them: hidden.
  (linked / '.#a.jsonl').symlink_to('user@host:1')
  source = base.jsonl(f'{linked}{pattern}')
  if not is_named:
    assert read(source)
    return
  with pytest.raises(
    UserError, match=r'gone\.jsonl is a symbolic link to \.\.'
  ):
    read(source)


@pytest.mark.parametrize('target', ['.', '..', '../corpus', '../far/back'])
def test_a_cycle_of_links_is_named(linked, target):
  (linked.parent / 'far/back').symlink_to('../corpus')
  (linked / 'loop').symlink_to(target)
  for pattern in ('', '/**/*.jsonl'):
    with pytest.raises(
      UserError, match=r'/\w+ is a symbolic link to .*a cycle'
    ):
      read(base.jsonl(f'{linked}{pattern}'))
  assert read(base.jsonl(f'{linked}/*.jsonl'))


def test_a_cycle_in_a_hidden_folder_is_no_concern(linked):
  (linked / '.git').mkdir()
  (linked / '.git/loop').symlink_to('.')
  assert len(read(base.jsonl(str(linked)))) == 5


def test_a_name_is_no_chain_and_no_glob_where_it_is_there(
  tmp_path, monkeypatch
):
  names = (
    'File',
    'File::Spec.3pm',
    'lr[3e-4]/a*?.txt',
    'lr[3e-4]/a.txt',
    'lr3/a',
  )
  for name in names:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text(name)
  monkeypatch.chdir(tmp_path)
  monkeypatch.setenv('HOME', str(tmp_path))
  for prefix in ('', './', '~/', f'{tmp_path}//', f'file://{tmp_path}/'):
    for name in names:
      assert [record.text for record in read(base.text(prefix + name))] == [
        name
      ]
    for pattern in ('lr[3e-4]', 'lr[3e-4]/*', 'lr[3e-4]/**'):
      found = [record.text for record in read(base.text(prefix + pattern))]
      assert found == ['lr[3e-4]/a*?.txt', 'lr[3e-4]/a.txt']
  assert ids_of(base.text('lr[0-9]/a', './lr3/a')) == ['lr3/a']


def test_stars_beside_a_name_are_refused(tree):
  with pytest.raises(
    UserError, match=r"\*\* *'? stands for folders.*'a\*\.txt'"
  ):
    read(base.text(f'{tree}/a**.txt'))


@pytest.mark.parametrize('pattern', ['', '/*/*.txt'])
def test_names_that_are_not_utf8(tmp_path, pattern):
  folder = os.fsencode(tmp_path) + b'/d\xe9'
  os.mkdir(folder)
  with open(folder + b'/caf\xe9.txt', 'w') as file:
    file.write('coffee')
  [record] = read(base.text(f'{tmp_path}{pattern}'))
  assert (record.example_id, record.text) == (
    'mine/d\\xe9/caf\\xe9.txt',
    'coffee',
  )


def test_a_container_comes_before_what_is_in_it():
  assert paths.display('zip://a/b.txt::/c.zip') == '/c.zip/a/b.txt'
  assert paths.display('/c/a:b.txt') == '/c/a:b.txt'
