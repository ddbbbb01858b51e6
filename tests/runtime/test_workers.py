"""Work in processes."""

import dataclasses
import operator
import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import pytest

from configs import base
from infoprune_jax.config.validation import UserError
from infoprune_jax.runtime import workers

SLEEPERS = """
import os, sys, time
from infoprune_jax import main
from infoprune_jax.runtime import workers

def sleep(folder):
  open(os.path.join(folder, str(os.getpid())), 'w').close()
  time.sleep(60)

if __name__ == '__main__':
  if 'stoppable' in sys.argv:
    main._leave_when_told()
  list(workers.run_all(sleep, sys.argv[1:2] * 2, 2))
"""


@pytest.mark.parametrize('num_workers', [0, 1, 2])
def test_results_come_in_the_order_of_tasks(num_workers):
  # More tasks than workers * 16: they travel in chunks.
  tasks = list(range(100))
  results = list(workers.run_all(operator.neg, tasks, num_workers))
  assert results == [-task for task in tasks]


def test_two_workers_are_two_processes():
  pids = list(workers.run_all(pid_of, range(8), 2))
  assert os.getpid() not in pids


def test_one_task_stays_in_this_process():
  assert list(workers.run_all(pid_of, [0], 8)) == [os.getpid()]


def test_apart_is_another_process_whatever_the_numbers():
  [pid] = workers.run_all(pid_of, [0], 1, force_subprocess=True)
  assert pid != os.getpid()
  assert list(workers.run_all(pid_of, [], 1, force_subprocess=True)) == []


def shared_pool(make_corpus, num_workers: int):
  config = make_corpus({'x': base.text('*')}, num_workers=num_workers)
  return workers.shared_pool(config, 'nowhere', 'tokenize')


def test_processes_that_are_kept_serve_the_calls_of_a_block(make_corpus):
  with shared_pool(make_corpus, 1):
    first = set(workers.run_all(pid_of, range(4), 2, force_subprocess=True))
    again = set(workers.run_all(pid_of, [0], 1, force_subprocess=True))
  assert len(first) == 1
  assert first == again != {os.getpid()}
  assert first.isdisjoint(workers.run_all(pid_of, range(4), 2))


def test_an_error_ends_the_processes_that_are_kept(make_corpus):
  with (
    pytest.raises(UserError, match='row 3 is bad'),
    shared_pool(make_corpus, 2),
  ):
    [pid, *_] = workers.run_all(pid_of, range(2), 2)
    list(workers.run_all(refuse, range(6), 2))
  wait_until(lambda: not alive(pid))


def handler_of(task):
  del task
  return signal.getsignal(signal.SIGINT)


def test_ctrl_c_is_for_the_parent():
  """A terminal sends it to workers too, which would each print a traceback."""
  found = set(workers.run_all(handler_of, range(4), 2))
  assert found == {signal.SIG_IGN}


def pid_of(task) -> int:
  del task
  return os.getpid()


def refuse(task):
  if task == 3:
    raise UserError('row 3 is bad')
  return task


@pytest.mark.parametrize('num_workers', [1, 2])
def test_an_error_comes_through_with_its_type(num_workers):
  results = workers.run_all(refuse, range(6), num_workers)
  assert [next(results) for _ in range(3)] == [0, 1, 2]
  with pytest.raises(UserError, match='row 3 is bad'):
    next(results)


@pytest.mark.parametrize('num_workers', [0, 1, 2])
def test_no_task_no_result(num_workers):
  assert list(workers.run_all(operator.neg, [], num_workers)) == []


def alive(pid: int) -> bool:
  """Whether a process runs; a zombie does not."""
  try:
    with open(f'/proc/{pid}/stat') as file:
      return file.read().rsplit(')', 1)[1].split()[0] != 'Z'
  except FileNotFoundError:
    return False


@pytest.mark.skipif(not os.path.isdir('/proc/self'), reason='needs /proc')
def test_workers_die_with_their_parent(tmp_path):
  script = tmp_path / 'sleepers.py'
  script.write_text(SLEEPERS)
  pids = tmp_path / 'pids'
  pids.mkdir()
  paths = {**os.environ, 'PYTHONPATH': os.pathsep.join(sys.path)}
  command = [sys.executable, script, pids]
  with subprocess.Popen(
    command, env=paths, stderr=subprocess.DEVNULL
  ) as parent:
    wait_until(lambda: len(list(pids.iterdir())) == 2)
    parent.send_signal(signal.SIGKILL)
  children = [int(path.name) for path in pids.iterdir()]
  wait_until(lambda: not any(alive(pid) for pid in children))


@dataclasses.dataclass(frozen=True)
class Deadly:
  """A task of which one ends its worker."""

  shard: int
  number: int  # of a signal; 0 to leave


def die(task: Deadly) -> int:
  if task.shard == 5:
    block = b'x' * (96 << 20)  # Pages are there once they are written.
    if task.number:
      os.kill(os.getpid(), task.number)
    os._exit(len(block) and 3)
  time.sleep(0.01)
  return task.shard


@pytest.mark.parametrize(
  ('number', 'expected'),
  [
    (signal.SIGKILL, 'was killed by SIGKILL'),
    (signal.SIGSEGV, 'was killed by SIGSEGV'),
    (signal.SIGABRT, 'was killed by SIGABRT'),
    (0, 'ended with code 3'),
  ],
)
def test_a_killed_worker_is_named_with_its_task(number, expected):
  tasks = [Deadly(shard, int(number)) for shard in range(8)]
  with pytest.raises(UserError) as error:
    list(workers.run_all(die, tasks, 2))
  message = str(error.value)
  assert re.match(
    rf'Worker [12] of 2, pid \d+, {expected}, at shard 5 \(6 of 8\)\. ', message
  )
  assert 'finished shards are kept' in message
  if number == signal.SIGKILL:
    assert 'fewer corpus.num_workers (here 2)' in message
    # Of all processes that this one has started, which may be the tests' own.
    [size, unit] = re.search(
      r'largest worker had ([\d.]+) ([MG])B', message
    ).groups()
    assert float(size) * {'M': 1, 'G': 1000}[unit] > 96


def test_a_killed_worker_of_a_block_is_named_too(make_corpus):
  tasks = [Deadly(shard, int(signal.SIGKILL)) for shard in range(8)]
  with (
    pytest.raises(UserError, match='SIGKILL, at shard 5'),
    shared_pool(make_corpus, 2),
  ):
    list(workers.run_all(pid_of, range(4), 2))
    list(workers.run_all(die, tasks, 2))


@pytest.mark.skipif(not os.path.isdir('/proc/self'), reason='needs /proc')
@pytest.mark.parametrize('delay', [0, 0.2])
def test_ctrl_c_while_workers_start_is_one_line(tmp_path, delay):
  """A terminal sends it to all of them, whatever each is at."""
  script = tmp_path / 'sleepers.py'
  script.write_text(SLEEPERS)
  paths = {**os.environ, 'PYTHONPATH': os.pathsep.join(sys.path)}
  with subprocess.Popen(
    [sys.executable, script, tmp_path, 'stoppable'],
    env=paths,
    stderr=subprocess.PIPE,
    text=True,
    start_new_session=True,
  ) as parent:
    wait_until(lambda: has_worker(parent.pid))
    time.sleep(delay)
    os.killpg(parent.pid, signal.SIGINT)
    errors = parent.stderr.read()
  assert errors == 'infoprune_jax: stopped; run it again to continue.\n'
  assert parent.returncode == 128 + signal.SIGINT


def has_worker(pid: int) -> bool:
  children = pathlib.Path(f'/proc/{pid}/task/{pid}/children').read_text()
  return any(
    b'spawn_main' in pathlib.Path(f'/proc/{child}/cmdline').read_bytes()
    for child in children.split()
  )


def wait_until(condition) -> None:
  for _ in range(400):
    if condition():
      return
    time.sleep(0.05)
  raise AssertionError('waited for 20 seconds')
