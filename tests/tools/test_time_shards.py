"""tools/time_shards.py: a plan is made from its file."""

import json
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]


def run(*command: str) -> str:
  done = subprocess.run(
    [sys.executable, *command], cwd=ROOT, capture_output=True, text=True
  )
  assert done.returncode == 0, done.stderr
  return done.stdout


def test_the_seconds_of_each_task_make_a_plan(tmp_path):
  file = tmp_path / 'timings.json'
  run(
    *('tools/time_shards.py', '--config=configs/tiny.py'),
    *(f'--workdir={tmp_path / "workdir"}', f'--timings={file}'),
  )
  timings = json.loads(file.read_text())
  stages, shards = timings['stages'], timings['shards']
  assert [*stages] == ['tokenize', 'statistics']
  by_function = {
    one['function']: one['seconds']
    for stage in stages.values()
    for one in stage['rounds']
  }
  for function in ('tokenize._write_shard', 'statistics._write_shard'):
    assert len(by_function[function]) == shards
    assert min(by_function[function]) > 0
  assert min(stage['rest'] for stage in stages.values()) > 0
  plan = run(
    *('tools/plan_tokens.py', f'--timings={file}', '--tokens=1e9'),
    *('--cheap_rate=1', '--dear_rate=1', '--dear_fraction=0.1'),
    *('--select_rate=1', '--dollars_per_chip_hour=1'),
    '--dollars_per_core_hour=1',
  )
  assert '| tokenize | ' in plan and '| statistics | ' in plan


@pytest.mark.parametrize(
  'flag, message',
  [
    ('--stages=score', "'tokenize'"),
    ('--config.corpus.num_shards=0', 'num_shards'),
    ('--workdir=.', 'is there already'),
  ],
)
def test_a_mistake_is_one_message(tmp_path, flag, message):
  flags = [f'--workdir={tmp_path / "new"}', f'--timings={tmp_path / "file"}']
  done = subprocess.run(
    [
      *(sys.executable, 'tools/time_shards.py', '--config=configs/tiny.py'),
      *(*flags, flag),
    ],
    cwd=ROOT,
    capture_output=True,
    text=True,
  )
  assert done.returncode == 1
  assert message in done.stderr and 'Traceback' not in done.stderr
  assert not [*tmp_path.iterdir()]
