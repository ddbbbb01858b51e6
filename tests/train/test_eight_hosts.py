"""Training by eight processes, as on eight hosts, of which one is lost.

Eight end what eight began, bit for bit. Three and five end it on another mesh,
and their losses differ by rounding.
"""

import json
import os
import pathlib
import signal

import host_job
import pytest
from host_job import Job

from infoprune_jax.runtime import manifests

NUM_HOSTS = 8
IN_TIME = host_job.TIMEOUT + 10  # seconds
# 120 sequences are divided by 3, 5 and 8 hosts.
CONFIG = """
from small_corpus import small_config


def get_config():
  config = small_config({path!r})
  config.reference.training.batch_size = 120
  config.reference.training.sequence_length = 32
  config.reference.training.num_steps = 12
  config.reference.training.warmup_steps = 2
  config.reference.training.checkpoint_every = 5
  return config
"""


@pytest.fixture(scope='module')
def begin(store_workdir, corpus_path, tmp_path_factory):
  """Starts processes that train the reference model in a workdir."""
  config = tmp_path_factory.mktemp('config') / 'eight.py'
  config.write_text(CONFIG.format(path=corpus_path))

  def start(workdir: pathlib.Path, processes: int, **options) -> Job:
    workdir.mkdir(exist_ok=True)
    for folder in ('token_store', 'vocabulary'):
      if not (workdir / folder).exists():
        os.symlink(f'{store_workdir}/{folder}', workdir / folder)
    return Job(workdir, config, processes, job='reference', **options)

  return start


@pytest.fixture(scope='module')
def undisturbed(begin, tmp_path_factory) -> pathlib.Path:
  """The workdir of eight that nothing stops."""
  workdir = tmp_path_factory.mktemp('undisturbed') / 'work'
  begin(workdir, NUM_HOSTS).finish()
  return workdir


def losses(workdir: pathlib.Path) -> list[dict[str, float]]:
  lines = (workdir / 'reference/metrics.jsonl').read_text().splitlines()
  return [json.loads(line) for line in lines]


def finished(workdir: pathlib.Path) -> dict:
  return manifests.read_manifest(str(workdir / 'reference'), 'reference')


@pytest.mark.parametrize(
  ('lost', 'number', 'message', 'hosts'),
  [
    (5, signal.SIGSTOP, 'process 5 of 8 sent no heartbeat for 4 s', 3),
    (5, signal.SIGKILL, 'process 5 of 8 sent no heartbeat for 4 s', NUM_HOSTS),
    (0, signal.SIGKILL, 'process 0, at 127.0.0.1:', 5),
    (5, signal.SIGTERM, 'because process 5 was told to stop', NUM_HOSTS),
  ],
  ids=lambda value: getattr(value, 'name', None),
)
def test_one_of_eight_is_lost(
  begin, undisturbed, tmp_path, lost, number, message, hosts
):
  begun = tmp_path / 'begun'
  job = begin(begun, NUM_HOSTS, signalled=(lost, 8, number))
  assert job.ended_without(lost, number, message) < IN_TIME
  [output, *_] = begin(begun, hosts).finish()
  assert 'resumed at step' in output
  if hosts == NUM_HOSTS:
    assert finished(begun) == finished(undisturbed)
    assert losses(begun) == losses(undisturbed)
    return
  assert finished(begun)['epochs'] == finished(undisturbed)['epochs']
  for ours, theirs in zip(losses(begun), losses(undisturbed), strict=True):
    assert ours == pytest.approx(theirs, rel=2e-4)
