"""Scoring by eight processes, as on eight hosts, of which one is lost.

The others name it in time, and three or five hosts end what eight began.
"""

import pathlib
import shutil
import signal

import host_job
import pytest
from host_job import Job
from scoring_workdir import Workdir, prepare

NUM_HOSTS = 8
NUM_SHARDS = 3 * NUM_HOSTS
IN_TIME = host_job.TIMEOUT + 10  # seconds


@pytest.fixture(scope='module')
def prepared(corpus_path, tmp_path_factory) -> Workdir:
  folder = tmp_path_factory.mktemp('prepared')
  return prepare(corpus_path, folder, folds=1, num_shards=NUM_SHARDS)


@pytest.fixture(scope='module')
def undisturbed(prepared) -> dict[str, str]:
  """The table of eight that nothing stops, in `prepared`."""
  Job(*prepared.job, NUM_HOSTS).finish()
  return prepared.scores()


def finish_on(hosts: int, begun: Workdir, folder: pathlib.Path) -> Workdir:
  """A copy of a workdir in which as many hosts have ended the job."""
  workdir = begun.copy(folder)
  shutil.copytree(begun.path / 'scores', folder / 'scores')
  Job(*workdir.job, hosts).finish()
  return workdir


@pytest.mark.parametrize(
  ('lost', 'number', 'message'),
  [
    (5, signal.SIGSTOP, 'process 5 of 8 sent no heartbeat for 4 s'),
    (0, signal.SIGSTOP, 'process 0 of 8 sent no heartbeat for 4 s'),
    (5, signal.SIGKILL, 'process 5 of 8 sent no heartbeat for 4 s'),
    (0, signal.SIGKILL, 'process 0, at 127.0.0.1:'),
    (5, signal.SIGTERM, 'process 5 was told to stop (SIGTERM)'),
  ],
  ids=lambda value: getattr(value, 'name', None),
)
def test_one_of_eight_is_lost(
  prepared, undisturbed, tmp_path, lost, number, message
):
  begun = prepared.copy(tmp_path / 'begun')
  job = Job(*begun.job, NUM_HOSTS, signalled=(lost, 2, number))
  assert job.ended_without(lost, number, message) < IN_TIME
  assert not (begun.path / 'scores/manifest.json').exists()
  for hosts in (3, 5):
    finished = finish_on(hosts, begun, tmp_path / str(hosts))
    assert finished.scores() == undisturbed
