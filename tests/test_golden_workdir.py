"""A workdir that an earlier version wrote: this version finds it finished.

`golden_workdir.tar.xz` holds a config, a corpus of made-up text and the workdir of
all stages but the two reports, which are always made anew. The workdir is never made
again: names of files, columns and options are a format. The config names the arms that
`configs/base.py` had when the workdir was written.
"""

import hashlib
import os
import pathlib
import subprocess
import sys
import tarfile

import numpy as np
import pyarrow.parquet as pq
import pytest

ROOT = pathlib.Path(__file__).parents[1]
ARCHIVE = ROOT / 'tests/golden_workdir.tar.xz'
LINES = (
  *('tokenize: finished', 'statistics: finished', 'reference: finished'),
  *('score: finished', 'select: random-seed-0 finished'),
  *('select: top_sum finished', 'train: 2 of 2 runs finished'),
  'evaluate: 2 of 2 runs finished',
)


@pytest.fixture(scope='module')
def folder(tmp_path_factory) -> pathlib.Path:
  path = tmp_path_factory.mktemp('golden')
  with tarfile.open(ARCHIVE) as archive:
    archive.extractall(path, filter='data')
  return path


def run(folder: pathlib.Path, *flags: str) -> str:
  """What a job logs in the folder, where the config's corpus is."""
  command = [sys.executable, '-m', 'infoprune_jax.main', '--config=config.py']
  done = subprocess.run(
    [*command, '--workdir=workdir', *flags],
    cwd=folder,
    env={**os.environ, 'PYTHONPATH': str(ROOT), 'XLA_FLAGS': ''},  # One device.
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stdout + done.stderr
  return done.stdout + done.stderr


def digests(folder: pathlib.Path) -> dict[str, str]:
  """The checksum of each file, but locks and reports."""
  workdir = folder / 'workdir'
  files = {
    str(path.relative_to(workdir)): hashlib.sha256(
      path.read_bytes()
    ).hexdigest()
    for path in workdir.rglob('*')
    if path.is_file() and path.name != '.lock'
  }
  return {
    name: digest
    for name, digest in files.items()
    if not name.startswith(('report/', 'selection_report/'))
  }


# Earlier versions selected and exported only the arms of train.arms.
EXPORTED = '--config.export.arms=random,top_sum'


def test_every_stage_is_finished_and_nothing_changes(folder):
  before = digests(folder)
  log = run(folder)
  for line in LINES:
    assert f'{line} before' in log
  for _ in range(2):
    log = run(folder, '--job=near_duplicates')
  assert 'near_duplicates: finished before' in log
  assert run(folder, '--job=export', EXPORTED).count('finished before') == 3
  after = digests(folder)
  assert {name: after[name] for name in before} == before
  new = after.keys() - before.keys()
  # Earlier versions did not look for near-copies of held-out documents.
  assert {name.split('/')[0] for name in new} == {'keep_sets', 'heldout_copies'}


def test_every_byte_is_sound(folder):
  log = run(folder, '--job=verify', EXPORTED)
  assert 'score table' in log and 'keep set' in log


def test_tables_are_read_as_a_folder_by_their_names(folder):
  scores = pq.read_table(folder / 'workdir/scores/data')
  assert {'shard', 'doc_index', 'example_id', 'source', 'nll_sum'} <= {
    *scores.column_names
  }
  documents = pq.read_table(folder / 'workdir/token_store/data')
  keys = zip(
    documents['source'].to_pylist(),
    documents['example_id'].to_pylist(),
    strict=True,
  )
  assert len(set(keys)) == documents.num_rows == 60
  assert np.isfinite(scores['nll_sum'].to_numpy()).all()
