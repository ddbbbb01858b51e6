"""When the loop calls hooks; the watchdog."""

import contextlib
import threading
import time
from types import SimpleNamespace

from infoprune_jax.train import hooks, loop


class Recorder(hooks.Hook):
  """Is due after the second step, and asks to stop with the third."""

  def __init__(self, name, events):
    self._name, self._events = name, events

  def is_due(self, number):
    return number == 2

  def request(self):
    return 'stop' if len(self._events) == 6 else ''

  def __call__(self, step):
    self._events.append((self._name, step.number, step.state, step.requests))


def test_hooks_run_during_the_next_step_unless_one_is_due():
  events = []
  no, stop = ({'stop': asked, 'save': False} for asked in (False, True))

  def take_step(state, requests):
    events.append(('step', state + 1))
    metrics = {'loss': 0.5, 'bad_step': False, 'requests': requests}
    return state + 1, metrics

  session = SimpleNamespace(
    first=0,
    run=SimpleNamespace(
      training=SimpleNamespace(num_steps=4),
      reader=SimpleNamespace(batches=lambda *_: iter('abcd')),
    ),
    timing=SimpleNamespace(waiting=lambda _: contextlib.nullcontext()),
  )
  program = SimpleNamespace(
    sequences=None,
    step_for=lambda _: take_step,
    put=lambda _, requests: requests,
  )
  recorders = [Recorder(name, events) for name in ('first', 'second')]
  assert loop._take_steps(session, program, recorders, 0) == 4
  assert events == [
    ('step', 1),
    ('step', 2),
    *(('first', 1, None, no), ('second', 1, None, no)),
    *(('first', 2, 2, no), ('second', 2, 2, no)),
    ('step', 3),
    ('step', 4),
    *(('first', 3, None, stop), ('second', 3, None, stop)),
    *(('first', 4, 4, no), ('second', 4, 4, no)),
  ]


def step(number):
  return hooks.Step(number, None, {}, False, {})


def test_names_the_step_and_dumps_stacks(capfd):
  left = threading.Event()
  codes = []

  def leave(code):
    codes.append(code)
    left.set()

  with contextlib.closing(
    hooks.Watchdog('train top seed 0', 0.3 / 60, leave)
  ) as watchdog:
    watchdog(step(41))
    assert left.wait(10)
  assert codes == [hooks.WATCHDOG_EXIT_CODE]
  said = capfd.readouterr().err
  assert 'train top seed 0: process 0 of 1' in said
  assert 'after step 41' in said
  assert 'test_hooks.py' in said  # A stack.


def test_leaves_alone_what_works():
  codes = []
  with contextlib.closing(
    hooks.Watchdog('a run', 0.5 / 60, codes.append)
  ) as watchdog:
    for number in range(10):
      time.sleep(0.1)
      watchdog(step(number))
  time.sleep(0.6)  # After the last step nobody looks.
  assert not codes


def test_no_thread_for_zero_minutes():
  before = threading.active_count()
  with contextlib.closing(hooks.Watchdog('a run', 0.0)):
    assert threading.active_count() == before
