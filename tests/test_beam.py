"""Stages as pipelines of Apache Beam: the artifacts of processes, byte by byte."""

import os
import pathlib
import signal
import subprocess
import sys

import pytest
from made_scores import write_scores
from small_corpus import only_arms, small_config, write_corpus

from configs import base
from infoprune_jax.config import experiment as config_lib, validation
from infoprune_jax.config.validation import UserError
from infoprune_jax.export import job as export_job
from infoprune_jax.selection import select
from infoprune_jax.statistics import near_duplicates, statistics
from infoprune_jax.tokens import tokenize

IN_MEMORY = ('--runner=DirectRunner',)
PROCESSES = (
  *IN_MEMORY,
  '--direct_num_workers=2',
  '--direct_running_mode=multi_processing',
)
NOT_COMPARED = ('.lock',)


@pytest.fixture(scope='module')
def corpus(tmp_path_factory) -> str:
  folder = tmp_path_factory.mktemp('corpus')
  write_corpus(folder / 'all.jsonl')
  lines = (folder / 'all.jsonl').read_text().splitlines(keepends=True)
  (folder / 'a.jsonl').write_text(''.join(lines[:50]))
  (folder / 'b.jsonl').write_text(''.join(lines[50:]))
  (folder / 'all.jsonl').unlink()
  return f'{folder}/*.jsonl'


def settings(corpus: str, beam_options: tuple[str, ...]) -> config_lib.Config:
  edits = small_config(corpus)
  edits.corpus.beam_options = beam_options
  only_arms(edits)
  arms = edits.select.arms
  # Beam selects the first by shard; the second needs one machine.
  arms.top = base.arm('top', base.INFORMATION, fraction=0.5, per='source')
  arms.deduplicated = base.arm('distinct', 'near_duplicate_group')
  edits.report.baseline = 'top'
  edits.export.formats = (
    *('jsonl', 'parquet', 'dolma_attributes'),
    *('megatron', 'mds', 'levanter'),
  )
  edits.export.arms = ('deduplicated',)
  return config_lib.from_mapping(edits)


def content(workdir: str) -> dict[str, bytes]:
  root = pathlib.Path(workdir)
  return {
    str(path.relative_to(root)): path.read_bytes()
    for path in root.rglob('*')
    if path.is_file() and path.name not in NOT_COMPARED
  }


def test_the_artifacts_are_those_of_processes(corpus, tmp_path):
  made = {}
  for name, others, first in (
    ('processes', (), ()),
    ('beam', IN_MEMORY, PROCESSES),
  ):
    workdir = str(tmp_path / name)
    tokenize.run(settings(corpus, first), workdir)
    config = settings(corpus, others)
    statistics.run(config, workdir)
    near_duplicates.run(config, workdir)
    write_scores(workdir)
    if others:
      run_killed(corpus, workdir)
      assert not list(pathlib.Path(workdir).rglob('keep.npy'))
    select.run(config, workdir)
    export_job.run(config, workdir)
    made[name] = content(workdir)
  assert made['beam'] == made['processes']
  assert any('deduplicated/parquet' in name for name in made['beam'])


KILLED = """
import os, signal, sys
from test_beam import IN_MEMORY, settings
from infoprune_jax.selection import select, summary

# After the rules of the first arm, before anything is written.
summary.summarize = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
select.run(settings(sys.argv[1], IN_MEMORY), sys.argv[2])
"""


def run_killed(corpus: str, workdir: str) -> None:
  """Selects in a process that is killed in the middle."""
  tests = pathlib.Path(__file__).parent
  paths = [str(tests), str(tests.parent), os.environ.get('PYTHONPATH', '')]
  done = subprocess.run(
    [sys.executable, '-c', KILLED, corpus, workdir],
    env={**os.environ, 'PYTHONPATH': os.pathsep.join(paths)},
  )
  assert done.returncode == -signal.SIGKILL


def test_a_bad_row_is_one_message(corpus, tmp_path):
  path = pathlib.Path(corpus).parent / 'a.jsonl'
  for name in ('a', 'b'):
    (tmp_path / f'{name}.jsonl').write_text(path.read_text() + '{"id": 1}\n')
  config = settings(f'{tmp_path}/*.jsonl', IN_MEMORY)
  refuses = config_lib.from_mapping(
    {
      **validation.to_plain(config),
      'corpus': {
        **validation.to_plain(config.corpus),
        'on_bad_record': 'refuse',
      },
    }
  )
  with pytest.raises(UserError, match='a.jsonl:51.*text'):
    tokenize.run(refuses, str(tmp_path / 'work'))
