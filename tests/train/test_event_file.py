"""What TensorBoard reads."""

import struct

from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.record_writer import masked_crc32c

from infoprune_jax.train.event_file import FOLDER, EventFile


def events(path):
  """The records of a file, whose checksums are right."""
  data, found = path.read_bytes(), []
  while data:
    (size,) = struct.unpack('<Q', data[:8])
    body = data[12 : 12 + size]
    crcs = struct.pack('<I', masked_crc32c(data[:8])), masked_crc32c(body)
    assert data[8:12] == crcs[0]
    assert struct.unpack('<I', data[12 + size : 16 + size]) == crcs[1:]
    found.append(Event.FromString(body))
    data = data[16 + size :]
  return found


def test_scalars_follow_the_start_of_a_session(tmp_path):
  opened = EventFile(str(tmp_path), 6)
  opened.add_scalar('heldout_nll/a b', 1.5, 7)
  opened.sync()
  opened.add_scalar('loss', -2.0, 8)
  opened.close()
  [path] = (tmp_path / FOLDER).iterdir()
  version, session, *scalars = events(path)
  assert version.file_version == 'brain.Event:2'
  assert session.session_log.status == SessionLog.START and session.step == 6
  assert [event.step for event in scalars] == [7, 8]
  values = [event.summary.value[0] for event in scalars]
  assert [value.simple_value for value in values] == [1.5, -2.0]
  assert values[1].tag == 'loss'
  assert 0 <= scalars[1].wall_time - version.wall_time < 60


def test_each_process_has_a_file_of_its_own(tmp_path):
  for _ in range(2):
    EventFile(str(tmp_path), 1).close()
  assert len(list((tmp_path / FOLDER).iterdir())) == 2
