"""A disk that is full or cannot be written: one message, and nothing is lost."""

import os
import pathlib
import re
import shutil
import subprocess
import sys

import pytest
from small_corpus import only_arms, small_config

from infoprune_jax import stages
from infoprune_jax.config import experiment as config_lib
from infoprune_jax.config.experiment import Config
from infoprune_jax.config.validation import UserError
from infoprune_jax.runtime import files

ROOT = pathlib.Path(__file__).parent.parent
ONE_DEVICE = '--xla_force_host_platform_device_count=1'
CONFIG = """
from small_corpus import only_arms, small_config


def get_config():
  config = small_config({path!r})
  only_arms(config, 'random')
  config.train.seeds = (0,)
  return config
"""
# Where each stage is stopped: bytes that it is left.
LEFT = {
  'tokenize': (0, 5_000, 40_000),
  'reference': (5_000, 200_000),
  'statistics': (0,),
  'near_duplicates': (2_000,),
  'score': (5_000,),
  'select': (0,),
  'selection_report': (5_000,),
  'train': (100_000,),
  'evaluate': (5_000,),
  'report': (5_000,),
}


@pytest.fixture(scope='module')
def config(corpus_path) -> Config:
  edits = small_config(corpus_path)
  only_arms(edits, 'random', 'full')  # One alone makes no comparison.
  edits.train.seeds = (0,)
  edits.report.bootstrap_samples = 20
  return config_lib.from_mapping(edits)


def mounted(*arguments: str) -> bool:
  if not shutil.which('mount'):
    return False
  return not subprocess.run(
    ['mount', *arguments], capture_output=True
  ).returncode


@pytest.fixture
def disk(tmp_path):
  """A file system of its own, of 16 MB, in memory."""
  path = tmp_path / 'disk'
  path.mkdir()
  if not mounted('-t', 'tmpfs', '-o', 'size=16m', 'tmpfs', str(path)):
    pytest.skip('mounting a file system needs root, on Linux')
  yield path
  subprocess.run(['umount', '--lazy', str(path)], check=True)


def fill(disk: pathlib.Path, left: int) -> None:
  """Leaves about as many bytes on the disk."""
  status = os.statvfs(disk)
  free = status.f_bavail * status.f_frsize
  with open(disk / 'filler', 'wb') as file:
    os.posix_fallocate(file.fileno(), 0, free - left)


def contents(workdir: pathlib.Path) -> dict[str, bytes]:
  """Every file whose bytes are promised."""
  free = re.compile(r'/tensorboard/|/timing\.jsonl|\.lock$|/checkpoints/\d+/')
  return {
    str(path.relative_to(workdir)): path.read_bytes()
    for path in workdir.rglob('*')
    if path.is_file() and not free.search(str(path))
  }


def test_a_full_disk_in_any_stage(config, disk, tmp_path):
  """Each stage is stopped by it, some more than once, and goes on."""
  expected, workdir = tmp_path / 'work', disk / 'work'
  for job, stops in LEFT.items():
    stages.STAGES[job].run(config, str(expected))
    for left in stops:
      fill(disk, left)
      before = set(contents(workdir))
      with pytest.raises(Exception) as caught:
        stages.STAGES[job].run(config, str(workdir))
      assert files.refusal(caught.value).startswith('No space left'), (
        job,
        left,
        caught.value,
      )
      new = set(contents(workdir)) - before
      assert not [name for name in new if name.endswith('.tmp')]
      (disk / 'filler').unlink()
    stages.STAGES[job].run(config, str(workdir))
    assert contents(workdir) == contents(expected), job


def run(config_path, workdir, limit: str = '') -> subprocess.CompletedProcess:
  """`python -m infoprune_jax.main`, after a command of the shell."""
  command = [
    sys.executable,
    '-m',
    'infoprune_jax.main',
    f'--config={config_path}',
    f'--workdir={workdir}',
  ]
  return subprocess.run(
    ['bash', '-c', f'{limit}\nexec "$@"', 'bash', *command],
    cwd=ROOT,
    env={
      **os.environ,
      # JAX warns of each program that it cannot keep there.
      'JAX_COMPILATION_CACHE_DIR': '',
      'PYTHONPATH': f'{ROOT}:{ROOT / "tests"}',
      'XLA_FLAGS': f'{os.environ["XLA_FLAGS"]} {ONE_DEVICE}',
    },
    capture_output=True,
    text=True,
    timeout=240,
  )


@pytest.fixture(scope='module')
def config_path(corpus_path, tmp_path_factory) -> str:
  path = tmp_path_factory.mktemp('config') / 'stopped.py'
  path.write_text(CONFIG.format(path=corpus_path))
  return str(path)


def one_message(result: subprocess.CompletedProcess) -> str:
  """The message of a refused job, which is all that it says beside progress."""
  assert result.returncode == 2, result.stderr
  lines = result.stderr.splitlines()
  said = [line for line in lines if not re.match(r'\d\d:\d\d:\d\d ', line)]
  assert len(said) == 1, result.stderr
  return said[0]


def test_files_that_may_not_grow(config_path, tmp_path):
  """Works on any machine, for any user."""
  workdir = tmp_path / 'work'
  # A checkpoint is larger, and other files are not.
  said = one_message(run(config_path, workdir, 'ulimit -f 100'))
  assert 'File too large' in said and 'ulimit -f' in said
  assert 'run it again' in said and str(workdir) in said
  assert not list(workdir.rglob('*.tmp'))
  assert list(workdir.glob('token_store/manifest.json'))
  assert not list(workdir.glob('reference/manifest.json'))


def test_a_full_disk_is_said_once(config_path, disk):
  """Threads of libraries meet it too, and keep quiet."""
  fill(disk, 250_000)
  said = one_message(run(config_path, disk / 'work'))
  assert 'No space left on device' in said and 'Free some space' in said
  assert list(disk.glob('work/token_store/manifest.json'))
  assert not list(disk.glob('work/reference/manifest.json'))


def test_a_workdir_that_cannot_be_written(config_path, disk):
  assert mounted('-o', 'remount,ro', str(disk))
  said = one_message(run(config_path, disk / 'work'))
  assert 'work cannot be written: Read-only file system' in said
  assert not list(disk.iterdir())


def test_a_folder_that_is_not_ours(config, tmp_path):
  if os.geteuid() == 0:
    pytest.skip('root may write anywhere')
  (tmp_path / 'work').mkdir(mode=0o500)
  with pytest.raises(UserError, match='cannot be written: Permission denied'):
    stages.run(config, str(tmp_path / 'work'), 'tokenize')
