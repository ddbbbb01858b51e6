"""Which scores rank alike."""

import numpy as np
import pyarrow as pa
import pytest

from configs import base, baselines
from infoprune_jax.config import experiment as config_lib
from infoprune_jax.report.selection import correlations as lib
from infoprune_jax.selection.examples import ExampleTable
from infoprune_jax.tokens import tables


def scored(
  nll: list[float], tokens: list[int], folds: list[int]
) -> ExampleTable:
  count = len(nll)
  columns = {
    'shard': np.zeros(count, np.int32),
    'doc_index': np.arange(count),
    'example_id': [str(n) for n in range(count)],
    'source': pa.array(['web'] * count).dictionary_encode(),
    'num_tokens': np.array(tokens, np.int32),
    'num_bytes': 3 * np.array(tokens, np.int32),
    'nll_sum': np.array(nll) * np.array(tokens),
    'content_hash': np.arange(count),
    'fold': np.array(folds, np.int8),
    'unigram_nll_sum': 7.0 * np.array(tokens),
    'unigram_frequency_sum': 0.01 * np.array(tokens),
    'unigram_frequency_square_sum': 0.0002 * np.array(tokens),
    'compressed_bytes': np.array(tokens, np.int32),
  }
  return ExampleTable(
    pa.table(columns, schema=tables.example_schema(['nll_sum'])),
    np.arange(count),
  )


def compared(*expressions: str) -> config_lib.Config:
  edits = base.get_config()
  edits.corpus.sources.web = base.text('*.txt')
  edits.select.arms.update(baselines.information(fraction=0.5))
  for number, expression in enumerate(expressions):
    edits.select.arms[f'arm{number}'] = base.arm(
      'top', expression, fraction=0.5
    )
  return config_lib.from_mapping(edits)


def test_correlations_by_hand():
  """The mean NLL falls with length but for one pair of six."""
  examples = scored([4.0, 2.0, 3.0, 1.0, 9.0], [1, 2, 3, 4, 0], [0] * 5)
  content = lib.correlations(
    compared('NLL_SUM/num_tokens', '-num_tokens'), examples
  )
  scores, spearman, *_ = content['correlations'].values()
  labels = [score['label'] for score in scores]
  assert labels == [*lib.NATURAL_SCORES, '-num_tokens']
  assert scores[0]['arms'] == ['top_nll', 'bottom_nll', 'arm0']
  assert scores[2]['arms'] == ['top_sum']
  assert scores[-1]['arms'] == ['arm1']
  mean, length = 0, labels.index(lib.LENGTH)
  # 1 - 6 x (3^2 + 0 + 0 + 3^2) / (4 x 15), of ranks 4, 2, 3, 1 and 1, 2, 3, 4.
  assert spearman[mean][length] == pytest.approx(-0.8)
  assert spearman[mean][-1] == pytest.approx(0.8)
  assert spearman[1][length] is None  # Seven nats per token, everywhere.
  bias = {item['label']: item['rho'] for item in content['length_bias']}
  assert bias['mean NLL'] == spearman[mean][length]
  assert lib.LENGTH not in bias


def test_correlations_of_two_folds_are_of_ranks_within_them():
  nll = [1.0, 2.0, 3.0, 10.0, 20.0, 30.0]
  tokens = [1, 2, 3, 1, 2, 3]
  spearman = {
    folds: lib.correlations(compared(), scored(nll, tokens, list(folds)))[
      'correlations'
    ]['spearman'][0][-1]
    for folds in ((0,) * 6, (0, 0, 0, 1, 1, 1))
  }
  assert spearman[0, 0, 0, 1, 1, 1] == pytest.approx(1.0)
  assert spearman[(0,) * 6] < 0.9


def test_of_many_examples_some_are_ranked(monkeypatch):
  """About as many as asked for, always the same, and near to all of them."""
  rng = np.random.default_rng(0)
  tokens = rng.integers(1, 100, 4000)
  nll = 3.0 + tokens / 100 + rng.normal(0.0, 0.5, 4000)
  examples = scored(nll.tolist(), tokens.tolist(), [0] * 4000)
  everything = lib.correlations(compared(), examples)
  monkeypatch.setattr(lib, 'MAX_RANKED', 2000)
  drawn = lib.correlations(compared(), examples)
  assert drawn == lib.correlations(compared(), examples)
  whole, some = (content['correlations'] for content in (everything, drawn))
  assert whole['ranked'] == whole['out_of'] == some['out_of'] == 4000
  assert 1900 < some['ranked'] < 2100
  assert some['spearman'] != whole['spearman']
  assert some['spearman'][0][5] == pytest.approx(
    whole['spearman'][0][5], abs=0.05
  )


def test_scores_that_may_be_missing_are_ranked_lowest():
  edits = base.get_config()
  edits.corpus.sources.web = base.text('*.txt')
  edits.select.arms.late = base.arm(
    'top', 'nll_sum / (doc_index - 2)', fraction=0.5, missing='lowest'
  )
  examples = scored([4.0, 2.0, 3.0, 1.0], [1, 2, 3, 4], [0] * 4)
  content = lib.correlations(config_lib.from_mapping(edits), examples)
  assert content['correlations']['spearman'][-1][-1] == pytest.approx(1.0)
