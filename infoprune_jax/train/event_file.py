"""Scalars for TensorBoard: one event file of each process that trains a run."""

import socket
import struct
import time
from typing import Any

from infoprune_jax.runtime import files
from infoprune_jax.runtime.append_log import AppendLog

FOLDER = 'tensorboard'


class EventFile:
  """Appends events, each a TFRecord that holds a protocol buffer `Event`."""

  def __init__(
    self,
    run: str,
    first_step: int,
    writer: files.Writer = files.write_file,
  ):
    """Begins a file.

    Args:
      run: The run's folder.
      first_step: TensorBoard hides what earlier files say of this step and of
        later ones.
      writer: See `files.write_text`.
    """
    from tensorboardX.proto.event_pb2 import SessionLog

    now = time.time()  # TensorBoard reads files in the order of their names.
    name = f'events.out.tfevents.{now:.6f}.{socket.gethostname()}'
    begun = _record(file_version='brain.Event:2', step=first_step)
    begun += _record(
      session_log=SessionLog(status=SessionLog.START), step=first_step
    )
    self._log = AppendLog(f'{run}/{FOLDER}/{name}', begun, writer)

  def add_scalar(self, name: str, value: float, step: int) -> None:
    """Appends one value of one step."""
    from tensorboardX import summary

    self._log.append(_record(summary=summary.scalar(name, value), step=step))

  def sync(self) -> None:
    """As `AppendLog.sync`."""
    self._log.sync()

  def close(self) -> None:
    """Syncs and closes."""
    self._log.close()


def _record(**fields: Any) -> bytes:
  """An event of now, as a TFRecord: length and content, each with a CRC."""
  from tensorboardX.proto.event_pb2 import Event
  from tensorboardX.record_writer import masked_crc32c

  data = Event(wall_time=time.time(), **fields).SerializeToString()
  length = struct.pack('<Q', len(data))
  return b''.join(
    (
      length,
      struct.pack('<I', masked_crc32c(length)),
      data,
      struct.pack('<I', masked_crc32c(data)),
    )
  )
