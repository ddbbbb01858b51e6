"""Score tables that no model made, and a workdir up to scoring."""

import json
import random
import shutil
from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pytest
from made_scores import write_scores
from ml_collections import ConfigDict

from configs import base, baselines
from infoprune_jax.config import experiment as config_lib
from infoprune_jax.selection.examples import ExampleTable
from infoprune_jax.statistics import statistics
from infoprune_jax.tokens import tables, tokenize


def examples(
  scores: list[float],
  tokens: list[int] | None = None,
  sources: list[str] | None = None,
  index: list[int] | None = None,
  content: list[int] | None = None,
  folds: list[int] | None = None,
) -> ExampleTable:
  """Scored examples; `nll_sum` is the score."""
  count = len(scores)
  tokens = [10] * count if tokens is None else tokens
  columns = {
    'shard': np.zeros(count, np.int32),
    'doc_index': np.arange(count),
    'example_id': [f'id-{n}' for n in range(count)],
    'source': pa.array(sources or ['web'] * count).dictionary_encode(),
    'num_tokens': np.array(tokens, np.int32),
    'num_bytes': 3 * np.array(tokens, np.int32),
    'nll_sum': np.array(scores, float),
    'content_hash': np.arange(count) if content is None else content,
    'fold': np.array(folds or [0] * count, np.int8),
    'unigram_nll_sum': np.ones(count),
    'unigram_frequency_sum': np.full(count, 0.5),
    'unigram_frequency_square_sum': np.full(count, 0.25),
    'compressed_bytes': np.ones(count, np.int32),
  }
  return ExampleTable(
    pa.table(columns, schema=tables.example_schema(['nll_sum'])),
    np.arange(count) if index is None else np.array(index, np.int64),
  )


@pytest.fixture(scope='session')
def make_examples() -> Callable[..., ExampleTable]:
  return examples


@pytest.fixture(scope='session')
def make_scores() -> Callable[..., None]:
  return write_scores


@pytest.fixture(scope='session')
def experiment(tmp_path_factory) -> ConfigDict:
  """A config over 200 small documents of three sources."""
  path = tmp_path_factory.mktemp('corpus') / 'x.jsonl'
  rng = random.Random(0)
  rows = [
    {
      'id': n,
      'text': ' '.join(
        f'{rng.random():.3f}' for _ in range(rng.randint(1, 40))
      ),
      'source': rng.choice(('web', 'books', 'code')),
    }
    for n in range(200)
  ]
  path.write_text(''.join(json.dumps(row) + '\n' for row in rows))
  edits = base.get_config()
  edits.corpus.sources.mine = base.jsonl(
    str(path), id_column='id', source_column='source'
  )
  edits.corpus.update(num_shards=3, num_workers=1)
  edits.vocabulary.update(size=330, type='bpe')
  edits.report.num_examples = 4
  edits.select.arms.update(baselines.information(fraction=0.5))
  return edits


@pytest.fixture(scope='session')
def scored(experiment, tmp_path_factory) -> str:
  """A workdir with a token store and a score table: for reading only."""
  workdir = str(tmp_path_factory.mktemp('scored'))
  made = config_lib.from_mapping(experiment)
  tokenize.run(made, workdir)
  statistics.run(made, workdir)
  write_scores(workdir)
  return workdir


@pytest.fixture
def workdir(scored, tmp_path) -> str:
  """A copy of it to write to."""
  return shutil.copytree(scored, str(tmp_path / 'work'))
