"""The watchdog: it ends a run that hangs, and leaves alone one that works."""

import contextlib
import threading
import time

from infoprune_jax.train import hooks


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
