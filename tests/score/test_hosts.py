"""Scoring by several processes, as on several hosts: who does what, and ends.

The processes are real ones that meet on this machine, each with one or two CPU
devices of its own.
"""

import shutil
import signal

import numpy as np
import pytest
from host_job import Job
from scoring_workdir import Workdir, prepare

from infoprune_jax.runtime import peers
from infoprune_jax.runtime.workdir import scores_dir
from infoprune_jax.tokens import tables

NUM_PARTS = 5


@pytest.fixture(scope='module')
def prepared(corpus_path, tmp_path_factory) -> Workdir:
  return prepare(corpus_path, tmp_path_factory.mktemp('prepared'), 1, NUM_PARTS)


@pytest.fixture(scope='module')
def alone(prepared) -> dict[str, str]:
  """The table of one process with one device, in `prepared`."""
  Job(*prepared.job, 1).finish()
  return prepared.scores()


def test_hosts_write_the_table_of_one(prepared, alone, tmp_path):
  """Two groups of hosts, of two devices each."""
  workdir = prepared.copy(tmp_path / 'work')
  outputs = Job(*workdir.job, 2, devices=2).finish()
  assert workdir.scores() == alone
  assert '2 processes, 4 devices' in outputs[0]
  assert 'the device waited for the host' in outputs[0]
  assert 'score' not in outputs[1]


def test_a_slurm_job_needs_no_addresses(prepared, alone, tmp_path):
  workdir = prepared.copy(tmp_path / 'work')
  outputs = Job(*workdir.job, 2, slurm=True).finish()
  assert workdir.scores() == alone
  assert '2 processes, 2 devices' in outputs[0]


def test_hosts_of_one_tensor_axis_feed_the_same_rows(prepared, alone, tmp_path):
  workdir = prepared.copy(tmp_path / 'work')
  mesh = ('--config.mesh.data=1', '--config.mesh.tensor=2')
  # The second must not write: it would die of it.
  Job(*workdir.job, 2, *mesh, killed=(1, 1)).finish()
  found = workdir.scores()
  changing = {name for name in found if found[name] != alone[name]}
  assert found.keys() == alone.keys()
  assert 'begun.json' not in changing
  both = [
    tables.read_table(scores_dir(str(path)))
    for path in (workdir.path, prepared.path)
  ]
  assert both[0].drop('nll_sum').equals(both[1].drop('nll_sum'))
  np.testing.assert_allclose(both[0]['nll_sum'], both[1]['nll_sum'], rtol=1e-5)


def test_hosts_of_one_fsdp_axis_run_equally_many_steps(prepared, tmp_path):
  """One has a shard more than the other, and each holds half the parameters."""
  mesh = ('--config.mesh.data=1', '--config.mesh.fsdp=2')
  one, two = (prepared.copy(tmp_path / name) for name in ('one', 'two'))
  jobs = [Job(*one.job, 1, *mesh, devices=2), Job(*two.job, 2, *mesh)]
  for job in jobs:
    job.finish()
  assert one.scores() == two.scores()


def test_killed_in_the_middle_and_resumed_by_other_hosts(
  prepared, alone, tmp_path
):
  """The last job has more hosts than shards to do."""
  workdir = prepared.copy(tmp_path / 'work')
  for processes, killed in ((3, (1, 2)), (2, (0, 1))):
    codes, outputs = Job(*workdir.job, processes, killed=killed).ended()
    assert codes.pop(killed[0]) == -signal.SIGKILL
    outputs.pop(killed[0])
    assert set(codes) == {peers.LOST_EXIT_CODE}
    for output in outputs:
      assert f'process {killed[0]}' in output, output
      assert 'Start the job again, on any number of hosts' in output
      assert 'Traceback' not in output
    assert not (workdir.path / 'scores/manifest.json').exists()
  outputs = Job(*workdir.job, 4).finish()
  assert 'shards were finished before' in outputs[0]
  assert workdir.scores() == alone


@pytest.mark.parametrize(
  ('told', 'number'), [(1, signal.SIGTERM), (0, signal.SIGINT)]
)
def test_who_is_told_to_stop_tells_the_others(prepared, tmp_path, told, number):
  workdir = prepared.copy(tmp_path / 'work')
  codes, outputs = Job(*workdir.job, 3, signalled=(told, 1, number)).ended()
  assert codes.pop(told) == 128 + number
  assert 'stopped; run it again to continue' in outputs.pop(told)
  assert codes == [128 + signal.SIGTERM] * 2, outputs
  for output in outputs:
    name = signal.Signals(number).name
    assert f'process {told} was told to stop ({name}). Start' in output
    assert output.count('was told') == 1
    assert 'Traceback' not in output


def test_what_was_stopped_writes_nothing_over_a_newer_table(
  prepared, alone, tmp_path
):
  workdir = prepared.copy(tmp_path / 'work')
  other = ('--config.score.window_overlap=8',)
  stopped = Job(*workdir.job, 2, *other, signalled=(1, 1, signal.SIGSTOP))
  assert stopped.wait_for(0) == peers.LOST_EXIT_CODE
  shutil.rmtree(workdir.path / 'scores')
  Job(*workdir.job, 1).finish()
  stopped.go_on(1)
  codes, outputs = stopped.ended()
  assert codes == [peers.LOST_EXIT_CODE] * 2, outputs
  assert 'Traceback' not in outputs[1]
  assert workdir.scores() == alone
