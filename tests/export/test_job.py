"""The job: what it refuses, what it skips, and that a kill costs nothing."""

import gzip
import importlib.util
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys

import pytest

from infoprune_jax.config import experiment as config_lib, validation
from infoprune_jax.config.validation import UserError
from infoprune_jax.export import job
from infoprune_jax.runtime import manifests
from infoprune_jax.verify import workdir as verify

FORMATS = (
  *('jsonl', 'parquet', 'array_record', 'keep_set', 'scores'),
  *('megatron', 'mds', 'levanter'),
)


def tree(folder: pathlib.Path) -> dict[str, bytes]:
  """The bytes of every file below a folder."""
  return {
    str(path.relative_to(folder)): path.read_bytes()
    for path in sorted(folder.rglob('*'))
    if path.is_file() and path.name != '.lock'
  }


def run(edits, workdir, **fields) -> pathlib.Path:
  edits.export.update(fields)
  job.run(config_lib.from_mapping(edits), workdir)
  return pathlib.Path(edits.export.folder or f'{workdir}/export')


def test_the_number_of_processes_changes_no_byte(edits, workdir, tmp_path):
  one = tree(run(edits, workdir, formats=FORMATS))
  edits.corpus.num_workers = 2
  two = tree(run(edits, workdir, folder=str(tmp_path / 'two')))
  assert one == two
  arms = ('every-arm', 'everything', 'random-seed-0', 'random-seed-1', 'top')
  assert {name.split('/')[0] for name in one} == set(arms)


# Kills itself when a part's files are there and its marker is not.
KILLED = """
import json, os, signal, sys
from infoprune_jax.config import experiment as config
from infoprune_jax.runtime import artifacts
from infoprune_jax.export import job

write, left = artifacts.write_record, [int(sys.argv[3])]

def killing(path, value, *others):
  left[0] -= path.endswith(artifacts.DONE)
  if left[0] < 0:
    os.kill(os.getpid(), signal.SIGKILL)
  return write(path, value, *others)

artifacts.write_record = killing
job.run(config.from_mapping(json.loads(sys.argv[1])), sys.argv[2])
"""


@pytest.mark.parametrize(
  'formats, num_shards',
  [
    *((('array_record', 'parquet'), number) for number in (0, 3, 6)),
    *((('levanter', 'mds', 'megatron'), number) for number in (0, 1, 4, 8)),
  ],
)
def test_a_killed_job_goes_on(formats, num_shards, edits, workdir, tmp_path):
  edits.export.update(arms=('top',), formats=formats)
  expected = tree(run(edits, workdir, folder=str(tmp_path / 'whole')))
  folder = tmp_path / 'killed'
  edits.export.folder = str(folder)
  plain = validation.to_plain(config_lib.from_mapping(edits))
  killed = subprocess.run(
    [sys.executable, '-c', KILLED, json.dumps(plain), workdir, str(num_shards)],
    env={**os.environ, 'PYTHONPATH': os.pathsep.join(sys.path)},
    timeout=60,
  )
  assert killed.returncode == -signal.SIGKILL
  done = {
    path: path.stat().st_mtime_ns
    for marker in folder.rglob('*.done')
    for path in marker.parent.rglob(f'{marker.stem}.*')
  }
  assert len(list(folder.rglob('*.done'))) == num_shards
  if not num_shards:  # As a kill within the first shard leaves it.
    scratch = (
      folder / f'top/{formats[0]}/part-00000-of-00004.0123456789abcdef.tmp'
    )
    scratch.mkdir()
    (scratch / 'records').write_bytes(b'half')
  run(edits, workdir)
  assert tree(folder) == expected
  assert not list(folder.rglob('*.tmp'))
  for path, time in done.items():
    assert path.stat().st_mtime_ns == time, path


def test_formats_of_token_ids_do_not_read_the_corpus(
  edits, workdir, monkeypatch
):
  monkeypatch.setattr(job.original_documents, 'read_again', None)
  folder = run(edits, workdir, arms=('top',), formats=('megatron', 'levanter'))
  assert len(list(folder.glob('top/*/manifest.json'))) == 2


def test_what_is_finished_is_skipped(edits, workdir, caplog, monkeypatch):
  folder = run(edits, workdir, formats=('jsonl', 'scores'))
  before = {path: path.stat().st_mtime_ns for path in folder.rglob('part-*')}
  # Nor is the corpus read again.
  monkeypatch.setattr(job.original_documents, 'read_again', None)
  run(edits, workdir)
  assert before == {p: p.stat().st_mtime_ns for p in folder.rglob('part-*')}


def test_another_keep_set_is_refused(edits, workdir, select_all):
  run(edits, workdir, arms=('top',), formats=('jsonl',))
  edits.select.arms.top.fraction = 0.2
  shutil.rmtree(pathlib.Path(workdir, 'keep_sets/top'))
  select_all(edits, workdir)
  with pytest.raises(
    UserError, match='another version of keep_set/top.* delete'
  ):
    run(edits, workdir)


def test_an_arm_without_a_keep_set_is_refused(edits, workdir):
  shutil.rmtree(pathlib.Path(workdir, 'keep_sets/top'))
  with pytest.raises(UserError, match='keep set top .* Run --job=select'):
    run(edits, workdir)
  assert not os.path.exists(pathlib.Path(workdir, 'export'))


@pytest.mark.parametrize(
  'fields, expected',
  [
    ({'formats': ('jsonl', 'parket')}, "Did you mean 'parquet'"),
    ({'formats': ()}, 'export.formats is empty'),
    ({'folder': '/proc/none'}, 'The folder /proc/none cannot be written'),
    ({'arms': ('topp',)}, "export.arms must be one of .* Did you mean 'top'"),
  ],
)
def test_a_config_that_names_what_there_is_not(
  fields, expected, edits, workdir
):
  with pytest.raises(UserError, match=expected):
    run(edits, workdir, **fields)


def test_a_package_that_is_not_there(edits, workdir, monkeypatch):
  found = importlib.util.find_spec
  monkeypatch.setattr(
    importlib.util,
    'find_spec',
    lambda name: None if name == 'tensorflow' else found(name),
  )
  with pytest.raises(
    UserError, match=r"needs tensorflow, .* pip install 'infoprune_jax\[seqio\]"
  ):
    run(edits, workdir, formats=('tfds',))
  monkeypatch.setitem(sys.modules, 'array_record.python', None)
  with pytest.raises(UserError, match='pip install array_record'):
    run(edits, workdir, formats=('array_record',))


@pytest.fixture
def own_corpus(edits, workdir, corpus, tmp_path, select_all):
  """A copy of the corpus to change, and a workdir over it."""
  folder = shutil.copytree(corpus, tmp_path / 'corpus')
  for name, path in (
    ('news', 'dolma/documents/*/*.jsonl.gz'),
    ('books', 'books.parquet'),
    ('notes', 'notes'),
  ):
    edits.corpus.sources[name].paths = (f'{folder}/{path}',)
  shutil.rmtree(workdir)
  select_all(edits, workdir)
  return folder


@pytest.mark.parametrize(
  'change', ['text', 'id', 'missing record', 'more records']
)
def test_a_file_that_changed_is_named(change, edits, workdir, own_corpus):
  path = own_corpus / 'dolma/documents/2019/b.jsonl.gz'
  lines = gzip.decompress(path.read_bytes()).splitlines()
  record = json.loads(lines[20])
  if change == 'missing record':
    del lines[20]
  elif change == 'more records':
    lines.insert(
      20, json.dumps({**record, 'id': 'new', 'text': 'new'}).encode()
    )
  else:
    lines[20] = json.dumps({**record, change: f'{record[change]} x'}).encode()
  path.write_bytes(gzip.compress(b'\n'.join(lines)))
  with pytest.raises(UserError, match=r'b\.jsonl\.gz:21\. Put the files back'):
    run(edits, workdir)
  assert not list(pathlib.Path(workdir, 'export').rglob('part-*'))


def test_a_corpus_of_another_config_is_refused(edits, workdir):
  edits.corpus.seed = 1
  with pytest.raises(UserError, match='corpus: seed 0 -> 1'):
    run(edits, workdir)


def test_what_is_verified(edits, workdir, select_all):
  folder = run(edits, workdir, formats=FORMATS)
  names = {
    os.path.relpath(found.path, workdir): problems
    for found, problems in verify.check(workdir)
    if found.job == 'export'
  }
  assert names.keys() >= {'export/top/jsonl', 'export/every-arm/scores'}
  assert not any(names.values())
  shard = next((folder / 'top/jsonl').glob('data/*.zst'))
  shard.write_bytes(shard.read_bytes()[:-1])
  edits.select.arms.top.fraction = 0.2
  shutil.rmtree(pathlib.Path(workdir, 'keep_sets/top'))
  select_all(edits, workdir)
  problems = {
    os.path.relpath(found.path, workdir): ' '.join(problems)
    for found, problems in verify.check(workdir)
    if problems
  }
  assert 'is damaged' in problems['export/top/jsonl']
  assert 'made from keep_set/top' in problems['export/top/parquet']
  assert 'made from keep_set/top' in problems['export/every-arm/scores']


def test_a_damaged_shard_is_made_again_as_the_message_says(edits, workdir):
  folder = run(edits, workdir, arms=('top',), formats=('jsonl',)) / 'top/jsonl'
  expected = tree(folder)
  shard = sorted(folder.glob('data/*.zst'))[1]
  shard.write_bytes(b'')
  (folder / manifests.MANIFEST).unlink()
  with pytest.raises(UserError, match='is damaged') as caught:
    run(edits, workdir)
  marker = folder / shard.name.replace('.jsonl.zst', '.done')
  assert f'Delete {marker} ' in str(caught.value)
  marker.unlink()
  run(edits, workdir)
  assert tree(folder) == expected
