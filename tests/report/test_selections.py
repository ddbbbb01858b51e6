"""What arms keep, compared."""

import dataclasses

import numpy as np
import pytest

from infoprune_jax.report import selection_inputs, selections


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
