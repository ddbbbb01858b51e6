"""The metrics of a run, and the sinks that they go to.

`metrics.jsonl` is the record. Each checkpoint, and the manifest of the run,
hold its size and checksum at that time. A file that has grown since is sound.
A file whose beginning has changed is refused. All other sinks are copies.
"""

import contextlib
import dataclasses
import hashlib
import importlib
import json
import os
import posixpath
import secrets
import socket
import struct
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from infoprune_jax.config.validation import UserError
from infoprune_jax.runtime import files, progress
from infoprune_jax.runtime.append_log import AppendLog
from infoprune_jax.runtime.artifacts import Artifact
from infoprune_jax.runtime.progress import logger

FILE = 'metrics.jsonl'
TENSORBOARD_FOLDER = 'tensorboard'
WANDB_FILE = 'wandb.jsonl'
WANDB_PROJECT = 'infoprune_jax'  # Unless the environment has WANDB_PROJECT.


@dataclasses.dataclass(frozen=True)
class RunInfo:
  """Facts of the run that a sink is opened for."""

  artifact: Artifact
  name: str  # for the user: 'train top80 seed 0'
  workdir: str
  first_step: int = 1  # the first step that this process trains
  config: Mapping[str, Any] = dataclasses.field(default_factory=dict)


class Sink(Protocol):
  """A place that metrics are written to."""

  def write(self, step: int, values: Mapping[str, float]) -> None:
    """Adds values of one step; steps do not decrease from call to call."""

  def sync(self) -> None:
    """Returns when all values so far are stored."""

  def close(self) -> None:
    """Syncs and closes."""


class _FileSink:
  """A sink with one file."""

  _log: AppendLog

  def sync(self) -> None:
    """As `AppendLog.sync`."""
    self._log.sync()

  def close(self) -> None:
    """Syncs and closes."""
    self._log.close()


class JsonLines(_FileSink):
  """The record of a run: `metrics.jsonl`, one JSON object per line."""

  def __init__(self, artifact: Artifact, facts: Mapping[str, Any] | None):
    """Opens the file, and drops the lines after a checkpoint.

    Args:
      artifact: The run.
      facts: `facts()` at the checkpoint; None or empty for a new run.

    Raises:
      UserError: the lines before the checkpoint are damaged.
    """
    path = f'{artifact.path}/{FILE}'
    data = _read_prefix(artifact.path, facts, artifact.job) if facts else b''
    if data is None:
      logger.warning('%s is missing: metrics start at this step', path)
      data = b''
    self._sha256, self._bytes = hashlib.sha256(data), len(data)
    self._log = AppendLog(path, data, artifact.write_file)

  def write(self, step: int, values: Mapping[str, float]) -> None:
    """Appends one line."""
    line = (json.dumps({'step': step, **values}) + '\n').encode()
    self._log.append(line)
    self._sha256.update(line)
    self._bytes += len(line)

  def facts(self) -> dict[str, Any]:
    """`sha256` and number of `bytes` of the lines so far."""
    return {'sha256': self._sha256.hexdigest(), 'bytes': self._bytes}


class TensorBoard(_FileSink):
  """One event file for each process that trains the run.

  tensorboardX writes through a thread, and only to paths. `AppendLog` writes at
  once, and also to an object store.
  """

  def __init__(self, run: RunInfo):
    """Begins a file; TensorBoard hides these steps of earlier files."""
    session_log = _event_types().SessionLog

    # TensorBoard reads files in the order of their names.
    name = f'events.out.tfevents.{time.time():.6f}.{socket.gethostname()}'
    start = session_log(status=session_log.START)
    header = _event(file_version='brain.Event:2', step=run.first_step)
    header += _event(session_log=start, step=run.first_step)
    path = f'{run.artifact.path}/{TENSORBOARD_FOLDER}/{name}'
    self._log = AppendLog(path, header, run.artifact.write_file)

  def write(self, step: int, values: Mapping[str, float]) -> None:
    """Appends one event per value."""
    from tensorboardX import summary

    for name, value in values.items():
      self._log.append(_event(summary=summary.scalar(name, value), step=step))


def _event_types() -> Any:
  """Protocol buffers; their classes exist only after the import."""
  return importlib.import_module('tensorboardX.proto.event_pb2')


def _event(**fields: Any) -> bytes:
  """An `Event` at this time, as a TFRecord: length and content, with CRCs."""
  from tensorboardX.record_writer import masked_crc32c

  data = (
    _event_types().Event(wall_time=time.time(), **fields).SerializeToString()
  )
  length = struct.pack('<Q', len(data))
  crcs = [struct.pack('<I', masked_crc32c(x)) for x in (length, data)]
  return length + crcs[0] + data + crcs[1]


class WeightsAndBiases:
  """One W&B run, which continues when training is killed and started again.

  `wandb.jsonl` in the folder of the run holds the id of the W&B run and the
  last step that W&B has. Steps that training repeats after a kill are not sent
  again.
  """

  def __init__(self, run: RunInfo):
    """Starts or resumes the W&B run.

    Raises:
      UserError: W&B does not start, for example because of a missing login.
    """
    import wandb  # pyright: ignore[reportMissingImports]  # An extra.

    folder = run.artifact.path
    self._id, self._last_sent = _read_wandb_file(f'{folder}/{WANDB_FILE}')
    experiment = posixpath.basename(files.canonical(run.workdir))
    try:
      self._run = wandb.init(
        project=os.environ.get('WANDB_PROJECT') or WANDB_PROJECT,
        name=f'{experiment}: {run.name}',
        group=experiment,
        id=self._id,
        resume='allow',
        config=dict(run.config),
        allow_val_change=True,  # For example num_steps of a longer run.
        settings=wandb.Settings(console='off'),
      )
    except wandb.Error as error:
      reason = str(error).rstrip('.')
      raise UserError(
        f'Weights & Biases does not start: {reason}. Run `wandb login`, or set '
        "WANDB_MODE=offline, or leave 'wandb' out of training.metric_sinks."
      ) from None
    if self._run.resumed:  # The server knows what has arrived.
      self._last_sent = self._run.step - 1
    self._step, self._values = 0, {}
    self._log = AppendLog(
      f'{folder}/{WANDB_FILE}', self._line(), run.artifact.write_file
    )

  def write(self, step: int, values: Mapping[str, float]) -> None:
    """Collects the values of a step, which are one record in W&B."""
    if step != self._step:
      self._send()
    self._step = step
    self._values.update(values)

  def sync(self) -> None:
    """Hands over all values; W&B uploads them in a process of its own."""
    self._send()
    self._log.sync()

  def close(self) -> None:
    """Syncs, and waits until W&B has uploaded all values."""
    self.sync()
    self._log.close()
    self._run.finish()

  def _send(self) -> None:
    if self._values and self._step > self._last_sent:
      self._run.log(self._values, step=self._step, commit=True)
      self._last_sent = self._step
      self._log.append(self._line())
    self._values = {}

  def _line(self) -> bytes:
    line = {'id': self._id, 'last_step': self._last_sent}
    return (json.dumps(line) + '\n').encode()


def _read_wandb_file(path: str) -> tuple[str, int]:
  """The id of the W&B run, a new one for a new run, and its last step."""
  try:
    line = json.loads(files.read_bytes(path).split(b'\n')[-2])
    return str(line['id']), int(line['last_step'])
  except FileNotFoundError:
    pass
  except (ValueError, LookupError, TypeError, RecursionError):
    logger.warning('%s is damaged: a new W&B run begins', path)
  return secrets.token_hex(4), 0


class StandardOutput:
  """One line per write on standard output."""

  def __init__(self, run: RunInfo):
    """Takes the run, whose name begins each line."""
    self._name = run.name

  def write(self, step: int, values: Mapping[str, float]) -> None:
    """Prints the values."""
    text = ', '.join(f'{name} {value:.6g}' for name, value in values.items())
    progress.wipe()
    print(f'{self._name}: step {step}: {text}', flush=True)

  def sync(self) -> None:
    """Does nothing: each line is flushed."""

  def close(self) -> None:
    """Does nothing."""


# By name in `TrainingConfig.metric_sinks`.
SINKS: Mapping[str, Callable[[RunInfo], Sink]] = {
  'tensorboard': TensorBoard,
  'wandb': WeightsAndBiases,
  'stdout': StandardOutput,
}


class MetricsWriter:
  """Writes the metrics of a run to all of its sinks."""

  def __init__(
    self,
    tokens_per_step: int,
    record: JsonLines | None,
    sinks: Sequence[Sink] = (),
  ):
    """Takes over open sinks; only process 0 of a job has any."""
    self._tokens_per_step = tokens_per_step
    self._record = record
    self._copies = sinks
    self._all: list[Sink] = [*([record] if record else []), *sinks]

  def write(self, step: int, values: Mapping[str, float]) -> None:
    """Writes values that every repetition of the run computes alike."""
    values = {'tokens': step * self._tokens_per_step, **values}
    for sink in self._all:
      sink.write(step, values)

  def write_timing(self, step: int, values: Mapping[str, float]) -> None:
    """Writes times, as `timing/NAME`, to all sinks but the record."""
    values = {f'timing/{name}': value for name, value in values.items()}
    for sink in self._copies:
      sink.write(step, values)

  def facts(self) -> dict[str, Any] | None:
    """`JsonLines.facts`, or None if this process writes nothing."""
    return self._record.facts() if self._record else None

  def sync(self) -> None:
    """Syncs all sinks."""
    for sink in self._all:
      sink.sync()

  def close(self) -> None:
    """Syncs and closes all sinks."""
    with contextlib.ExitStack() as stack:
      for sink in self._all:
        stack.callback(sink.close)


def check_sinks(names: Sequence[str], section: str) -> None:
  """Raises `UserError` unless the packages of the sinks are installed.

  Args:
    names: `TrainingConfig.metric_sinks`.
    section: The section of the config, for the message.
  """
  if 'wandb' in names:
    try:
      importlib.import_module('wandb')
    except ImportError as error:
      raise UserError(
        f"{section}.metric_sinks has 'wandb', which is not installed "
        f"({error}): pip install 'infoprune_jax[wandb]'."
      ) from None


def read(
  run: str, facts: Mapping[str, Any], job: str
) -> list[dict[str, float]]:
  """Reads the metrics of a run.

  Args:
    run: The folder of the run.
    facts: `JsonLines.facts`, from the manifest of the run.
    job: The stage that trains, for the message.

  Returns:
    One dict per line: `step`, `tokens` and the values that were written.

  Raises:
    UserError: the file is missing or damaged.
  """
  data = _read_prefix(run, facts, job)
  if data is None:
    raise UserError(f'{run}/{FILE} is missing. {_repair_hint(run, job)}')
  return [json.loads(line) for line in data.splitlines()]


def copy(run: str, facts: Mapping[str, Any], artifact: Artifact) -> None:
  """Copies the lines before a checkpoint of a run to another run.

  Args:
    run: The folder of the run.
    facts: `JsonLines.facts()` at the checkpoint.
    artifact: The other run.

  Raises:
    UserError: the lines are damaged.
  """
  data = _read_prefix(run, facts, artifact.job)
  if data is not None:
    path = f'{artifact.path}/{FILE}'
    artifact.write_file(path, lambda file: file.write(data))


def _read_prefix(run: str, facts: Mapping[str, Any], job: str) -> bytes | None:
  """The bytes that the facts describe; None if the file is missing."""
  try:
    data = files.read_bytes(f'{run}/{FILE}')[: facts['bytes']]
  except FileNotFoundError:
    return None
  digest = hashlib.sha256(data).hexdigest()
  if digest != facts['sha256']:
    raise UserError(
      f'{run}/{FILE} is damaged: expected {facts["bytes"]} bytes with sha256 '
      f'{facts["sha256"][:16]}, got {len(data)} bytes with {digest[:16]}. '
      + _repair_hint(run, job)
    )
  return data


def _repair_hint(run: str, job: str) -> str:
  return (
    f'Delete {run}/{FILE} and {run}/manifest.json and run --job={job} again to '
    f'continue without the metrics so far, or delete {run} to train again.'
  )
