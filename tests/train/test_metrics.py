"""The record of a run's metrics, and the copies that other programs read."""

import contextlib
import dataclasses
import json
import pathlib
import struct
import sys
import time
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.record_writer import masked_crc32c

from infoprune_jax import stages
from infoprune_jax.config.training import METRIC_SINKS
from infoprune_jax.config.validation import UserError
from infoprune_jax.runtime import distributed, manifests
from infoprune_jax.runtime.artifacts import Artifact
from infoprune_jax.runtime.workdir import reference_dir
from infoprune_jax.train import hooks, loop, metrics, runs


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


# Weights & Biases.


def wandb_records(folder: pathlib.Path) -> list:
  """The records of all W&B runs in a folder, in the order of their files."""
  import wandb
  from wandb.proto import wandb_internal_pb2

  wandb.teardown()  # Its process writes the last rows.
  records = []
  for path in sorted(folder.glob('wandb/offline-run-*/*.wandb')):
    data, start, content = path.read_bytes(), 7, b''
    assert data[:4] == b':W&B'
    while start < len(data):
      # The format of LevelDB's logs: no header crosses the end of a block.
      left = 2**15 - start % 2**15
      if left < 7:
        start += left
        continue
      _, size, kind = struct.unpack('<IHB', data[start : start + 7])
      content += data[start + 7 : start + 7 + size]
      start += 7 + size
      if kind in (1, 4):  # A whole record, or the last of its fragments.
        records.append(wandb_internal_pb2.Record.FromString(content))
        content = b''
  return records


def wandb_history(records) -> list[tuple[int, dict[str, float]]]:
  """Step and values of each row; W&B adds names of its own."""
  return [
    (
      record.history.step.num,
      {
        name: json.loads(item.value_json)
        for item in record.history.item
        if not (name := item.key or item.nested_key[0]).startswith('_')
      },
    )
    for record in records
    if record.HasField('history')
  ]


@pytest.fixture
def offline(tmp_path, monkeypatch) -> Iterator[pathlib.Path]:
  """The folder that W&B writes to."""
  wandb = pytest.importorskip('wandb')
  monkeypatch.setenv('WANDB_MODE', 'offline')
  monkeypatch.setenv('WANDB_SILENT', 'true')
  monkeypatch.setenv('WANDB_DIR', str(tmp_path))
  monkeypatch.delenv('WANDB_PROJECT', raising=False)
  yield tmp_path
  wandb.teardown()  # It reads the environment once.


def test_a_killed_wandb_run_goes_on_and_has_each_step_once(offline, artifact):
  killed = metrics.WeightsAndBiases(info(artifact))
  killed.write(1, {'loss': 3.0})
  killed.write(2, {'loss': 2.0})
  killed.write(2, {'timing/seconds': 1.0})
  killed.write(3, {'loss': 1.5})
  killed._run.finish()  # Without the third step.
  time.sleep(1)  # W&B names a run's folder by the second that it starts in.
  resumed = metrics.WeightsAndBiases(info(artifact, first_step=2))
  resumed.write(2, {'loss': 2.0})
  resumed.write(3, {'loss': 1.5})
  resumed.close()
  records = wandb_records(offline)
  assert wandb_history(records) == [
    (1, {'loss': 3.0}),
    (2, {'loss': 2.0, 'timing/seconds': 1.0}),
    (3, {'loss': 1.5}),
  ]
  runs = [record.run for record in records if record.HasField('run')]
  assert len({run.run_id for run in runs}) == 1
  for run in runs:
    assert run.project == metrics.WANDB_PROJECT
    assert run.display_name == f'{offline.name}: train top'
    assert run.run_group == offline.name


def test_a_resumed_run_sends_what_the_server_lacks(artifact, monkeypatch):
  """A kill may lose rows that W&B had, and had not uploaded."""
  sent = []
  run = SimpleNamespace(
    log=lambda values, step, commit: sent.append((step, values)),
    finish=lambda: None,
    resumed=False,
  )
  fake = SimpleNamespace(
    init=lambda **_: run, Settings=lambda **_: None, Error=RuntimeError
  )
  monkeypatch.setitem(sys.modules, 'wandb', fake)
  for server_has in (None, 2):
    if server_has:
      run.resumed, run.step = True, server_has + 1
    sink = metrics.WeightsAndBiases(info(artifact))
    for step in (1, 2, 3):
      sink.write(step, {'loss': 1.0})
    sink.close()
  assert [step for step, _ in sent] == [1, 2, 3, 3]


def test_damage_begins_another_wandb_run(offline, artifact, caplog):
  for _ in range(2):
    sink = metrics.WeightsAndBiases(info(artifact))
    sink.write(1, {'loss': 3.0})
    sink.close()
    path = pathlib.Path(artifact.path) / metrics.WANDB_FILE
    path.write_text('{"id": "abc"}\n')
  assert 'wandb.jsonl is damaged: a new W&B run begins' in caplog.text
  history = wandb_history(wandb_records(offline))
  assert history == [(1, {'loss': 3.0})] * 2


def with_sinks(config, *sinks):
  training = dataclasses.replace(config.reference.training, metric_sinks=sinks)
  reference = dataclasses.replace(config.reference, training=training)
  return dataclasses.replace(config, reference=reference)


def test_wandb_has_the_record_of_a_run_that_was_killed(
  offline, small, store_workdir, tmp_path, monkeypatch
):
  """Steps 6 and 9 are trained twice, from the checkpoint of step 5."""
  workdir = tmp_path / 'work'
  workdir.mkdir()
  for name in ('token_store', 'vocabulary'):
    (workdir / name).symlink_to(f'{store_workdir}/{name}')
  write = hooks.Metrics.__call__

  class Killed(Exception):
    pass

  def killed(self, step):
    write(self, step)
    if step.number == 9:
      raise Killed

  config = with_sinks(small, 'wandb', 'stdout')
  with monkeypatch.context() as patch, pytest.raises(Killed):
    patch.setattr(hooks.Metrics, '__call__', killed)
    runs.run_reference(config, str(workdir))
  runs.run_reference(config, str(workdir))
  run = reference_dir(str(workdir))
  manifest = manifests.read_manifest(run, 'reference')
  expected = {}
  for line in metrics.read(run, manifest['metrics'], 'reference'):
    expected.setdefault(line.pop('step'), {}).update(line)
  history = wandb_history(wandb_records(offline))
  assert [step for step, _ in history] == sorted(expected) == [3, 6, 9, 12]
  for step, values in history:
    values = {k: v for k, v in values.items() if not k.startswith('timing/')}
    assert values == expected[step]
  # Where metrics go decides nothing of the run.
  runs.run_reference(small, str(workdir))
  assert not (pathlib.Path(run) / metrics.TENSORBOARD_FOLDER).exists()


def test_a_missing_wandb_is_told_before_any_work(small, tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, 'wandb', None)
  config = with_sinks(small, 'tensorboard', 'wandb')
  with pytest.raises(UserError) as error:
    stages.run(config, str(tmp_path / 'work'), None)
  for words in (
    "reference.training.metric_sinks has 'wandb'",
    "pip install 'infoprune_jax[wandb]'",
  ):
    assert words in str(error.value)
  assert not (tmp_path / 'work').exists()


def test_other_processes_than_the_first_write_nothing(artifact, monkeypatch):
  monkeypatch.setattr(distributed, 'index', lambda: 1)
  training = SimpleNamespace(tokens_per_step=8, metric_sinks=('wandb',))
  run = SimpleNamespace(artifact=artifact, training=training)
  writer = loop._open_metrics(run, 0, {})
  writer.write(1, {'loss': 1.0})
  writer.close()
  assert writer.facts() is None
  assert not pathlib.Path(artifact.path).exists()


def test_each_name_of_a_sink_has_its_class():
  assert tuple(metrics.SINKS) == METRIC_SINKS


@pytest.mark.parametrize('sinks', [('csv',), ('tensorboard', 'Wandb')])
def test_other_names_of_sinks_are_refused(small, sinks):
  with pytest.raises(UserError, match=r"metric_sinks must be one of .*'wandb'"):
    with_sinks(small, *sinks)
