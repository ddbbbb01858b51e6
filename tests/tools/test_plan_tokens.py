"""tools/plan_tokens.py: a plan by hand, and the one that docs/plan.md shows."""

import json
import pathlib
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping

import pytest

ROOT = pathlib.Path(__file__).parents[2]
PAGE = (ROOT / 'docs/plan.md').read_text()
PRICES: dict[str, float] = {
  'dollars_per_chip_hour': 2,
  'dollars_per_core_hour': 0.1,
}
RATES: dict[str, float] = {
  'cheap_rate': 1000,
  'dear_rate': 100,
  'select_rate': 0.001,
}
# 3.6e9 tokens: 1000 and 1000 chip-hours, 20 core-hours of 2 arms.
SMALL = {
  **PRICES,
  **RATES,
  'tokens': 3.6e9,
  'dear_fraction': 0.1,
  'chips': 10,
  'tokens_per_document': 100,
  'workers': 2,
  'cores_per_worker': 1,
  'arms': 2,
}
# Of half as many tokens.
TIMINGS = {
  'tokens': 1.8e9,
  'stages': {
    # 6 tasks of an hour on 2 cores.
    'tokenize': {
      'rounds': [
        {'function': 'tokenize._write_shard', 'seconds': [3600, 3600, 3600]}
      ],
      'rest': 0,
    },
    # Bands of 1, 1 and 2 hours in this order on 2 cores, which take 3 hours, and
    # an hour of the first process.
    'near_duplicates': {
      'rounds': [
        {'function': 'near_duplicates._pairs', 'seconds': [1800, 1800, 3600]}
      ],
      'rest': 1800,
    },
  },
}


def plan(*arguments: str) -> subprocess.CompletedProcess:
  command = [sys.executable, 'tools/plan_tokens.py', *arguments]
  return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


@pytest.fixture
def timings(tmp_path):
  """The flag of a file of timings."""
  (tmp_path / 'timings.json').write_text(json.dumps(TIMINGS))
  return f'--timings={tmp_path / "timings.json"}'


def flags_of(values: Mapping[str, float]) -> list[str]:
  return [f'--{name}={value}' for name, value in values.items()]


def test_a_plan_by_hand(timings):
  done = plan(timings, *flags_of(SMALL))
  assert done.returncode == 0, done.stderr
  assert '| tokenize | 6 | 2 | 3.0 | 1 |\n' in done.stdout
  assert '| near_duplicates | 5 | 2 | 4.0 | 1 |\n' in done.stdout
  assert '| score, cheap | 1,000 | 10 | 100.0 | 2,000 |\n' in done.stdout
  assert '| score, dear | 1,000 | 10 | 100.0 | 2,000 |\n' in done.stdout
  assert '| select | 20 | 2 | 10.0 | 2 |\n' in done.stdout
  assert '| all | | | 217.0 | 4,003 |\n' in done.stdout


@pytest.mark.parametrize(
  ('name', 'value'), [('dear_fraction', 1.5), ('cheap_rate', 0), ('chips', 0)]
)
def test_what_cannot_be_is_refused(timings, name, value):
  done = plan(timings, *flags_of({**SMALL, name: value}))
  assert done.returncode == 1
  assert f'--{name}={value}' in done.stderr


def test_a_missing_file_is_one_message():
  done = plan('--timings=nowhere.json', *flags_of(SMALL))
  assert done.returncode == 1
  assert 'there is no file --timings=nowhere.json' in done.stderr
  assert 'Traceback' not in done.stderr


def test_a_price_is_never_assumed(timings):
  done = plan(timings, *flags_of(RATES), '--dear_fraction=0.1')
  assert done.returncode == 1
  assert 'dollars_per_chip_hour' in done.stderr


def test_the_page_shows_what_its_command_prints():
  [block] = re.findall(r'^```\n(python tools/plan_.*?)^```$', PAGE, re.S | re.M)
  done = plan(*shlex.split(block.replace('\\\n', ' '))[2:])
  assert done.returncode == 0, done.stderr
  for line in filter(None, done.stdout.splitlines()):
    assert f'{line}\n' in PAGE, line
