"""The record of a run's metrics, and the copies that other programs read."""

import contextlib
import json
import pathlib
import struct

import pytest
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.record_writer import masked_crc32c

from infoprune_jax.config.validation import UserError
from infoprune_jax.runtime.artifacts import Artifact
from infoprune_jax.train import metrics


@pytest.fixture
def artifact(tmp_path) -> Artifact:
  return Artifact(str(tmp_path / 'run'), 'run', 'train', {}, {})


@pytest.fixture
def path(artifact) -> pathlib.Path:
  return pathlib.Path(artifact.path) / metrics.FILE


def info(artifact, first_step=1) -> metrics.RunInfo:
  workdir = str(pathlib.Path(artifact.path).parent)
  return metrics.RunInfo(
    artifact, 'train top', workdir, first_step, {'seed': 0}
  )


# The record.


def test_metrics_after_the_last_checkpoint_are_dropped(artifact, path):
  record = metrics.JsonLines(artifact, None)
  record.write(1, {'loss': 1.0})
  record.write(2, {'loss': 1.5})
  facts = record.facts()
  record.write(3, {'loss': 1.7})
  record.close()
  path.write_text(path.read_text() + '{"step": 4, "lo')
  lines = [{'step': 1, 'loss': 1.0}, {'step': 2, 'loss': 1.5}]
  assert metrics.read(artifact.path, facts, 'train') == lines
  record = metrics.JsonLines(artifact, facts)
  assert path.read_text() == ''.join(json.dumps(line) + '\n' for line in lines)
  record.write(3, {'loss': 2.0})
  record.close()
  lines.append({'step': 3, 'loss': 2.0})
  assert metrics.read(artifact.path, record.facts(), 'train') == lines


def test_damaged_metrics_are_refused_and_missing_ones_given_up(artifact, path):
  record = metrics.JsonLines(artifact, None)
  record.write(1, {'loss': 1.0})
  record.close()
  path.write_text(path.read_text().replace('1.0', '1.1'))
  with pytest.raises(UserError, match=r'metrics\.jsonl is damaged: expected'):
    metrics.JsonLines(artifact, record.facts())
  path.unlink()
  with pytest.raises(UserError, match=r'metrics\.jsonl is missing'):
    metrics.read(artifact.path, record.facts(), 'train')
  again = metrics.JsonLines(artifact, record.facts())
  again.write(2, {'loss': 0.5})
  again.close()
  lines = metrics.read(artifact.path, again.facts(), 'train')
  assert lines == [{'step': 2, 'loss': 0.5}]


def test_times_are_no_shard_of_the_record(artifact, capsys):
  """No two runs have the same; the record is the same in every repetition."""
  record = metrics.JsonLines(artifact, None)
  writer = metrics.MetricsWriter(
    100, record, [metrics.SINKS['stdout'](info(artifact))]
  )
  with contextlib.closing(writer):
    writer.write(3, {'loss': 1.25})
    writer.write_timing(3, {'seconds': 2.0})
  lines = metrics.read(artifact.path, writer.facts(), 'train')
  assert lines == [{'step': 3, 'tokens': 300, 'loss': 1.25}]
  assert capsys.readouterr().out.splitlines() == [
    'train top: step 3: tokens 300, loss 1.25',
    'train top: step 3: timing/seconds 2',
  ]


# TensorBoard.


def events(path):
  """The records of a file, whose checksums are right."""
  data, records = path.read_bytes(), []
  while data:
    (size,) = struct.unpack('<Q', data[:8])
    body = data[12 : 12 + size]
    crcs = struct.pack('<I', masked_crc32c(data[:8])), masked_crc32c(body)
    assert data[8:12] == crcs[0]
    assert struct.unpack('<I', data[12 + size : 16 + size]) == crcs[1:]
    records.append(Event.FromString(body))
    data = data[16 + size :]
  return records


def event_files(artifact):
  folder = pathlib.Path(artifact.path) / metrics.TENSORBOARD_FOLDER
  return list(folder.iterdir())


def test_scalars_follow_the_start_of_a_session(artifact):
  sink = metrics.TensorBoard(info(artifact, first_step=6))
  sink.write(7, {'heldout_nll/a b': 1.5})
  sink.sync()
  sink.write(8, {'loss': -2.0})
  sink.close()
  [path] = event_files(artifact)
  version, session, *scalars = events(path)
  assert version.file_version == 'brain.Event:2'
  assert session.session_log.status == SessionLog.START and session.step == 6
  assert [event.step for event in scalars] == [7, 8]
  values = [event.summary.value[0] for event in scalars]
  assert [value.simple_value for value in values] == [1.5, -2.0]
  assert values[1].tag == 'loss'
  assert 0 <= scalars[1].wall_time - version.wall_time < 60


def test_each_process_has_a_file_of_its_own(artifact):
  for _ in range(2):
    metrics.TensorBoard(info(artifact)).close()
  assert len(event_files(artifact)) == 2
