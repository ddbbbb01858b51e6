"""Stages as pipelines of Apache Beam: the artifacts of processes, byte by byte."""

import pathlib

import numpy as np
import pytest
from made_scores import write_scores
from small_corpus import small_config, write_corpus

from configs import base
from infoprune_jax.config import experiment as config_lib, validation
from infoprune_jax.config.validation import UserError
from infoprune_jax.export import job as export_job
from infoprune_jax.runtime import workers
from infoprune_jax.selection import budget, by_shard, select
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
  edits.select.arms.deduplicated = base.arm('distinct', 'near_duplicate_group')
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
    select.run(config, workdir)
    export_job.run(config, workdir)
    made[name] = content(workdir)
  assert made['beam'] == made['processes']
  assert any('deduplicated/parquet' in name for name in made['beam'])


def ranking_of(shard: int) -> budget.Ranking:
  rng = np.random.default_rng(shard)
  return budget.Ranking(
    budget.ordered_bits(rng.integers(0, 3, 100).astype(np.float64)),
    np.arange(100) + 100 * shard,
    rng.integers(1, 100, 100, np.int32),
    np.zeros(100, np.int32),
    seed=0,
  )


def test_keep_bits_are_those_of_processes(corpus, tmp_path):
  made = []
  for options in ((), IN_MEMORY):
    config = settings(corpus, options)
    shards = by_shard.Shards(ranking_of, count=3, groups=1, num_workers=2)
    with workers.shared_pool(config.corpus, str(tmp_path), 'select'):
      most = by_shard.totals(shards) // 2
      bits = by_shard.lowest(shards, most)
      made.append([some.tolist() for some in bits])
  assert made[0] == made[1]
  assert 0 < np.unpackbits(np.array(made[0], np.uint8)).sum() < 300


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
