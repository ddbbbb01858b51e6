"""Progress lines."""

import io
import logging
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
    'score: 4k of 6k tokens, 100 tokens/s, 0:00:20 left, shard 2'
  ]
  clock.now += 10
  bar.add(2000)
  bar.finish('all shards')
  assert (
    lines[-1] == 'score: done, 6k tokens in 0:00:20 (150 tokens/s), all shards'
  )


def test_lines_are_not_more_often_than_asked(lines):
  clock = Clock()
  bar = progress.Progress('x', 'B', 1000, every=5.0, clock=clock)
  for _ in range(100):
    clock.now += 0.5
    bar.add(10)
  assert len(lines) == 10


def test_no_progress_has_no_rate(lines):
  clock = Clock()
  bar = progress.Progress('x', 'B', 0, clock=clock)
  clock.now += 9
  bar.add(0)
  bar.finish()
  assert lines[0] == 'x: 0 of 0 B, 0 B/s, 0:00:00 left'


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
    (1000, '1k'),
    (12345, '12.3k'),
    (5e6, '5M'),
    (7.25e9, '7.25G'),
    (1.5e12, '1.5T'),
    (3e15, '3P'),
    (2e18, '2E'),
    (5e21, '5e+03E'),
  ],
)
def test_quantity(value, text):
  assert progress.quantity(value) == text


@pytest.mark.parametrize(
  'value, text', [(999.9, '1k'), (999_999, '1M'), (999_999_999, '1G')]
)
def test_a_quantity_that_rounds_up_takes_the_next_prefix(value, text):
  assert progress.quantity(value) == text


def test_a_call_that_says_nothing_is_told_of(lines):
  with progress.alive('trains', every=0.01):
    while len(lines) < 2:
      time.sleep(0.01)
  told = len(lines)
  assert lines[0] == 'trains: for 0:00:00'
  time.sleep(0.05)
  assert len(lines) == told
