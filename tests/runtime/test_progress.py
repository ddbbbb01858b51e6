"""Progress lines."""

import io
import logging
import os
import time

import pytest

from infoprune_jax.runtime import progress


@pytest.fixture
def lines(monkeypatch):
  """What is logged."""
  found = []
  handler = logging.Handler()
  handler.emit = lambda record: found.append(record.getMessage())
  monkeypatch.setattr(progress.logger, 'handlers', [handler])
  monkeypatch.setattr(progress.logger, 'level', logging.INFO)
  progress.logger.manager._clear_cache()  # What other tests asked it.
  yield found
  progress.logger.manager._clear_cache()


class Clock:
  now = 100.0

  def __call__(self) -> float:
    return self.now


def test_rate_and_time_left_leave_out_what_was_done_before(lines):
  clock = Clock()
  bar = progress.Progress('score', 'tokens', 6000, done=3000, clock=clock)
  clock.now += 10
  bar.add(1000, 'shard 2')
  assert lines == [
    'score: 66.7 % of 6 k tokens, 100 tokens/s, 0:00:20 left, shard 2'
  ]
  clock.now += 10
  bar.add(2000)
  bar.finish('all shards')
  assert (
    lines[-1] == 'score: done, 6 k tokens in 0:00:20 (150 tokens/s), all shards'
  )


def test_lines_are_not_more_often_than_asked(lines):
  clock = Clock()
  bar = progress.Progress('x', 'B', 1000, every=5.0, clock=clock)
  for _ in range(100):
    clock.now += 0.5
    bar.add(10)
  assert len(lines) == 10


def test_long_work_has_a_line_each_minute(lines):
  clock = Clock()
  bar = progress.Progress('x', 'B', 1e6, every=5.0, clock=clock)
  for _ in range(5 * 3600):
    clock.now += 1
    bar.add(1)
  assert len(lines) < 10 + 24 + 5 * 60


def test_no_progress_has_no_rate(lines):
  clock = Clock()
  bar = progress.Progress('x', 'B', 0, clock=clock)
  clock.now += 9
  bar.add(0)
  bar.finish()
  assert lines[0] == 'x: 0.0 % of 0 B, 0 B/s, 0:00:00 left'


def test_messages_go_to_stderr_once(monkeypatch):
  stream = io.StringIO()
  monkeypatch.setattr('sys.stderr', stream)
  monkeypatch.setattr(progress.logger, 'handlers', [])
  monkeypatch.setattr(progress.logger, 'propagate', True)
  monkeypatch.setattr(progress.logger, 'level', logging.NOTSET)
  progress.log_to_stderr()
  progress.log_to_stderr()
  progress.logger.info('hello')
  assert stream.getvalue().count('hello\n') == 1


@pytest.mark.parametrize(
  'seconds, text',
  [(0, '0:00:00'), (59.6, '0:01:00'), (3599, '0:59:59'), (90061, '25:01:01')],
)
def test_duration(seconds, text):
  assert progress.duration(seconds) == text


@pytest.mark.parametrize(
  'value, text',
  [
    (0, '0'),
    (0.25, '0.25'),
    (999, '999'),
    (1000, '1 k'),
    (12345, '12.3 k'),
    (5e6, '5 M'),
    (7.25e9, '7.25 G'),
    (1.5e12, '1.5 T'),
    (3e15, '3 P'),
    (2e18, '2 E'),
    (5e21, '5e+03 E'),
  ],
)
def test_quantity(value, text):
  assert progress.quantity(value) == text


@pytest.mark.parametrize(
  'value, unit, text',
  [
    (999, 'tokens', '999 tokens'),
    (12345, 'tokens', '12.3 k tokens'),
    (12345, 'tokens/s', '12.3 k tokens/s'),
    (2.5e6, 'B', '2.5 MB'),
    (2.5e6, 'B/s', '2.5 MB/s'),
    (2.5, 'B/s', '2.5 B/s'),
    (4e9, 'FLOP/s', '4 GFLOP/s'),
    (7e3, 'Bytes', '7 k Bytes'),
  ],
)
def test_a_prefix_is_joined_to_symbols_alone(value, unit, text):
  assert progress.quantity(value, unit) == text


@pytest.mark.parametrize(
  'value, text', [(999.9, '1 k'), (999_999, '1 M'), (999_999_999, '1 G')]
)
def test_a_quantity_that_rounds_up_takes_the_next_prefix(value, text):
  assert progress.quantity(value) == text


def test_a_call_that_says_nothing_is_told_of(lines):
  with progress.alive('train', every=0.01):
    while len(lines) < 2:
      time.sleep(0.01)
  told = len(lines)
  assert lines[0] == 'train: running for 0:00:00'
  time.sleep(0.05)
  assert len(lines) == told


def test_a_call_that_logs_is_not_told_of(monkeypatch):
  stream = io.StringIO()
  monkeypatch.setattr('sys.stderr', stream)
  monkeypatch.setattr(progress.logger, 'handlers', [])
  monkeypatch.setattr(progress.logger, 'propagate', True)
  monkeypatch.setattr(progress.logger, 'level', logging.NOTSET)
  progress.log_to_stderr()
  with progress.alive('train', every=0.5):
    for _ in range(20):
      progress.logger.info('step')
      time.sleep(0.05)
  assert 'running' not in stream.getvalue()


class Terminal(io.StringIO):
  """A terminal of 40 columns, and what its last lines show."""

  def isatty(self) -> bool:
    return True

  def fileno(self) -> int:
    return 2

  def shown(self) -> list[str]:
    screen = []
    for line in self.getvalue().split('\n'):
      cells: list[str] = []
      for written in line.split('\r'):
        cells[: len(written)] = written
      screen.append(''.join(cells).rstrip())
    return screen


@pytest.fixture
def terminal(monkeypatch):
  """A terminal on standard error, which the log goes to."""
  stream = Terminal()
  monkeypatch.setattr('sys.stderr', stream)
  monkeypatch.setattr(
    progress.os, 'get_terminal_size', lambda _: os.terminal_size((40, 24))
  )
  monkeypatch.setattr(progress.logger, 'handlers', [])
  monkeypatch.setattr(progress.logger, 'propagate', True)
  monkeypatch.setattr(progress.logger, 'level', logging.NOTSET)
  progress.log_to_stderr()
  yield stream
  progress.logger.manager._clear_cache()


def test_a_terminal_has_one_live_line(terminal):
  clock = Clock()
  bar = progress.Progress('score', 'tokens', 6000, clock=clock)
  for _ in range(2):
    clock.now += 1
    bar.add(1000)
  assert terminal.shown() == ['score: 33.3 % of 6 k tokens, 1 k tokens']
  progress.logger.info('hello')
  assert terminal.shown()[0].endswith('hello')
  assert terminal.shown()[1:] == ['score: 33.3 % of 6 k tokens, 1 k tokens']
  clock.now += 4
  bar.add(4000)
  bar.finish()
  assert len(terminal.shown()) == 3
  assert 'score: done, 6 k tokens' in terminal.shown()[1]
  assert terminal.shown()[2] == ''


def test_a_live_line_is_wiped(terminal):
  with progress.alive('train', every=0.01):
    while not terminal.getvalue():
      time.sleep(0.01)
    assert terminal.shown() == ['train: running for 0:00:00']
    clock = Clock()
    bar = progress.Progress('train full', 'tokens', 10, clock=clock)
    clock.now += 5
    bar.add(1)
    time.sleep(0.05)  # `alive` gives way to it.
    assert terminal.shown() == ['train full: 10.0 % of 10 tokens, 0.2 to']
  assert terminal.shown() == ['']
  written = terminal.getvalue()
  progress.wipe()
  assert terminal.getvalue() == written


def test_only_the_first_process_has_a_live_line(terminal):
  progress.log_to_stderr(process=1)
  clock = Clock()
  bar = progress.Progress('score', 'tokens', 6000, clock=clock)
  clock.now += 10
  bar.add(1000)
  bar.finish()
  assert terminal.getvalue() == ''


def test_a_log_has_no_control_characters(monkeypatch):
  stream = io.StringIO()
  monkeypatch.setattr('sys.stderr', stream)
  monkeypatch.setattr(progress.logger, 'handlers', [])
  monkeypatch.setattr(progress.logger, 'propagate', True)
  monkeypatch.setattr(progress.logger, 'level', logging.NOTSET)
  progress.log_to_stderr()
  clock = Clock()
  bar = progress.Progress('score', 'tokens', 6000, clock=clock)
  clock.now += 10
  bar.add(1000)
  progress.wipe()
  assert stream.getvalue().count('\n') == 1
  assert stream.getvalue()[:-1].isprintable()
