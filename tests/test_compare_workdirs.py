"""Two workdirs are equal, or the tool names what differs."""

import json
import pathlib
import subprocess
import sys

import numpy as np
import orbax.checkpoint as ocp
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

ROOT = pathlib.Path(__file__).parent.parent
NAN = float('nan')


def write_workdir(path, folder='scores', column='doc_index', weight='kernel'):
  (path / folder).mkdir(parents=True)
  table = pa.table({column: [0, 1], 'nll_sum': [1.5, NAN]})
  pq.write_table(table, path / folder / 'part-0.parquet')
  np.save(path / folder / 'keep.npy', np.arange(3, dtype=np.uint8))
  run = path / 'train'
  run.mkdir()
  (run / 'metrics.jsonl').write_text('{"step": 1, "loss": 2.5}\n')
  (run / 'timing.jsonl').write_text(f'{{"time": {path.stat().st_mtime}}}\n')
  ocp.PyTreeCheckpointer().save(
    (run / 'checkpoints/1/params').absolute(), {weight: np.arange(4.0)}
  )


def compare(*arguments):
  command = [sys.executable, 'tools/compare_workdirs.py', *map(str, arguments)]
  return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def test_equal_after_renaming(tmp_path):
  old, new = tmp_path / 'old', tmp_path / 'new'
  write_workdir(old)
  write_workdir(new, 'score_table', 'doc_index', 'weight')
  renames = tmp_path / 'renames.json'
  names = {'doc_index': 'doc_index', 'kernel': 'weight'}
  renames.write_text(
    json.dumps({'paths': {'^scores/': 'score_table/'}, 'names': names})
  )
  assert compare(old, old).returncode == 0
  renamed = compare(old, new, f'--renames={renames}')
  assert renamed.returncode == 0, renamed
  assert '4 files equal, 0 different' in renamed.stdout
  without = compare(old, new)
  assert without.returncode == 1
  assert 'scores/part-0.parquet  the file is only in OLD' in without.stdout


def change_table(path):
  table = pa.table({'doc_index': [0, 1], 'nll_sum': [1.5, 2.0]})
  pq.write_table(table, path / 'scores/part-0.parquet')


def change_array(path):
  np.save(path / 'scores/keep.npy', np.arange(3, dtype=np.int8))


def change_metrics(path):
  (path / 'train/metrics.jsonl').write_text('{"step": 1, "loss": 2.25}\n')


def change_checkpoint(path):
  ocp.PyTreeCheckpointer().save(
    (path / 'train/checkpoints/1/params').absolute(),
    {'kernel': np.arange(4.0) + 1e-15},
    force=True,
  )


@pytest.mark.parametrize(
  'change, line',
  [
    (change_table, 'scores/part-0.parquet  nll_sum differs'),
    (change_array, 'scores/keep.npy  array differs'),
    (change_metrics, 'train/metrics.jsonl  loss.1 differs'),
    (
      change_checkpoint,
      'train/checkpoints/1/params/_METADATA  kernel differs',
    ),
  ],
)
def test_says_what_differs(tmp_path, change, line):
  old, new = tmp_path / 'old', tmp_path / 'new'
  write_workdir(old)
  write_workdir(new)
  change(new)
  result = compare(old, new)
  assert result.returncode == 1, result
  assert line in result.stdout
  assert '1 different' in result.stdout
