"""Training by several processes, as on several hosts, killed and resumed."""

import json
import os
import pathlib
import signal
import time

import pytest
from host_job import Job

from infoprune_jax.runtime import manifests, peers

CONFIG = """
from small_corpus import small_config


def get_config():
  config = small_config({path!r})
  config.reference.training.batch_size = 12
  return config
"""


@pytest.fixture(scope='module')
def config(corpus_path, tmp_path_factory) -> pathlib.Path:
  path = tmp_path_factory.mktemp('config') / 'hosts.py'
  path.write_text(CONFIG.format(path=corpus_path))
  return path


@pytest.fixture(scope='module')
def begin(store_workdir, config):
  """Starts processes that train the reference model in a workdir."""

  def start(
    workdir: pathlib.Path, processes: int, *arguments: str, **kwargs
  ) -> Job:
    workdir.mkdir(exist_ok=True)
    for folder in ('token_store', 'vocabulary'):
      if not (workdir / folder).exists():
        os.symlink(f'{store_workdir}/{folder}', workdir / folder)
    return Job(
      workdir, config, processes, *arguments, job='reference', **kwargs
    )

  return start


@pytest.fixture(scope='module')
def alone(begin, tmp_path_factory) -> pathlib.Path:
  """The workdir of one process that nothing stopped."""
  workdir = tmp_path_factory.mktemp('alone') / 'work'
  begin(workdir, 1).finish()
  return workdir


def curve(workdir: pathlib.Path) -> list[dict[str, float]]:
  lines = (workdir / 'reference/metrics.jsonl').read_text().splitlines()
  return [json.loads(line) for line in lines]


def steps(workdir: pathlib.Path) -> list[int]:
  names = os.listdir(workdir / 'reference/checkpoints')
  return sorted(int(name) for name in names if name.isdigit())


def finished(workdir: pathlib.Path) -> dict:
  return manifests.read_manifest(str(workdir / 'reference'), 'reference')


def test_killed_and_resumed_on_other_numbers_of_hosts(begin, alone, tmp_path):
  """SIGKILL on three, SIGTERM on two, the end on four; another mesh each."""
  workdir = tmp_path / 'chain'
  codes, outputs = begin(workdir, 3, signalled=(1, 8, signal.SIGKILL)).ended()
  assert codes.pop(1) == -signal.SIGKILL
  assert set(codes) == {peers.LOST_EXIT_CODE}
  assert 'process 1' in outputs[0] and 'Traceback' not in outputs[0]
  assert steps(workdir) == [5]
  mesh = ('--config.mesh.data=1', '--config.mesh.fsdp=2')
  job = begin(workdir, 2, *mesh, signalled=(1, 3, signal.SIGTERM))
  codes, outputs = job.ended()
  # One was told; both saved the same step and ended for a restart.
  assert codes == [128 + signal.SIGTERM] * 2, outputs
  assert 'resumed at step 5' in outputs[0]
  [step] = set(steps(workdir)) - {5}
  assert 7 <= step <= 10
  for output in outputs:
    assert f'reference is saved at step {step} because process 1 was' in output
  outputs = begin(workdir, 4).finish()
  assert f'resumed at step {step}' in outputs[0]
  single, several = (finished(path) for path in (alone, workdir))
  assert several['fingerprint'] and several['step'] == single['step'] == 12
  assert several['epochs'] == single['epochs']
  for ours, theirs in zip(curve(workdir), curve(alone), strict=True):
    assert ours == pytest.approx(theirs, rel=2e-4)


def test_sigterm_and_sigkill_leave_no_trace(begin, alone, tmp_path):
  """Bit for bit the run that was never stopped, on one mesh."""
  stopped = tmp_path / 'stopped'
  for number, batch in ((signal.SIGTERM, 3), (signal.SIGKILL, 4)):
    code, [output] = begin(stopped, 1, signalled=(0, batch, number)).ended()
    expected = 128 + number if number == signal.SIGTERM else -number
    assert code == [expected], output
  begin(stopped, 1).finish()
  assert finished(stopped) == finished(alone)
  assert curve(stopped) == curve(alone)


def test_two_hosts_leave_no_trace_either(begin, tmp_path):
  """Bit for bit, where as many go on: one is killed, then one is told."""
  whole, stopped = tmp_path / 'whole', tmp_path / 'stopped'
  begin(whole, 2).finish()
  for number, batch in ((signal.SIGKILL, 8), (signal.SIGTERM, 2)):
    codes, outputs = begin(stopped, 2, signalled=(1, batch, number)).ended()
    assert all(codes), outputs
  assert steps(stopped)[0] == 5 < max(steps(stopped)) < 12
  begin(stopped, 2).finish()
  assert finished(stopped) == finished(whole)
  assert curve(stopped) == curve(whole)


def test_sigterm_at_the_last_step_is_not_forgotten(begin, tmp_path):
  """The run is finished, and what would come next does not start."""
  workdir = tmp_path / 'last'
  codes, [output] = begin(workdir, 1, signalled=(0, 12, signal.SIGTERM)).ended()
  assert codes == [128 + signal.SIGTERM]
  assert 'reference is finished; run it again' in output
  assert finished(workdir)['step'] == 12


def test_a_clock_saves_too(begin, tmp_path):
  workdir = tmp_path / 'clock'
  often = '--config.reference.training.checkpoint_minutes=1e-9'
  begin(workdir, 1, often).finish()
  # Every second: what is asked with a step is read after the next.
  assert steps(workdir) == [10, 12]


def test_ctrl_c_saves_too(begin, tmp_path):
  """On the process that is told, and on the other as after SIGTERM."""
  workdir = tmp_path / 'interrupted'
  codes, outputs = begin(workdir, 2, signalled=(1, 7, signal.SIGINT)).ended()
  assert codes == [128 + signal.SIGTERM, 128 + signal.SIGINT], outputs
  assert 'SIGINT: saves and stops after this step' in outputs[1]
  [step] = set(steps(workdir)) - {5}
  for output in outputs:
    assert f'reference is saved at step {step} because process 1 was' in output
    assert 'Traceback' not in output


@pytest.mark.parametrize('frozen', [0, 1])
def test_a_frozen_process_is_named_and_ends_when_it_goes_on(
  begin, tmp_path, frozen
):
  """Process 0 holds what the others look into; without it they must notice."""
  job = begin(tmp_path / 'frozen', 3, signalled=(frozen, 3, signal.SIGSTOP))
  begun = time.monotonic()
  codes, outputs = job.ended(frozen)
  assert time.monotonic() - begun < 90  # JAX itself would wait for longer.
  assert set(codes) == {peers.LOST_EXIT_CODE}
  assert 'it stood still for' in outputs.pop(frozen)
  for output in outputs:
    last = output.splitlines()[-1]
    assert f'process {frozen} of 3 sent no heartbeat for 4 s' in last
    for word in ('Traceback', 'E0000', 'F0000', '***', 'coordination'):
      assert word not in output
