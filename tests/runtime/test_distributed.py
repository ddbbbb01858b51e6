"""What processes tell each other, and who is late, without processes."""

import threading

import jax
import pytest

from infoprune_jax import stages
from infoprune_jax.config.validation import UserError
from infoprune_jax.runtime import distributed, peers


class Store:
  """The key-value store of a job in one process."""

  def __init__(self):
    self.values: dict[str, str] = {}
    self.missing: list[str] = []

  def key_value_set(self, key, value, allow_overwrite=False):
    assert allow_overwrite or key not in self.values
    self.values[key] = value

  def key_value_dir_get(self, folder):
    return [
      (key, value)
      for key, value in self.values.items()
      if key.startswith(f'{folder}/')
    ]

  def blocking_key_value_get(self, key, timeout_in_ms):
    if key not in self.values:
      raise jax.errors.JaxRuntimeError('DEADLINE_EXCEEDED: no such key')
    return self.values[key]

  def wait_at_barrier(self, name, timeout_in_ms):
    if self.missing:
      raise jax.errors.JaxRuntimeError(
        'DEADLINE_EXCEEDED: Barrier timed out. Id: x. '
        '# of tasks that reached the barrier: 1/3.\nThe first task at the '
        'barrier: 0. Some timed out task names:\n'
        + '\n'.join(self.missing)
        + '\n\nRPC: /xla.coordination'
      )


@pytest.fixture
def store(monkeypatch) -> Store:
  """This process as the first of three."""
  made = Store()
  monkeypatch.setattr(distributed, '_client', lambda: made)
  monkeypatch.setattr(distributed, 'count', lambda: 3)
  monkeypatch.setattr(distributed, 'index', lambda: 0)
  monkeypatch.setattr(distributed, '_calls', {})
  return made


def test_one_process_has_nobody_to_wait_for():
  assert (distributed.count(), distributed.index()) == (1, 0)
  distributed.barrier('x')
  assert distributed.broadcast('x', {'a': 1}) == {'a': 1}
  assert distributed.all_gather('x', 3) == [3]
  distributed.leave()


def test_values_are_gathered_in_order(store):
  store.values['infoprune_jax/gather/x/1/1'] = '"b"'
  store.values['infoprune_jax/gather/x/1/2'] = '"c"'
  assert distributed.all_gather('x', 'a') == ['a', 'b', 'c']
  # Another call is another gathering.
  with pytest.raises(UserError, match='Process 1 of 3'):
    distributed.all_gather('x', 'a')


def test_who_is_late_is_named(store):
  store.values['infoprune_jax/gather/the plan/1/1'] = '1'
  with pytest.raises(UserError, match="Process 2 of 3 .* 'the plan' .* 7 s"):
    distributed.all_gather('the plan', 0, timeout=7)
  store.missing = ['1', '2']
  with pytest.raises(UserError, match="Process 1, 2 of 3 .* 'the end'"):
    distributed.barrier('the end')


def test_a_process_without_a_sign_of_life_is_named_to_all(monkeypatch):
  store, now, told = Store(), [0.0], []
  monkeypatch.setattr(peers.time, 'sleep', lambda seconds: None)
  watches = [
    peers.Watch(
      store, process, 3, 60, lambda *why: told.append(why), clock=lambda: now[0]
    )
    for process in range(3)
  ]
  going_on = threading.Event()
  for second in range(200):
    now[0] = float(second)
    for watch in watches[: 3 if second < 100 else 2]:
      watch.look(going_on)
    if told:
      break
  assert 159 <= second <= 161
  assert len(told) == 2
  for message, code in told:
    assert 'process 2 of 3 sent no heartbeat for 60 s' in message
    assert code == peers.LOST_EXIT_CODE == 75


def test_process_0_that_stood_still_blames_itself():
  """The heartbeats of the others were not written meanwhile."""
  store, now, told = Store(), [0.0], []
  watch = peers.Watch(
    store, 0, 3, 60, lambda *why: told.append(why), clock=lambda: now[0]
  )
  watch.look(threading.Event())
  now[0] = 61.0
  watch.look(threading.Event())
  [(message, code)] = told
  assert 'it stood still for 61 s' in message
  assert code == peers.LOST_EXIT_CODE
  assert not any('lost' in key for key in store.values)


def test_why_a_process_stops_is_told_to_the_others():
  store, told = Store(), []
  store.values['infoprune_jax/failed/1'] = 'process 1 stopped: no space'
  watch = peers.Watch(store, 2, 3, 60, told.append)
  watch.look(threading.Event())
  assert told == ['process 1 stopped: no space']
  leaving = threading.Event()
  leaving.set()
  watch.look(leaving)
  assert len(told) == 1


def test_who_lost_another_tells_it_with_the_code_to_start_again(
  store, monkeypatch
):
  told = []
  monkeypatch.setattr(
    distributed, 'stop_process', lambda *why: told.append(why)
  )
  monkeypatch.setattr(peers.time, 'sleep', lambda seconds: None)
  watch = peers.Watch(store, 2, 3, 60, lambda *why: told.append(why))
  monkeypatch.setattr(distributed, '_watch', watch)
  monkeypatch.setattr(distributed, '_stop', threading.Event())
  store.missing = ['1']
  with pytest.raises(distributed.ProcessLost) as lost:
    distributed.barrier('the end')
  distributed.abandon(lost.value)
  watch.look(threading.Event())
  assert [code for _, code in told[:1]] == [75]
  assert told[-1][1] == 75
  assert 'Process 1 of 3' in told[-1][0]


class Ticks(threading.Event):
  """Lets a clock pass instead of waiting; set when the ticks are over."""

  def __init__(self, now: list[float], passes: list[float]):
    super().__init__()
    self.now, self.passes = now, passes

  def wait(self, timeout=None):
    if not self.passes:
      return True
    self.now[0] += self.passes.pop(0)
    return False


@pytest.mark.parametrize(
  ('passes', 'message'),
  [
    ([1.0] * 59, ''),
    ([1.0] * 61, 'process 0 of 3 sent no heartbeat for 60 s'),
    # What this process slept is not held against another.
    ([1.0] * 30 + [50.0] + [1.0] * 20, ''),
    ([1.0, 61.0], 'it stood still for 61 s, and counts as lost'),
  ],
)
def test_a_store_that_does_not_answer_is_process_0_frozen(passes, message):
  now, told = [0.0], []
  watch = peers.Watch(
    Store(), 1, 3, 60, lambda *why: told.append(why), clock=lambda: now[0]
  )
  watch.guard(Ticks(now, passes))
  assert bool(told) == bool(message)
  for reason, code in told[:1]:
    assert message in reason
    assert code == peers.LOST_EXIT_CODE


def test_who_is_told_to_stop_is_no_failure():
  store, told = Store(), []
  store.values['infoprune_jax/told/1'] = 'process 1 was told to stop (SIGINT).'
  watch = peers.Watch(store, 2, 3, 60, lambda *why: told.append(why))
  watch.look(threading.Event())
  assert told == [('process 1 was told to stop (SIGINT).', 143)]


def test_jax_waits_for_longer_than_we_do(monkeypatch):
  assert distributed._jax_timeout(599.5) == {'heartbeat_timeout_seconds': 660}
  monkeypatch.setattr(distributed.jax.distributed, 'initialize', lambda: None)
  assert distributed._jax_timeout(599.5) == {}


def test_stages_of_one_host_refuse_more(small, tmp_path, monkeypatch):
  monkeypatch.setattr(distributed, 'count', lambda: 2)
  for job in ('select', None):
    with pytest.raises(UserError) as error:
      stages.run(small, str(tmp_path), job)
    for word in (
      job or 'all',
      '2 processes',
      '--job=evaluate and --job=verify',
    ):
      assert word in str(error.value)
  assert not list(tmp_path.iterdir())
  # The devices here know of no second process.
  with pytest.raises(UserError, match='belong to 1 processes'):
    stages.run(small, str(tmp_path), 'score')
