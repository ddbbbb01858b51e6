"""Rates and goodput, on a clock of the test's."""

import json

import pytest

from infoprune_jax.runtime import files
from infoprune_jax.train import timing


class Clock:
  def __init__(self):
    self.now = 1000.0

  def __call__(self):
    return self.now


def begin(tmp_path, clock, first=0, peak=0.0):
  cost = timing.StepCost(100, 5e9, peak)
  return timing.Timing(
    str(tmp_path), first, cost, clock(), files.write_file, clock
  )


def lines(tmp_path):
  text = (tmp_path / timing.FILE).read_text()
  return [json.loads(line) for line in text.splitlines()]


def test_waits_are_no_time_of_steps(tmp_path):
  clock = Clock()
  timed = begin(tmp_path, clock, peak=1e10)
  clock.now += 6.0
  for what, seconds in (('input', 1.0), ('evaluation', 2.0), ('input', 1.0)):
    with timed.waiting(what):
      clock.now += seconds
  rates = timed.write(5)
  assert rates['seconds'] == 10.0
  assert rates['tokens_per_second'] == 50.0
  assert rates['input_fraction'] == 0.2
  assert rates['evaluation_fraction'] == 0.2
  assert rates['checkpoint_fraction'] == 0.0
  assert rates['goodput'] == 0.6
  assert rates['flops_per_second'] == 5 * 5e9 / 10
  assert rates['mfu'] == pytest.approx(5 * 5e9 / 10 / 1e10)
  clock.now += 10.0
  assert timed.write(10)['goodput'] == 0.8


def test_steps_that_were_lost_and_the_time_between_are_no_goodput(tmp_path):
  clock = Clock()
  timed = begin(tmp_path, clock)
  for step in (5, 10):
    clock.now += 10.0
    timed.write(step)
  with open(tmp_path / timing.FILE, 'a') as file:
    file.write('{"step": 15, "ti')  # A kill.
  clock.now += 20.0
  again = begin(tmp_path, clock, first=5)
  assert [line['step'] for line in lines(tmp_path)] == [0, 5]
  clock.now += 10.0
  rates = again.write(10)
  assert rates['goodput'] == pytest.approx(20 / 50)
  assert 'mfu' not in rates  # Of a device whose peak is not known.
  assert [line['step'] for line in lines(tmp_path)] == [0, 5, 10]


@pytest.mark.parametrize(
  'damage',
  [
    *('{"step": 5, "ti\n', '[]\n', '\x00\n', '{}\n', 'null\n'),
    *('{"step": 5}\n', '[' * 100_000 + '\n', '{"step": true}\n'),
    '{"step": 5, "time": "x", "productive": 1.0}\n',
    '{"step": 5, "time": 1e999, "productive": 1.0}\n',
    '{"step": 5, "time": 1.0, "productive": NaN}\n',
    f'{{"step": {"9" * 5000}, "time": 1.0, "productive": 1.0}}\n',
    '{"step": Infinity, "time": 1.0, "productive": 1.0}\n',
  ],
)
def test_what_is_damaged_costs_the_rates_alone(tmp_path, caplog, damage):
  clock = Clock()
  begin(tmp_path, clock).write(5)
  with open(tmp_path / timing.FILE, 'a') as file:
    file.write(damage)
  begin(tmp_path, clock, first=5)
  assert 'timing.jsonl is damaged' in caplog.text
  assert [line['step'] for line in lines(tmp_path)] == [5]


def test_any_flipped_bit_costs_the_rates_alone(tmp_path):
  """Also one that UTF-8 or JSON allow."""
  clock = Clock()
  begin(tmp_path, clock).write(5)
  path = tmp_path / timing.FILE
  data = path.read_bytes()
  cost = timing.StepCost(100, 5e9, 0.0)
  for bit in range(8 * len(data)):
    damaged = bytearray(data)
    damaged[bit // 8] ^= 1 << bit % 8
    path.write_bytes(damaged)
    again = timing.Timing(str(tmp_path), 5, cost, clock(), None, clock)
    assert again._begun > 0 and again._productive >= -1e300


def test_the_last_rate_is_of_the_run_that_trained_last(tmp_path):
  clock = Clock()
  for name in ('b', 'a'):
    timed = begin(tmp_path / name, clock)
    for step, seconds in ((5, 60.0), (10, 10.0), (20, 10.0)):
      clock.now += seconds
      timed.write(step)
  runs = [str(tmp_path / name) for name in ('a', 'b', 'missing')]
  seen = timing.last_rate(runs)
  # 15 steps in 20 s: the first line holds compilation.
  assert seen == timing.SeenRate(runs[0], pytest.approx(15 * 5e9 / 20))
  assert timing.last_rate(runs[2:]) is None


def test_times_without_a_rate_tell_none(tmp_path):
  timed = begin(tmp_path, Clock())
  timed.close()
  with open(tmp_path / timing.FILE, 'a') as file:
    line = {'step': 5, 'time': 1.0, 'productive': 1.0, 'seconds': 2.0}
    file.write(json.dumps(line) + '\n')
  assert timing.last_rate([str(tmp_path)]) is None
