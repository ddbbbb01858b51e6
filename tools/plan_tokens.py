r"""Chips, hours and dollars of scoring and pruning a corpus that does not exist yet.

Command: python tools/plan_tokens.py --cheap_rate=1e6 --dear_rate=7e4 \
  --dear_fraction=0.1 --tokenize_rate=1 --dollars_per_chip_hour=1 \
  --dollars_per_core_hour=0.05

A cheap scorer reads all tokens, and a dear one a fraction of them. Stages without
a model are given in megabytes of text per second and core. Everything is a
product or a quotient of flags: nothing is measured here, and compilation,
restarts, storage and time that chips wait for data are not counted.
"""

import dataclasses

from absl import app, flags

TOKENS = flags.DEFINE_float('tokens', 1e12, 'Of the corpus.', 1)
BYTES_PER_TOKEN = flags.DEFINE_float('bytes_per_token', 4.0, 'Of text.', 0.01)
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
TOKENIZE_RATE = flags.DEFINE_float(
  'tokenize_rate', None, 'Megabytes per core-second.', 0.001, required=True
)
SIGN_RATE = flags.DEFINE_float(
  'sign_rate', 0.5, 'Megabytes per core-second of near-duplicates.', 0.001
)
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
  """One stage: its name, unit-hours, units at a time, dollars per unit-hour."""

  name: str
  unit_hours: float
  units: int
  price: float

  @property
  def hours(self) -> float:
    """Wall time in hours, if all units work all the time."""
    return self.unit_hours / self.units

  @property
  def dollars(self) -> float:
    """The cost at the price of a unit-hour."""
    return self.unit_hours * self.price


def planned_work() -> list[Work]:
  """The stages in order, from the flags."""

  def on_cores(name: str, rate: float) -> Work:
    megabytes = TOKENS.value * BYTES_PER_TOKEN.value / 1e6
    cores = WORKERS.value * CORES.value
    return Work(name, megabytes / rate / 3600, cores, CORE_HOUR.value)

  def on_chips(name: str, tokens: float, rate: float) -> Work:
    return Work(name, tokens / rate / 3600, CHIPS.value, CHIP_HOUR.value)

  return [
    on_cores('tokenize', TOKENIZE_RATE.value),
    on_cores('near_duplicates', SIGN_RATE.value),
    on_chips('score, cheap', TOKENS.value, CHEAP_RATE.value),
    on_chips(
      'score, dear', TOKENS.value * DEAR_FRACTION.value, DEAR_RATE.value
    ),
  ]


def main(_):
  print('| stage | chip- or core-hours | at a time | hours | dollars |')
  print('| --- | --- | --- | --- | --- |')
  work = planned_work()
  for one in work:
    print(
      f'| {one.name} | {one.unit_hours:,.0f} | {one.units} '
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
