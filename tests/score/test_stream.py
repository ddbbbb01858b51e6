"""Batches through a program: in order, some ahead, and never too many."""

import threading
import time

import jax
import numpy as np
import pytest

from infoprune_jax.config import MeshConfig
from infoprune_jax.model import partitioning
from infoprune_jax.score import stream

ROWS = 8


@pytest.fixture(scope='module')
def mesh():
  return partitioning.make_mesh(MeshConfig(data=8, fsdp=1, tensor=1))


@pytest.fixture(scope='module')
def program(mesh):
  return jax.jit(
    lambda params, batch: batch['x'] * params,
    out_shardings=partitioning.batch_sharding(mesh),
  )


def batch(number):
  return {'x': np.full((ROWS, 2), number, np.float32)}


def test_results_come_in_order_to_whom_they_belong(mesh, program):
  found = []

  def items():
    for number in range(20):
      yield (
        lambda nll, n=number: found.append((n, nll[0, 0])),
        np.float32(10.0),
        batch(number),
      )
      if number % 7 == 0:  # The end of a part.
        yield lambda nll, n=number: found.append((n, nll)), None, None

  times = stream.Times()
  stream.run(mesh, program, items(), times)
  expected = []
  for number in range(20):
    expected.append((number, 10.0 * number))
    expected += [(number, None)] if number % 7 == 0 else []
  assert found == expected
  assert times.batches == 20


def test_nothing_to_do(mesh, program):
  stream.run(mesh, program, iter(()), stream.Times())


def test_batches_are_made_ahead_but_not_all_at_once(mesh, program):
  made, read, ahead = [0], [0], []
  threads = set()

  def take(nll):
    read[0] += 1
    ahead.append(made[0] - read[0])
    time.sleep(0.005)  # A slow reader.

  def items():
    for number in range(60):
      threads.add(threading.current_thread())
      made[0] += 1
      yield take, np.float32(1.0), batch(number)

  stream.run(mesh, program, items(), stream.Times())
  assert threading.current_thread() not in threads and len(threads) == 1
  assert stream.RUNNING <= max(ahead) <= stream.RUNNING + stream.AHEAD + 1


@pytest.mark.parametrize('where', ['making', 'taking', 'running'])
def test_what_goes_wrong_is_raised_and_the_threads_end(mesh, program, where):
  before = threading.active_count()

  def fail(*_):
    raise ValueError(where)

  def items():
    yield (fail if where == 'taking' else lambda nll: None), 1.0, batch(0)
    if where == 'making':
      fail()
    while True:
      yield lambda nll: None, 1.0, batch(1)

  with pytest.raises(ValueError, match=where):
    stream.run(
      mesh, fail if where == 'running' else program, items(), stream.Times()
    )
  assert threading.active_count() == before


def test_times_tell_waiting_from_computing():
  times = stream.Times(free_since=100.0)
  times.note(started=103.0, ready=110.0)  # It waited 3 s for the first.
  times.note(started=105.0, ready=112.0)  # Given before it was free.
  times.note(started=113.0, ready=114.0)  # One second late.
  assert (times.waiting, times.computing) == (4.0, 10.0)
  assert times.share_waiting == pytest.approx(4 / 14)
