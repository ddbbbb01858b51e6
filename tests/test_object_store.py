"""The whole job in an object store: the bytes of a local workdir, if killed too."""

import hashlib
import pathlib
import re
import signal

import object_store
import pytest
from host_job import SERVER
from host_process import run
from object_store import BUCKET
from small_corpus import write_corpus

ROOT = pathlib.Path(__file__).parent.parent
CONFIG = f"""
from small_corpus import only_arms, small_config


def get_config():
  config = small_config('gs://{BUCKET}/corpus/*.jsonl')
  config.train.seeds = (0,)
  only_arms(config, 'random', 'top_nll')
  config.train.training.profile_from = 3
  config.train.training.profile_steps = 1
  config.report.bootstrap_samples = 20
  config.export.formats = (
    *('jsonl', 'parquet', 'array_record', 'scores'),
    *('megatron', 'mds', 'levanter'),
  )
  return config
"""
# What may differ: logs, and Orbax's times and random names.
FREE = re.compile(
  r'/tensorboard/|/timing\.jsonl|\.lock$|/checkpoints/|/profile/'
)
emulator = pytest.fixture(scope='module')(object_store.serving)


@pytest.fixture(scope='module')
def start(emulator, tmp_path_factory):
  """Runs the command line; returns its exit code, and what it prints."""
  folder = tmp_path_factory.mktemp('object_store')
  config = folder / 'config.py'
  config.write_text(CONFIG)
  write_corpus(folder / 'corpus.jsonl')
  emulator.put('corpus/a.jsonl', (folder / 'corpus.jsonl').read_bytes())

  def start(workdir, *arguments, killed_at_batch=0):
    argv = ['main', f'--config={config}', f'--workdir={workdir}', *arguments]
    output = folder / f'{len(list(folder.iterdir()))}.log'
    told = (killed_at_batch, signal.SIGKILL) if killed_at_batch else None
    process = SERVER.Process(
      target=run, args=(argv, str(output), 1, 0, told, emulator.environment)
    )
    process.start()
    process.join(240)
    return process.exitcode, output.read_text()

  return start


def digests(workdir: pathlib.Path) -> dict[str, str]:
  """Every file whose name and bytes are promised."""
  return {
    str(path.relative_to(workdir)): hashlib.sha256(
      path.read_bytes()
    ).hexdigest()
    for path in workdir.rglob('*')
    if path.is_file() and not FREE.search(str(path))
  }


@pytest.fixture(scope='module')
def killed(start):
  """The object store's workdir, of a job that was killed while it trained."""
  # The 11th batch of the first arm, after 3 shards of 3 tables and the 12
  # batches of the reference model: its first checkpoint is written, its second
  # begun.
  code, output = start(f'gs://{BUCKET}/work', killed_at_batch=32)
  assert code == -signal.SIGKILL, output
  code, output = start(f'gs://{BUCKET}/work')
  assert code == 0, output
  return output


def test_killed_and_resumed_it_equals_a_local_workdir(
  start, killed, emulator, tmp_path
):
  code, output = start(tmp_path / 'work')
  assert code == 0, output
  assert re.search(r'train random seed 0: resumed at step (5|10)\n', killed), (
    killed
  )
  expected = digests(tmp_path / 'work')
  assert expected and digests(emulator.folder('work')) == expected
  runs = emulator.folder('work/train/random/seed-0')
  names = {path.name.partition('.')[0] for path in runs.iterdir()}
  assert names == {
    *('begun', 'manifest', 'metrics', 'timing'),
    *('checkpoints', 'profile', 'tensorboard'),
  }
  assert len(list((runs / 'tensorboard').iterdir())) == 2  # Of two processes.


def test_it_is_verified_exported_and_finished(start, killed, emulator):
  code, output = start(f'gs://{BUCKET}/work', '--job=export')
  assert code == 0 and output.count('export: ') > 7, output
  before = digests(emulator.folder('work'))
  code, output = start(f'gs://{BUCKET}/work', '--job=verify')
  assert code == 0 and 'WRONG' not in output, output
  assert output.count('ok  ') == 26, output
  assert digests(emulator.folder('work')) == before
