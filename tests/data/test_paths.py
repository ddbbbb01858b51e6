"""Paths, globs and URLs, and what file systems refuse."""

import os
import zipfile

import pytest
from fsspec.registry import known_implementations

from configs import base
from infoprune_jax.config import SourceConfig, UserError
from infoprune_jax.data import paths, sources


def read(edits):
  files = sources.list_files({'mine': SourceConfig(**edits)})
  return [row for file in files for _, row in sources.read_rows(file)]


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
  assert [row.example_id for row in found] == [f'mine/{n}' for n in names]


@pytest.mark.parametrize('container', ['{}/x.zip', 'file://{}/x.zip'])
def test_files_in_zips(tree, container):
  with zipfile.ZipFile(tree / 'x.zip', 'w') as file:
    for name in ('b.txt', 'new/c.txt'):
      file.write(tree / 'en' / name, name)
  container = container.format(tree)
  for inner in ('', '**/*.txt'):
    found = read(base.text(f'zip://{inner}::{container}'))
    assert [(row.example_id, row.text) for row in found] == [
      ('mine/b.txt', 'en/b.txt'),
      ('mine/new/c.txt', 'en/new/c.txt'),
    ]
  # Of two zips, the names tell which.
  (tree / 'y.zip').write_bytes((tree / 'x.zip').read_bytes())
  both = (f'zip://new/c.txt::{tree}/{name}.zip' for name in 'xy')
  assert [row.example_id for row in read(base.text(*both))] == [
    'mine/x.zip/new/c.txt',
    'mine/y.zip/new/c.txt',
  ]


def test_compression_goes_by_the_name_within_a_zip(tree):
  import gzip

  with zipfile.ZipFile(tree / 'x.zip', 'w') as file:
    file.writestr('a.txt.gz', gzip.compress(b'inner'))
  [row] = read(base.text(f'zip://a.txt.gz::{tree}/x.zip'))
  assert row.text == 'inner'


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
    list(sources.read_rows(file))
  (tree / 'a.txt').mkdir()
  with pytest.raises(UserError, match=r'a\.txt cannot be read: .*directory'):
    list(sources.read_rows(file))


def test_a_container_comes_before_what_is_in_it():
  assert paths.display('zip://a/b.txt::/c.zip') == '/c.zip/a/b.txt'
  assert paths.display('/c/a:b.txt') == '/c/a:b.txt'
