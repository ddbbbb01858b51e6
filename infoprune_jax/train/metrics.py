"""Metrics of a run, as JSON lines and for TensorBoard."""

import json
from collections.abc import Mapping

import tensorboardX

from infoprune_jax import files

FILE = 'metrics.jsonl'


class MetricsWriter:
  """Appends to `metrics.jsonl`, one object a line, and to `tensorboard/`."""

  def __init__(self, run: str, restored_step: int):
    """Opens the files of a run; what came after the restored step is dropped.

    Args:
      run: The run's folder, on a local file system.
      restored_step: Where the run goes on; 0 for a new one.
    """
    self._path = f'{run}/{FILE}'
    kept = [line for line in read(run) if line['step'] <= restored_step]
    text = ''.join(json.dumps(line) + '\n' for line in kept)
    files.write_text(self._path, text)
    self._file = open(self._path, 'a', encoding='utf-8')  # noqa: SIM115
    self._tensorboard = tensorboardX.SummaryWriter(
      f'{run}/tensorboard', purge_step=restored_step + 1
    )

  def write(self, step: int, values: Mapping[str, float]) -> None:
    """Writes the values of one step."""
    self._file.write(json.dumps({'step': step, **values}) + '\n')
    self._file.flush()
    for name, value in values.items():
      self._tensorboard.add_scalar(name, value, step)

  def close(self) -> None:
    """Flushes and closes."""
    self._file.close()
    self._tensorboard.close()


def read(run: str) -> list[dict[str, float]]:
  """The lines of a run's metrics; a last line cut by a kill is left out."""
  try:
    data = files.read_bytes(f'{run}/{FILE}').decode()
  except FileNotFoundError:
    return []
  return [
    json.loads(line)
    for line in data.splitlines(keepends=True)
    if line.endswith('\n')
  ]
