"""Where the time of a run goes: rates, waits, and goodput over its restarts.

Lines of `timing.jsonl` are of the clock, so no two runs have the same; what a
run computes is in `metrics.jsonl`.
"""

import contextlib
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from infoprune_jax.runtime import files
from infoprune_jax.runtime.append_log import AppendLog
from infoprune_jax.runtime.progress import logger

FILE = 'timing.jsonl'
WAITS = ('input', 'evaluation', 'checkpoint')


class Timing:
  """Adds up seconds by what they were spent on."""

  def __init__(
    self,
    run: str,
    first_step: int,
    tokens_per_step: int,
    flops_per_step: float,
    peak: float,
    begun: float,
    writes: bool = True,
    writer: files.Writer = files.write_file,
    clock: Callable[[], float] = time.time,
  ):
    """Reads what earlier processes of the run have written.

    Args:
      run: The run's folder.
      first_step: Where this process goes on; later steps were lost.
      tokens_per_step: Slots of a batch.
      flops_per_step: By formula.
      peak: FLOP/s of all devices, as `score.ceiling` measures; 0.0 if unknown.
      begun: When this process began to work on the run, since the epoch; what
        it compiled and restored since then was no step.
      writes: Whether this process is the one that does.
      writer: See `files.write_text`.
      clock: Seconds since the epoch.
    """
    path, self._clock = f'{run}/{FILE}', clock
    self._tokens, self._flops, self._peak = (
      tokens_per_step,
      flops_per_step,
      peak,
    )
    kept = [line for line in _read(path) if line['step'] <= first_step]
    self._begun = kept[0]['time'] if kept else begun
    self._productive = kept[-1]['productive'] if kept else 0.0
    self._step, self._since = first_step, clock()
    self._waited = dict.fromkeys(WAITS, 0.0)
    self._log = None
    if writes:
      kept = kept or [{**self._line(first_step, {}), 'time': begun}]
      text = ''.join(json.dumps(line) + '\n' for line in kept)
      self._log = AppendLog(path, text.encode(), writer)

  @contextlib.contextmanager
  def waiting(self, what: str) -> Iterator[None]:
    """Time of this block is no time of steps; `what` is one of WAITS."""
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
      'tokens_per_second': steps * self._tokens / seconds,
      **{
        f'{what}_fraction': time / seconds
        for what, time in self._waited.items()
      },
      'goodput': self._productive / max(now - self._begun, 1e-9),
    }
    if self._peak:
      rates['mfu'] = steps * self._flops / seconds / self._peak
    self._step, self._since = step, now
    self._waited = dict.fromkeys(WAITS, 0.0)
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


def _read(path: str) -> list[dict[str, Any]]:
  """The whole lines of the file; none where it is missing or damaged."""
  try:
    lines = files.read_bytes(path).split(b'\n')[:-1]
    return [_parsed(line) for line in lines]
  except FileNotFoundError:
    return []
  except (ValueError, RecursionError):
    logger.warning('%s is damaged: rates and goodput start anew', path)
    return []


def _parsed(line: bytes) -> dict[str, Any]:
  """One line, as `Timing` wrote it.

  Raises:
    ValueError: it is not.
    RecursionError: likewise.
  """
  found = json.loads(line)
  if not isinstance(found, dict) or type(found.get('step')) is not int:
    raise ValueError('it has no step')
  for name in ('time', 'productive'):
    if type(found.get(name)) is not float or not math.isfinite(found[name]):
      raise ValueError(f'its {name} is not a finite number')
  return found
