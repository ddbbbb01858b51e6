"""What arms keep, compared."""

import dataclasses

import numpy as np
import pyarrow as pa
import pytest

from configs import base
from infoprune_jax import config as config_lib
from infoprune_jax.report import inputs, selections
from infoprune_jax.score import table
from infoprune_jax.selection.examples import ExampleTable


def masks(*rows: str) -> np.ndarray:
  return np.array([[mark == '1' for mark in row] for row in rows])


TOKENS = np.array([10, 20, 30, 40])


def test_overlaps_by_hand():
  found = selections.overlaps([masks('1100', '0110', '0000')], TOKENS)
  assert found['tokens'] == [
    [1.0, pytest.approx(20 / 60), 0.0],
    [pytest.approx(20 / 60), 1.0, 0.0],
    [0.0, 0.0, 0.0],
  ]
  assert found['examples'][0][1] == pytest.approx(1 / 3)


def test_draws_are_averaged_and_meet_each_other():
  """The second arm draws; it is compared with the first seed by seed."""
  first, second = masks('1100', '1100'), masks('1100', '0011')
  found = selections.overlaps([first, second], TOKENS)['tokens']
  assert found[0][1] == found[1][0] == (1.0 + 0.0) / 2
  assert found[0][0] == 1.0
  assert found[1][1] == 0.0  # Its draws have nothing in common.
  three = selections.overlaps([first, first, second], TOKENS)['tokens']
  assert three[1][1] == pytest.approx(1 / 3)


def scored(
  nll: list[float], tokens: list[int], folds: list[int]
) -> ExampleTable:
  count = len(nll)
  columns = {
    'shard': np.zeros(count, np.int32),
    'row': np.arange(count),
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
    pa.table(columns, schema=table.example_schema(['nll_sum'])),
    np.arange(count),
  )


def compared(*expressions: str) -> config_lib.Config:
  edits = base.get_config()
  edits.corpus.sources.web = base.text('*.txt')
  for number, expression in enumerate(expressions):
    edits.select.arms[f'arm{number}'] = base.arm(
      'top', expression, fraction=0.5
    )
  return config_lib.from_mapping(edits)


def test_correlations_by_hand():
  """The mean NLL falls with length but for one pair of six."""
  examples = scored([4.0, 2.0, 3.0, 1.0, 9.0], [1, 2, 3, 4, 0], [0] * 5)
  found = selections.correlations(
    compared('NLL_SUM/num_tokens', '-num_tokens'), examples
  )
  scores, spearman = found['correlations'].values()
  labels = [score['label'] for score in scores]
  assert labels == [*selections.NATURAL_SCORES, '-num_tokens']
  assert scores[0]['arms'] == ['top_nll', 'bottom_nll', 'arm0']
  assert scores[2]['arms'] == ['top_sum']
  assert scores[-1]['arms'] == ['arm1']
  mean, length = 0, labels.index(selections.LENGTH)
  # 1 - 6 x (3^2 + 0 + 0 + 3^2) / (4 x 15), of ranks 4, 2, 3, 1 and 1, 2, 3, 4.
  assert spearman[mean][length] == pytest.approx(-0.8)
  assert spearman[mean][-1] == pytest.approx(0.8)
  assert spearman[1][length] is None  # Seven nats a token, everywhere.
  bias = {item['label']: item['rho'] for item in found['length_bias']}
  assert bias['mean NLL'] == spearman[mean][length]
  assert selections.LENGTH not in bias


def test_correlations_of_two_folds_are_of_ranks_within_them():
  nll = [1.0, 2.0, 3.0, 10.0, 20.0, 30.0]
  tokens = [1, 2, 3, 1, 2, 3]
  spearman = {
    folds: selections.correlations(
      compared(), scored(nll, tokens, list(folds))
    )['correlations']['spearman'][0][-1]
    for folds in ((0,) * 6, (0, 0, 0, 1, 1, 1))
  }
  assert spearman[0, 0, 0, 1, 1, 1] == pytest.approx(1.0)
  assert spearman[(0,) * 6] < 0.9


def summary_of(
  kept: dict[str, int], added: dict[str, int] | None = None
) -> dict:
  tokens = {'web': 60, 'books': 40}
  return {
    'sources': [
      {'source': name, 'tokens': tokens[name], 'kept_tokens': kept[name]}
      for name in tokens
    ],
    **({'added': {'sources': added}} if added else {}),
  }


def test_mix_by_hand():
  found = selections.mix(
    {
      'full': [summary_of({'web': 60, 'books': 40})],
      'top': [summary_of({'web': 10, 'books': 40})],
      'random': [
        summary_of({'web': 40, 'books': 10}),
        summary_of({'web': 20, 'books': 30}),
      ],
      'everything': [
        summary_of({'web': 60, 'books': 40}, {'web': 100, 'other': 50})
      ],
    }
  )
  # The largest moves first, then by name.
  books, web, other = found['sources']
  assert [s['source'] for s in (books, web, other)] == ['books', 'web', 'other']
  assert web['share'] == 0.6 and other['share'] == 0.0
  assert web['arms'] == {
    'full': 0.6,
    'top': 0.2,
    'random': 0.6,
    'everything': 0.64,
  }
  assert web['shift'] == pytest.approx(0.4)
  assert found['moved'] == pytest.approx(
    {'full': 0.0, 'top': 0.4, 'random': 0.0, 'everything': 0.24}
  )


@pytest.fixture(scope='module')
def found(make_workdir):
  config, workdir = make_workdir(everything=True)
  upstream = inputs.open_upstream(config, workdir)
  summaries = inputs.keep_summaries(workdir, upstream)
  return config, selections.gather(config, workdir, upstream, summaries)


def test_overlaps_of_a_workdir(found):
  config, gathered = found
  at = {arm: a for a, arm in enumerate(config.arms)}
  tokens = gathered['overlaps']['tokens']
  assert tokens[at['full']][at['everything']] == 1.0
  assert tokens[at['top_nll']][at['bottom_nll']] == 0.0
  assert tokens[at['random']][at['random']] == 0.0  # Odd and even examples.
  assert tokens[at['random']][at['full']] == pytest.approx(0.5, abs=0.05)
  assert np.array(tokens).tolist() == np.array(tokens).T.tolist()


def test_kept_by_length(found):
  _, gathered = found
  lengths = gathered['lengths']
  assert len(lengths) == 10
  assert all(row['arms']['full'] == 1.0 for row in lengths)
  for row in lengths:
    both = row['arms']['top_nll'] + row['arms']['bottom_nll']
    assert both == pytest.approx(1.0)
  sizes = [row['examples'] for row in lengths]
  assert sum(sizes) == 900 and max(sizes) - min(sizes) < 30


def test_examples_of_each_decile(found):
  _, gathered = found
  deciles = gathered['kept']['deciles']
  assert len(gathered['decile_examples']) == len(deciles) == 10
  for bounds, examples in zip(
    deciles, gathered['decile_examples'], strict=True
  ):
    assert len(examples) == selections.EXAMPLES_PER_DECILE
    scores = [example['score'] for example in examples]
    assert scores == sorted(scores)
    assert bounds['low'] <= scores[0] and scores[-1] <= bounds['high']
    assert all(example['text'] and example['cut'] for example in examples)


def test_fewer_examples_when_asked(make_workdir):
  config, workdir = make_workdir(num_documents=10)
  config = dataclasses.replace(
    config, report=dataclasses.replace(config.report, num_examples=1)
  )
  upstream = inputs.open_upstream(config, workdir)
  summaries = inputs.keep_summaries(workdir, upstream)
  gathered = selections.gather(config, workdir, upstream, summaries)
  assert {len(decile) for decile in gathered['decile_examples']} == {1}
