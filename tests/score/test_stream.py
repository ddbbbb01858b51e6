"""Batches through a program: in order, some ahead, and never too many."""

import threading
import time

import jax
import numpy as np
import pytest

from infoprune_jax.config.experiment import MeshConfig
from infoprune_jax.model import mesh as mesh_lib, partitioning
from infoprune_jax.score import stream

rows = 8


@pytest.fixture(scope='module')
def mesh():
  return mesh_lib.make_mesh(MeshConfig(data=8, fsdp=1, tensor=1))


@pytest.fixture(scope='module')
def times_ten(mesh):
  return jax.jit(
    lambda batch: {'x': batch['x'] * 10.0},
    out_shardings=partitioning.batch_sharding(mesh),
  )


def batch(number):
  return {'x': np.full((rows, 2), number, np.float32)}


def test_results_come_in_order_to_whom_they_belong(mesh, times_ten):
  found = []
  times_two = jax.jit(lambda batch: {'x': batch['x'] * 2.0})

  def items():
    for number in range(20):
      yield stream.Item(
        lambda results, n=number: found.append(
          (n, *(result['x'][0, 0] for result in results))
        ),
        [times_ten, times_two],
        batch(number),
      )
      if number % 7 == 0:  # The end of a shard.
        yield stream.Item(lambda none, n=number: found.append((n, none)))

  times = stream.Times()
  stream.run(mesh, items(), times)
  expected = []
  for number in range(20):
    expected.append((number, 10.0 * number, 2.0 * number))
    expected += [(number, [])] if number % 7 == 0 else []
  assert found == expected
  assert times.batches == 20


def test_nothing_to_do(mesh):
  times = stream.Times()
  stream.run(mesh, iter(()), times)
  assert times.batches == 0


def test_batches_are_made_ahead_but_not_all_at_once(mesh, times_ten):
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
      yield stream.Item(take, [times_ten], batch(number))

  stream.run(mesh, items(), stream.Times())
  assert threading.current_thread() not in threads and len(threads) == 1
  assert stream.RUNNING <= max(ahead) <= stream.RUNNING + stream.AHEAD + 1


@pytest.mark.parametrize('where', ['making', 'taking', 'running'])
def test_what_goes_wrong_is_raised_and_the_threads_end(mesh, times_ten, where):
  before = threading.active_count()

  def fail(*_):
    raise ValueError(where)

  program = fail if where == 'running' else times_ten

  def items():
    on_result = fail if where == 'taking' else stream.ignore
    yield stream.Item(on_result, [program], batch(0))
    if where == 'making':
      fail()
    while True:
      yield stream.Item(stream.ignore, [program], batch(1))

  with pytest.raises(ValueError, match=where):
    stream.run(mesh, items(), stream.Times())
  assert threading.active_count() == before


def test_times_tell_waiting_from_computing():
  times = stream.Times(free_since=100.0)
  times.note(started=103.0, ready=110.0)  # It waited 3 s for the first.
  times.note(started=105.0, ready=112.0)  # Given before it was free.
  times.note(started=113.0, ready=114.0)  # One second late.
  assert (times.waiting, times.computing) == (4.0, 10.0)
