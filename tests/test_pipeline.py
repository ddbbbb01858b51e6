"""The whole job as a process of its own: killed, resumed, and what it loads."""

import hashlib
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

ROOT = pathlib.Path(__file__).parent.parent
CONFIG = """
from small_corpus import small_config


def get_config():
  config = small_config({path!r})
  config.reference.training.num_steps = 30
  config.score.batch_size = 1
  return config
"""
# Runs the command line, then says which modules it has loaded.
PROGRAM = """
import sys
from absl import app
from infoprune_jax import main
try:
  app.run(main.main, argv=sys.argv, flags_parser=main._parse)
finally:
  heavy = ('tensorflow', 'seqio', 'duckdb', 'matplotlib', 'jax')
  print('LOADED', [name for name in heavy if name in sys.modules])
"""


@pytest.fixture(scope='module')
def config_path(corpus_path, tmp_path_factory):
  path = tmp_path_factory.mktemp('config') / 'killed.py'
  path.write_text(CONFIG.format(path=corpus_path))
  return str(path)


def start(config_path: str, workdir, *arguments: str) -> subprocess.Popen:
  return subprocess.Popen(
    [
      sys.executable,
      '-c',
      PROGRAM,
      f'--config={config_path}',
      f'--workdir={workdir}',
      *arguments,
    ],
    cwd=ROOT,
    env={
      **os.environ,
      'PYTHONPATH': f'{ROOT}:{ROOT / "tests"}',
      'XLA_FLAGS': '--xla_backend_optimization_level=0',
    },
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
  )


def finish(process: subprocess.Popen) -> str:
  output, _ = process.communicate(timeout=240)
  assert process.returncode == 0, output
  return output


def digests(workdir) -> dict[str, str]:
  """Every file whose bytes are promised, by its path in the workdir."""
  promised = ('.parquet', '.npy', '.model', 'manifest.json', 'metrics.jsonl')
  return {
    str(path.relative_to(workdir)): hashlib.sha256(
      path.read_bytes()
    ).hexdigest()
    for path in sorted(pathlib.Path(workdir).rglob('*'))
    # The report names its workdir.
    if path.name.endswith(promised)
    and not {'checkpoints', 'report'} & set(path.parts)
  }


@pytest.fixture(scope='module')
def undisturbed(config_path, tmp_path_factory):
  workdir = tmp_path_factory.mktemp('undisturbed')
  return workdir, finish(start(config_path, workdir))


def kill_when(process: subprocess.Popen, pattern: str, workdir) -> None:
  """SIGKILL as soon as a file matches."""
  deadline = time.monotonic() + 120
  while not list(pathlib.Path(workdir).glob(pattern)):
    assert process.poll() is None, process.stdout.read()
    assert time.monotonic() < deadline, f'{pattern} never came'
    time.sleep(0.002)
  process.send_signal(signal.SIGKILL)
  process.wait()


def test_report_stands_alone_and_is_complete(undisturbed):
  workdir, _ = undisturbed
  page = (workdir / 'report/index.html').read_text()
  assert '<svg' in page and 'http-equiv="refresh"' not in page
  found = json.loads((workdir / 'report/report.json').read_text())
  assert {arm['name'] for arm in found['arms']} == {'full', 'random', 'top_nll'}


def test_scoring_and_training_load_neither_tensorflow_nor_duckdb(
  config_path, undisturbed
):
  workdir, _ = undisturbed
  for job in ('reference', 'score', 'train', 'evaluate'):
    output = finish(start(config_path, workdir, f'--job={job}'))
    assert 'skipped' in output
    assert "LOADED ['jax']" in output, output


def test_killed_at_many_moments_and_resumed(config_path, undisturbed, tmp_path):
  expected, _ = undisturbed
  for pattern in (
    'token_store/part-00000-of-00003.done',
    'reference/checkpoints/5',
    'reference/checkpoints/15',
    'scores/part-00000-of-00003.parquet',
    'scores/part-00001-of-00003.done',
    'train/full/seed-0/checkpoints/5',
    'train/random/seed-1/metrics.jsonl',
    'evaluate/full/seed-0/part-00001-of-00003.done',
  ):
    kill_when(start(config_path, tmp_path), pattern, tmp_path)
  finish(start(config_path, tmp_path))
  assert digests(tmp_path) == digests(expected)
  assert not list(tmp_path.rglob('*.tmp'))


def test_finished_stages_are_skipped(config_path, undisturbed):
  workdir, _ = undisturbed
  before = digests(workdir)
  output = finish(start(config_path, workdir))
  assert output.count('finished before') == 3 + 4 + 6 + 6
  assert digests(workdir) == before


def test_a_second_process_in_the_workdir_is_refused(config_path, tmp_path):
  finish(start(config_path, tmp_path, '--job=tokenize'))
  first = start(config_path, tmp_path, '--job=reference')
  try:
    deadline = time.monotonic() + 60
    lock = tmp_path / 'reference/.lock'
    while not (lock.exists() and lock.read_text().strip()):
      assert time.monotonic() < deadline
      time.sleep(0.01)
    first.send_signal(signal.SIGSTOP)  # It holds the lock for as long.
    second = start(config_path, tmp_path, '--job=reference')
    output, _ = second.communicate(timeout=60)
  finally:
    first.kill()
    first.wait()
  assert second.returncode == 2, output
  assert 'is being written by another process' in output
  assert str(first.pid) in output
