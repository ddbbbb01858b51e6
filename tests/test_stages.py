"""The whole job as a process of its own: killed, resumed, and what it loads."""

import collections
import dataclasses
import hashlib
import json
import os
import pathlib
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time

import pytest

from infoprune_jax.stages import IN_ORDER

ROOT = pathlib.Path(__file__).parent.parent
# The config has no tables of the user's, and no classifiers.
JOBS = tuple(
  name for name in IN_ORDER if name not in ('join', 'classify', 'own_scores')
)
ONE_DEVICE = '--xla_force_host_platform_device_count=1'
CONFIG = """
from configs import base
from small_corpus import small_config


def get_config():
  config = small_config({path!r})
  config.corpus.num_workers = 2
  config.train.seeds = (0,)
  del config.select.arms.full
  config.select.arms.deduplicated = base.arm('distinct', 'near_duplicate_group')
  config.select.arms.own_text = base.arm(
    'bottom', 'repeated_tokens', fraction=0.5
  )
  config.train.arms = ('random', 'top_nll', 'deduplicated')
  # A benchmark that is the corpus itself.
  config.select.decontaminate = base.benchmarks({path!r})
  config.report.bootstrap_samples = 50
  config.reference.training.num_steps = 30
  config.score.per_device_batch_size = 1
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
# More for the stages with workers, or with shards.
STAGES_OF_A_ROUND = sorted(
  [*JOBS, 'tokenize', 'score', 'train'], key=list(JOBS).index
)
PROMPT = 10  # seconds; it takes a few hundredths where the machine is idle
# What may differ: logs, and Orbax's times and random names.
FREE = re.compile(r'/tensorboard/|/timing\.jsonl|\.lock$|/checkpoints/\d+/')


@pytest.fixture(scope='module')
def config_path(corpus_path, tmp_path_factory):
  path = tmp_path_factory.mktemp('config') / 'killed.py'
  path.write_text(CONFIG.format(path=corpus_path))
  return str(path)


@pytest.fixture(scope='module')
def compiled(tmp_path_factory):
  """Where compiled programs are kept, so that a restart takes seconds."""
  return tmp_path_factory.mktemp('compiled')


@pytest.fixture(scope='module')
def start(config_path, compiled):
  """Starts the job, in a process group of its own."""

  def start(workdir, *arguments: str, program=('-c', PROGRAM)):
    return subprocess.Popen(
      [
        sys.executable,
        *program,
        f'--config={config_path}',
        f'--workdir={workdir}',
        *arguments,
      ],
      cwd=ROOT,
      env={
        **os.environ,
        'PYTHONPATH': f'{ROOT}:{ROOT / "tests"}',
        'XLA_FLAGS': f'{os.environ["XLA_FLAGS"]} {ONE_DEVICE}',
        'JAX_COMPILATION_CACHE_DIR': str(compiled),
        'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
      },
      stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT,
      text=True,
      start_new_session=True,
    )

  return start


def finish(process: subprocess.Popen) -> str:
  output, _ = process.communicate(timeout=240)
  assert process.returncode == 0, output
  return output


def digests(workdir: pathlib.Path) -> dict[str, str]:
  """Every file whose name and bytes are promised; a checkpoint's name alone."""
  return {
    str(path.relative_to(workdir)): (
      hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ''
    )
    for path in workdir.rglob('*')
    if not FREE.search(str(path))
  }


class Watched:
  """A job whose stages are followed by what it logs."""

  def __init__(self, process: subprocess.Popen):
    self.process = process
    self.lines: list[str] = []
    self.finished = {'': time.monotonic()}  # When each stage ended, by job.
    self._news = threading.Condition()
    self._reader = threading.Thread(target=self._read)
    self._reader.start()

  def _read(self) -> None:
    for line in self.process.stdout:
      with self._news:
        self.lines.append(line)
        ended = re.search(r' (\w+): took ', line)
        if ended:
          self.finished[ended[1]] = time.monotonic()
        self._news.notify()

  def wait_for_stage(self, job: str) -> None:
    """Waits until a stage starts, which is when the one before it ends."""
    before = ['', *JOBS][list(JOBS).index(job)]
    with self._news:
      assert self._news.wait_for(
        lambda: before in self.finished or self.process.poll() is not None, 240
      ), self.lines

  def running(self) -> str:
    """The stage that is under way."""
    return [*JOBS, 'report'][len(self.finished) - 1]

  def wait(self) -> int:
    code = self.process.wait(timeout=240)
    self._reader.join()
    return code


@dataclasses.dataclass(frozen=True)
class Undisturbed:
  workdir: pathlib.Path
  output: str
  durations: dict[str, float]  # seconds, by job


@pytest.fixture(scope='module')
def undisturbed(start, tmp_path_factory) -> Undisturbed:
  # The report shows the name of its workdir.
  workdir = tmp_path_factory.mktemp('undisturbed') / 'work'
  watched = Watched(start(workdir))
  assert watched.wait() == 0, watched.lines
  times = list(watched.finished.values())
  durations = {
    job: end - begin
    for job, begin, end in zip(JOBS, times[:-1], times[1:], strict=True)
  }
  return Undisturbed(workdir, ''.join(watched.lines), durations)


def test_report_stands_alone_and_is_complete(undisturbed):
  page = (undisturbed.workdir / 'report/index.html').read_text()
  assert '<svg' in page and 'http-equiv="refresh"' not in page
  found = json.loads((undisturbed.workdir / 'report/report.json').read_text())
  assert {arm['name'] for arm in found['arms']} == {
    'deduplicated',
    'random',
    'top_nll',
  }


def test_scoring_and_training_load_neither_tensorflow_nor_duckdb(
  start, undisturbed, tmp_path
):
  """While they work: what is finished would load next to nothing."""
  workdir = tmp_path / 'work'
  made = {'reference': 'reference', 'score': 'scores'} | {
    job: f'{job}/random' for job in ('train', 'evaluate')
  }
  shutil.copytree(
    undisturbed.workdir,
    workdir,
    ignore=lambda path, names: [
      name
      for name in names
      if os.path.relpath(f'{path}/{name}', undisturbed.workdir) in made.values()
    ],
  )
  for job, folder in made.items():
    assert not (workdir / folder).exists()
    output = finish(start(workdir, f'--job={job}'))
    assert (workdir / folder).is_dir()
    assert f'{job}: took' in output
    assert "LOADED ['jax']" in output, output


def test_killed_at_random_moments_and_resumed(
  start, undisturbed, tmp_path, request, capsys
):
  """Rounds of kills, each in a workdir of its own, through all the stages."""
  num_kills = request.config.getoption('--num-kills')
  rng = random.Random(num_kills)
  expected = digests(undisturbed.workdir)
  kills: collections.Counter[tuple[str, str]] = collections.Counter()
  # Programs are compiled by now: stages are shorter than they were.
  durations = {j: 0.5 * time for j, time in undisturbed.durations.items()}
  begin = time.monotonic()
  while kills.total() < num_kills:
    # Where each of the folders is a pattern to others, and has two names.
    workdir = tmp_path / f'lr[3e-4]*?::{kills.total()}' / 'work'
    for job in STAGES_OF_A_ROUND[: num_kills - kills.total()]:
      named = rng.choice([str(workdir), f'file://{workdir}/'])
      watched = Watched(start(named, program=('-m', 'infoprune_jax.main')))
      watched.wait_for_stage(job)
      number = rng.choice([signal.SIGKILL, signal.SIGTERM])
      time.sleep(rng.random() * durations[job])
      running = watched.running()
      if running != job:
        durations[job] *= 0.7
      if not kill(watched, number):
        break
      kills[running, number.name] += 1
    finish(start(workdir, program=('-m', 'infoprune_jax.main')))
    assert digests(workdir) == expected, f'{workdir} after {dict(kills)}'
    shutil.rmtree(workdir)
  with capsys.disabled():
    print(f'\n{kills.total()} kills, {time.monotonic() - begin:.0f} s')
    for (job, name), count in sorted(kills.items()):
      print(f'  {job:10} {name} {count}')
  # A stage of a tenth of a second may be over before the signal comes.
  assert len({job for job, _ in kills}) >= min(num_kills, len(JOBS)) / 2


def kill(watched: Watched, number: signal.Signals) -> bool:
  """Kills a job; returns whether it was not at its end already."""
  begin = time.monotonic()
  watched.process.send_signal(number)
  code = watched.wait()
  output = ''.join(watched.lines)
  assert 'Traceback' not in output, output
  if code == 0:
    return False
  if number == signal.SIGTERM:
    assert time.monotonic() - begin < PROMPT
    # Before Python runs our code, a signal is the system's to handle.
    assert code in (-signal.SIGTERM, 128 + signal.SIGTERM), output
    assert code < 0 or 'run it again to continue' in output, output
  else:
    assert code == -signal.SIGKILL, output
  deadline = begin + PROMPT
  while alive(watched.process.pid):
    assert time.monotonic() < deadline, 'processes are left'
    time.sleep(0.02)
  return True


def alive(group: int) -> bool:
  """Whether a process group has a process left."""
  try:
    os.killpg(group, 0)
  except ProcessLookupError:
    return False
  return True


def test_finished_stages_are_skipped(start, undisturbed):
  workdir = undisturbed.workdir
  before = digests(workdir)
  output = finish(start(workdir))
  # Stages without arms, keep sets, and the stages `train` and `evaluate`.
  assert output.count('finished before') == 7 + 4 + 2
  assert digests(workdir) == before


def test_a_second_process_in_the_workdir_is_refused(start, tmp_path):
  finish(start(tmp_path, '--job=tokenize'))
  first = start(tmp_path, '--job=reference')
  try:
    deadline = time.monotonic() + 60
    lock = tmp_path / 'reference/.lock'
    while not (lock.exists() and lock.read_text().strip()):
      assert time.monotonic() < deadline
      time.sleep(0.01)
    first.send_signal(signal.SIGSTOP)  # It holds the lock for as long.
    second = start(tmp_path, '--job=reference')
    output, _ = second.communicate(timeout=60)
  finally:
    first.kill()
    first.wait()
  assert second.returncode == 2, output
  assert 'is being written by another process' in output
  assert str(first.pid) in output
