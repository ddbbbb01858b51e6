r"""Chips, hours and dollars of scoring and pruning a corpus that does not exist yet.

Command: python tools/plan_tokens.py --timings=timings.json --cheap_rate=1e6 \
  --dear_rate=7e4 --dear_fraction=0.1 --select_rate=1 --dollars_per_chip_hour=1 \
  --dollars_per_core_hour=0.05

Stages without a model are simulated with the CPU seconds of tasks that
tools/time_shards.py measured on a part of the corpus: the corpus has as many more
shards of that size. Tasks get measured seconds at random, and go in order to the
cores that are free; a round begins when the last task of the one before has
ended. Tasks that are not of a shard or file, such as the bands of MinHash, do not
become more but longer, and so does what the first process does alone. Cores are
paid while they wait.

A cheap scorer reads all tokens, and a dear one a fraction of them. Their hours
are quotients of flags. Compilation, restarts, storage, start of workers and time
that chips wait for data are not counted.
"""

import dataclasses
import heapq
import json
import pathlib
import sys
from typing import Any

import numpy as np
from absl import app, flags

# The number of these tasks is an option, whatever the size of the corpus.
FIXED_NUMBER = ('near_duplicates._pairs', 'heldout_copies._candidates')

TOKENS = flags.DEFINE_float('tokens', 1e12, 'Of the corpus.', 1)
TIMINGS = flags.DEFINE_string(
  'timings', None, 'A file of tools/time_shards.py.', required=True
)
TOKENS_PER_DOCUMENT = flags.DEFINE_float(
  'tokens_per_document', 430.0, 'Mean. C4 has 156e9 tokens / 365e6.', 1
)
ID_BYTES = flags.DEFINE_integer('id_bytes', 2, 'Of a token id: 2 or 4.', 1)
RECORD_BYTES = flags.DEFINE_float(
  'record_bytes', 100.0, 'Of a document in all score tables.', 1
)
CHEAP_RATE = flags.DEFINE_float(
  'cheap_rate',
  None,
  'Tokens per second and chip of the cheap scorer.',
  0.001,
  required=True,
)
DEAR_RATE = flags.DEFINE_float(
  'dear_rate',
  None,
  'Tokens per second and chip of the dear scorer.',
  0.001,
  required=True,
)
DEAR_FRACTION = flags.DEFINE_float(
  'dear_fraction',
  None,
  'Of the tokens, that the dear scorer sees.',
  0,
  1,
  required=True,
)
CHIPS = flags.DEFINE_integer('chips', 64, 'That score.', 1)
SELECT_RATE = flags.DEFINE_float(
  'select_rate',
  None,
  'Millions of documents per core-second, of an arm.',
  0.001,
  required=True,
)
ARMS = flags.DEFINE_integer('arms', 4, 'That select.', 1)
WORKERS = flags.DEFINE_integer('workers', 100, 'Of Beam.', 1)
CORES = flags.DEFINE_integer('cores_per_worker', 4, 'Of a Beam worker.', 1)
CHIP_HOUR = flags.DEFINE_float(
  'dollars_per_chip_hour', None, 'Your price.', 0, required=True
)
CORE_HOUR = flags.DEFINE_float(
  'dollars_per_core_hour', None, 'Your price.', 0, required=True
)


@dataclasses.dataclass(frozen=True)
class Work:
  """One stage: its name, busy hours, wall time in hours, and units paid."""

  name: str
  busy_hours: float  # of all units
  hours: float
  units: int
  price: float  # of a unit-hour

  @property
  def dollars(self) -> float:
    """The cost of all units from the begin to the end."""
    return self.hours * self.units * self.price


def round_seconds(seconds: np.ndarray, cores: int) -> float:
  """The time until the last task ends, if each goes to the first free core."""
  free = [0.0] * min(cores, len(seconds))
  for of_task in seconds:
    heapq.heapreplace(free, free[0] + of_task)
  return max(free)


def simulated(
  name: str, stage: dict[str, Any], factor: float, cores: int
) -> Work:
  """A stage on a corpus `factor` times as large as the measured one."""
  rng = np.random.default_rng(0)
  busy = wall = stage['rest'] * factor
  for one in stage['rounds']:
    measured = np.array(one['seconds'])
    if one['function'] in FIXED_NUMBER:
      seconds = measured * factor
    else:
      seconds = rng.choice(measured, round(len(measured) * factor))
    busy += seconds.sum()
    wall += round_seconds(seconds, cores)
  return Work(name, busy / 3600, wall / 3600, cores, CORE_HOUR.value)


def planned_work(timings: dict[str, Any]) -> list[Work]:
  """The stages in order."""
  cores = WORKERS.value * CORES.value
  factor = TOKENS.value / timings['tokens']

  def by_rate(
    name: str, amount: float, rate: float, units: int, price: float
  ) -> Work:
    busy = amount / rate / 3600
    return Work(name, busy, busy / units, units, price)

  def scored(name: str, tokens: float, rate: float) -> Work:
    return by_rate(name, tokens, rate, CHIPS.value, CHIP_HOUR.value)

  selected = ARMS.value * TOKENS.value / TOKENS_PER_DOCUMENT.value / 1e6
  return [
    *(
      simulated(name, stage, factor, cores)
      for name, stage in timings['stages'].items()
    ),
    scored('score, cheap', TOKENS.value, CHEAP_RATE.value),
    scored('score, dear', TOKENS.value * DEAR_FRACTION.value, DEAR_RATE.value),
    by_rate('select', selected, SELECT_RATE.value, cores, CORE_HOUR.value),
  ]


def main(_):
  file = pathlib.Path(TIMINGS.value)
  if not file.is_file():
    sys.exit(
      f'plan_tokens: there is no file --timings={file}: make it with '
      'tools/time_shards.py, or give docs/plan/timings.json.'
    )
  timings = json.loads(file.read_text())
  print('| stage | busy chip- or core-hours | at a time | hours | dollars |')
  print('| --- | --- | --- | --- | --- |')
  work = planned_work(timings)
  for one in work:
    print(
      f'| {one.name} | {one.busy_hours:,.0f} | {one.units} '
      f'| {one.hours:,.1f} | {one.dollars:,.0f} |'
    )
  hours, dollars = (
    sum(getattr(w, k) for w in work) for k in ('hours', 'dollars')
  )
  print(f'| all | | | {hours:,.1f} | {dollars:,.0f} |\n')
  documents = TOKENS.value / TOKENS_PER_DOCUMENT.value
  print(
    f'token ids {TOKENS.value * ID_BYTES.value / 1e9:,.0f} GB, score tables '
    f'{documents * RECORD_BYTES.value / 1e9:,.0f} GB, keep sets '
    f'{documents / 8e9:,.2f} GB for each arm'
  )


if __name__ == '__main__':
  app.run(main)
