r"""Runs the cells of configs/experiment.py, and appends their results to a table.

Command: python tools/run_experiment.py [--scale=0.5m] [--cells=center,copies_30] \
    [--parallel=1] [--seconds=3600]

A cell that has a line in the table is skipped, and an interrupted one continues
where it stopped. So the table grows over as many calls as it takes; `--seconds`
ends a call. Each line of docs/experiment/results/SCALE.jsonl has the cell, what
ran it, and the numbers of its `report.json` that docs/experiment.md reads.

Without `--cells` all cells run but `natural` and `natural_smollm2`, which need
texts of yours: see configs/natural_texts.py.

`--parallel=2` runs two cells at a time, each on half of the CPU's cores: small
models gain little from a second core. On a GPU, `--parallel=5` cells share the
device.
"""

import argparse
import json
import os
import pathlib
import signal
import subprocess
import sys
import time
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from configs import experiment  # noqa: E402

# The programs of all cells are the same: they are compiled once.
ENVIRONMENT = {
  'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0.2',
  'XLA_PYTHON_CLIENT_PREALLOCATE': 'false',
  'PYTHONPATH': str(ROOT),
}
# Of `report.json`: what docs/experiment.md reads.
FIELDS = (
  *('seeds', 'versions', 'corpus', 'reference', 'scoring', 'model', 'spent'),
  *('heldout', 'budgets', 'measure', 'chosen', 'arms', 'comparisons'),
  *('sources', 'tasks', 'mix', 'near_copies', 'found', 'cautions'),
)
DIGITS = 6  # of a number in the table


class Cell:
  """The job of a cell, in a process, on some of the CPU's cores."""

  def __init__(self, name: str, cores: set[int], flags: argparse.Namespace):
    self.name, self.cores = name, cores
    self.workdir = pathlib.Path(flags.folder, flags.scale, name)
    self.workdir.parent.mkdir(parents=True, exist_ok=True)
    self.started = time.monotonic()
    self.log = self.workdir.with_suffix('.log')
    cache = {
      'JAX_COMPILATION_CACHE_DIR': str(pathlib.Path(flags.folder, 'xla'))
    }
    command = [
      *(
        sys.executable,
        '-m',
        'infoprune_jax.main',
        f'--workdir={self.workdir}',
      ),
      f'--config={experiment.__file__}:{name},{flags.scale}',
    ]
    with self.log.open('a') as log:
      self.process = subprocess.Popen(
        command,
        env={**ENVIRONMENT, **cache, **os.environ},
        stdout=log,
        stderr=log,
      )
    if cores:  # The threads that it starts later inherit them.
      os.sched_setaffinity(self.process.pid, cores)


def line(name: str, workdir: pathlib.Path) -> dict[str, Any]:
  """What the table keeps of the report of a cell."""
  report = json.loads((workdir / 'report/report.json').read_text())
  report['versions'].pop('platform')
  kept = {field: rounded(report[field]) for field in FIELDS}
  return {'cell': name, **kept}


def rounded(value: Any) -> Any:
  """A tree whose floats have few digits."""
  if isinstance(value, float):
    return float(f'{value:.{DIGITS}g}')
  if isinstance(value, dict):
    return {key: rounded(inner) for key, inner in value.items()}
  return [rounded(v) for v in value] if isinstance(value, list) else value


def finished(table: pathlib.Path) -> set[str]:
  """The cells of a table."""
  if not table.is_file():
    return set()
  return {json.loads(one)['cell'] for one in table.read_text().splitlines()}


def core_sets(parallel: int) -> list[set[int]]:
  """The cores of each of the cells that run at a time, as equal as can be.

  They are empty where a process cannot be given cores, as on macOS.
  """
  if not hasattr(os, 'sched_getaffinity'):
    return [set() for _ in range(parallel)]
  cores = sorted(os.sched_getaffinity(0))
  return [
    set(cores[number % len(cores) :: parallel]) for number in range(parallel)
  ]


def run(
  names: list[str], flags: argparse.Namespace, table: pathlib.Path
) -> bool:
  """Runs cells, several at a time; returns whether all of them ended well."""
  end, sound = time.monotonic() + flags.seconds, True
  free, running = core_sets(flags.parallel), []
  try:
    while names or running:
      while names and free:
        running.append(Cell(names.pop(0), free.pop(), flags))
      time.sleep(0.2)
      if time.monotonic() > end:
        unfinished = [cell.name for cell in running] + names
        print(f'time is up: {", ".join(unfinished)} are not finished')
        return False
      for cell in [c for c in running if c.process.poll() is not None]:
        running.remove(cell)
        free.append(cell.cores)
        sound &= record(cell, table)
    return sound
  finally:
    for cell in running:
      cell.process.send_signal(signal.SIGTERM)
    for cell in running:
      cell.process.wait()


def record(cell: Cell, table: pathlib.Path) -> bool:
  """Appends the line of a cell that ended; returns whether it ended well."""
  taken = f'{cell.name}: {time.monotonic() - cell.started:.0f} s'
  if cell.process.returncode:
    last = cell.log.read_text().strip().split('\n')[-1]
    print(f'{taken}, failed ({cell.log}): {last}', flush=True)
    return False
  # In one write, so that a kill leaves no part of a line.
  with table.open('ab', buffering=0) as file:
    file.write(f'{json.dumps(line(cell.name, cell.workdir))}\n'.encode())
  print(taken, flush=True)
  return True


def main() -> None:
  """Runs the cells that the table does not have."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('--scale', default='0.5m', choices=experiment.SCALES)
  cells = [k for k, c in experiment.CELLS.items() if c.texts == 'packages']
  parser.add_argument('--cells', default=','.join(cells))
  parser.add_argument('--folder', default='runs/experiment', help='of workdirs')
  parser.add_argument('--results', default='docs/experiment/results')
  parser.add_argument('--parallel', type=int, default=1, help='cells at a time')
  parser.add_argument('--seconds', type=float, default=1e9, help='for all')
  flags = parser.parse_args()
  # As an error, so that the cells that run are stopped, too.
  signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
  table = pathlib.Path(flags.results, f'{flags.scale}.jsonl')
  table.parent.mkdir(parents=True, exist_ok=True)
  done = finished(table)
  names = [name for name in flags.cells.split(',') if name not in done]
  sys.exit(not run(names, flags, table))


if __name__ == '__main__':
  main()
