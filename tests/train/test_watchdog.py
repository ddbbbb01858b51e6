"""A run that hangs ends, and says where; one that works is left alone."""

import threading
import time

from infoprune_jax.train import watchdog


def test_names_the_step_and_dumps_stacks(capfd):
  left = threading.Event()
  codes = []

  def leave(code):
    codes.append(code)
    left.set()

  dog = watchdog.Watchdog('train top seed 0', 0.3 / 60, leave)
  with dog.watching():
    dog.step_ended(41)
    assert left.wait(10)
  assert codes == [watchdog.EXIT_CODE]
  said = capfd.readouterr().err
  assert 'train top seed 0: process 0 of 1' in said
  assert 'after step 41' in said
  assert 'test_watchdog.py' in said  # A stack.


def test_leaves_alone_what_works():
  codes = []
  dog = watchdog.Watchdog('a run', 0.5 / 60, codes.append)
  with dog.watching():
    for step in range(10):
      time.sleep(0.1)
      dog.step_ended(step)
  time.sleep(0.6)  # After the last step nobody looks.
  assert not codes


def test_none_for_zero_minutes():
  before = threading.active_count()
  with watchdog.Watchdog('a run', 0.0).watching():
    assert threading.active_count() == before
