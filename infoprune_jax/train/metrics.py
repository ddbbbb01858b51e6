"""Metrics of a run, as JSON lines and for TensorBoard.

Checkpoints and the manifest of a run carry size and checksum of the lines that
were written before them: a file that has grown since is as good, one that has
changed is refused.
"""

import hashlib
import json
from collections.abc import Mapping

from infoprune_jax.config.validation import UserError
from infoprune_jax.runtime import files
from infoprune_jax.runtime.append_log import AppendLog
from infoprune_jax.runtime.files import FileFacts
from infoprune_jax.runtime.progress import logger
from infoprune_jax.train.event_file import EventFile

FILE = 'metrics.jsonl'


class MetricsWriter:
  """Appends to `metrics.jsonl`, one object a line, and to `tensorboard/`."""

  def __init__(
    self,
    run: str,
    restored_step: int,
    written: FileFacts | None,
    job: str,
    writer: files.Writer = files.write_file,
  ):
    """Opens the files of a run; what came after the restored step is dropped.

    Args:
      run: The run's folder.
      restored_step: Where the run goes on; 0 for a new one.
      written: The `facts` of that step; None for a new run.
      job: The stage that trains, for the message.
      writer: See `files.write_text`.

    Raises:
      UserError: what was written is damaged.
    """
    data = _beginning(run, written, job) if written else b''
    if data is None:
      logger.warning('%s/%s is gone: the curve starts here', run, FILE)
    self._sha256 = hashlib.sha256(data or b'')
    self._bytes = len(data or b'')
    self._log = AppendLog(f'{run}/{FILE}', data or b'', writer)
    self._events = EventFile(run, restored_step + 1, writer)

  def write(self, step: int, values: Mapping[str, float]) -> None:
    """Writes the values of one step."""
    line = (json.dumps({'step': step, **values}) + '\n').encode()
    self._log.append(line)
    self._sha256.update(line)
    self._bytes += len(line)
    for name, value in values.items():
      self._events.add_scalar(name, value, step)

  def show(self, step: int, values: Mapping[str, float]) -> None:
    """Gives TensorBoard values that no two runs have alike."""
    for name, value in values.items():
      self._events.add_scalar(f'timing/{name}', value, step)

  def facts(self) -> FileFacts:
    """Size and checksum of the lines so far."""
    return FileFacts(sha256=self._sha256.hexdigest(), bytes=self._bytes)

  def sync(self) -> None:
    """Returns when the files have all lines, see `AppendLog`."""
    self._log.sync()
    self._events.sync()

  def close(self) -> None:
    """Syncs and closes."""
    self._log.close()
    self._events.close()


def read(run: str, written: FileFacts, job: str) -> list[dict[str, float]]:
  """The lines of a run's metrics.

  Args:
    run: The run's folder.
    written: The `facts` of the writer, from the run's manifest.
    job: The stage that trains, for the message.

  Raises:
    UserError: the file is missing or damaged.
  """
  data = _beginning(run, written, job)
  if data is None:
    raise UserError(f'{run}/{FILE} is missing. {_how_to_repair(run, job)}')
  return [json.loads(line) for line in data.splitlines()]


def _beginning(run: str, written: FileFacts, job: str) -> bytes | None:
  """What was written, of a file that may have grown; None if it is gone."""
  try:
    data = files.read_bytes(f'{run}/{FILE}')[: written['bytes']]
  except FileNotFoundError:
    return None
  digest = hashlib.sha256(data).hexdigest()
  if digest != written['sha256']:
    raise UserError(
      f'{run}/{FILE} is damaged: expected {written["bytes"]} bytes with sha256 '
      f'{written["sha256"][:16]}, got {len(data)} bytes with {digest[:16]}. '
      + _how_to_repair(run, job)
    )
  return data


def _how_to_repair(run: str, job: str) -> str:
  return (
    f'Delete {run}/{FILE} and {run}/manifest.json and run --job={job} again to '
    f'go on without the curve so far, or delete {run} to train again.'
  )
