"""Times of a run: rates, waits, and goodput over its restarts.

`timing.jsonl` holds times, which differ from run to run. `metrics.jsonl` holds
the values that are the same in every repetition.
"""

import contextlib
import dataclasses
import json
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from infoprune_jax.runtime import files
from infoprune_jax.runtime.append_log import AppendLog
from infoprune_jax.runtime.progress import logger

FILE = 'timing.jsonl'
WAITS: tuple[str, ...] = ('input', 'evaluation', 'checkpoint')


@dataclasses.dataclass(frozen=True)
class StepCost:
  """The cost of one step of a run."""

  tokens: int  # slots of a batch, padding included
  flops: float  # by formula
  peak: float  # FLOP/s of all devices, by `score.ceiling`; 0.0 if unknown


class Timing:
  """Adds up the seconds of a run by activity."""

  def __init__(
    self,
    run: str,
    first: int,
    cost: StepCost,
    begun: float,
    writer: files.Writer | None,
    clock: Callable[[], float] = time.time,
  ):
    """Reads the lines that earlier processes of the run wrote.

    Args:
      run: The folder of the run.
      first: The step after which the run continues; later lines are dropped.
      cost: The cost of a step.
      begun: When this process began to work on the run, in seconds since the
        epoch. Compilation and restoring count as time without steps.
      writer: See `files.write_text`; None if another process writes.
      clock: Seconds since the epoch.
    """
    path, self._clock, self._cost = f'{run}/{FILE}', clock, cost
    kept = [line for line in _read(path) if line['step'] <= first]
    self._begun = kept[0]['time'] if kept else begun
    self._productive = kept[-1]['productive'] if kept else 0.0
    self._step, self._since = first, clock()
    self._waited = dict.fromkeys(WAITS, 0.0)
    self._log = None
    if writer:
      kept = kept or [{**self._line(first, {}), 'time': begun}]
      text = ''.join(json.dumps(line) + '\n' for line in kept)
      self._log = AppendLog(path, text.encode(), writer)

  @contextlib.contextmanager
  def waiting(self, what: str) -> Iterator[None]:
    """Counts the time of this block as a wait; `what` is one of WAITS."""
    start = self._clock()
    try:
      yield
    finally:
      self._waited[what] += self._clock() - start

  def write(self, step: int) -> dict[str, float]:
    """Writes and returns the rates since the last line."""
    now = self._clock()
    seconds, steps = max(now - self._since, 1e-9), step - self._step
    in_steps = seconds - sum(self._waited.values())
    self._productive += in_steps
    rates = {
      'seconds': seconds,
      'tokens_per_second': steps * self._cost.tokens / seconds,
      **{
        f'{what}_fraction': time / seconds
        for what, time in self._waited.items()
      },
      'goodput': self._productive / max(now - self._begun, 1e-9),
    }
    rates['flops_per_second'] = steps * self._cost.flops / seconds
    if self._cost.peak:
      rates['mfu'] = rates['flops_per_second'] / self._cost.peak
    self._step, self._since = step, now
    self._waited = dict.fromkeys(WAITS, 0.0)
    if self._log:
      self._log.append(f'{json.dumps(self._line(step, rates))}\n'.encode())
    return rates

  def sync(self) -> None:
    """Returns when the file has all lines, see `AppendLog`."""
    if self._log:
      self._log.sync()

  def close(self) -> None:
    """Syncs and closes."""
    if self._log:
      self._log.close()

  def _line(self, step: int, rates: Mapping[str, float]) -> dict[str, float]:
    return {
      'step': step,
      'time': self._clock(),
      'productive': self._productive,  # seconds in steps that were kept
      **rates,
    }


@dataclasses.dataclass(frozen=True)
class SeenRate:
  """The rate that a run has reached."""

  run: str  # its folder
  flops_per_second: float  # of all its devices, with all waits


def last_rate(runs: Iterable[str]) -> SeenRate | None:
  """The rate of the run that trained last; None if no file tells one.

  Args:
    runs: The folders of runs, which need not exist.
  """
  seen = []
  for run in runs:
    lines = [x for x in _read(f'{run}/{FILE}') if _tells_rate(x)]
    # The first line of a process may hold compilation.
    lines = lines[1:] or lines
    seconds = sum(line['seconds'] for line in lines)
    if seconds > 0:
      done = sum(line['seconds'] * line['flops_per_second'] for line in lines)
      seen.append((lines[-1]['time'], SeenRate(run, done / seconds)))
  return max(seen, key=lambda item: item[0])[1] if seen else None


def _tells_rate(line: Mapping[str, Any]) -> bool:
  return all(
    type(value) is float and 0 < value < math.inf
    for value in (line.get('seconds'), line.get('flops_per_second'))
  )


def _read(path: str) -> list[dict[str, Any]]:
  """The whole lines of the file; none if it is missing or damaged."""
  try:
    lines = files.read_bytes(path).split(b'\n')[:-1]
    return [_parse(line) for line in lines]
  except FileNotFoundError:
    return []
  except (ValueError, RecursionError):
    logger.warning('%s is damaged: rates and goodput start anew', path)
    return []


def _parse(data: bytes) -> dict[str, Any]:
  """Reads one line, as `Timing` writes it.

  Raises:
    ValueError: it is something else.
    RecursionError: it is nested too deeply.
  """
  line = json.loads(data)
  if not isinstance(line, dict) or type(line.get('step')) is not int:
    raise ValueError('it has no step')
  for name in ('time', 'productive'):
    if type(line.get(name)) is not float or not math.isfinite(line[name]):
      raise ValueError(f'its {name} is not a finite number')
  return line
