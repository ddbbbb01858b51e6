"""20 scores and 50 losses of a small run, against `tests/golden/`.

Refresh with `make goldens`, and only when numbers are meant to change: another
initialisation, data order, model or statistic. Say so in the commit.
"""

import dataclasses
import json
import pathlib

import pytest

from infoprune_jax.runtime import manifests
from infoprune_jax.runtime.workdir import reference_dir
from infoprune_jax.score import stage
from infoprune_jax.selection.examples import scored_examples
from infoprune_jax.statistics import statistics
from infoprune_jax.tokens import tables
from infoprune_jax.tokens.token_store import TokenStore
from infoprune_jax.train import metrics, runs

FOLDER = pathlib.Path(__file__).parent / 'golden'
# Across CPUs products are summed in another order; AdamW carries it on.
LOSS_TOLERANCE = 2e-4
NLL_TOLERANCE = 1e-4
NUM_LOSSES, NUM_ROWS = 50, 20


@pytest.fixture(scope='module')
def workdir(small, store_workdir):
  training = dataclasses.replace(
    small.reference.training, num_steps=NUM_LOSSES, log_every=1
  )
  config = dataclasses.replace(
    small, reference=dataclasses.replace(small.reference, training=training)
  )
  runs.run_reference(config, store_workdir)
  statistics.run(config, store_workdir)
  stage.run(config, store_workdir)
  return store_workdir


def against(name: str, found: list[dict], request) -> list[dict]:
  """The golden rows of a file, which are first rewritten if that is asked."""
  path = FOLDER / name
  if request.config.getoption('--refresh-goldens'):
    path.parent.mkdir(exist_ok=True)
    path.write_text(''.join(json.dumps(row) + '\n' for row in found))
  return [json.loads(line) for line in path.read_text().splitlines()]


def test_losses(workdir, request):
  run = reference_dir(workdir)
  manifest = manifests.read_manifest(run, 'reference')
  found = [
    {'step': line['step'], 'loss': line['loss']}
    for line in metrics.read(run, manifest['metrics'], 'reference')
    if 'loss' in line
  ]
  golden = against('losses.jsonl', found, request)
  assert len(golden) == NUM_LOSSES
  for row, expected in zip(found, golden, strict=True):
    assert row['step'] == expected['step']
    assert row['loss'] == pytest.approx(expected['loss'], abs=LOSS_TOLERANCE), (
      f'Step {row["step"]}. If numbers are meant to change: make goldens.'
    )


def test_scores(workdir, request):
  store = TokenStore.open(workdir)
  rows = scored_examples(workdir, store).table
  found = rows.slice(0, NUM_ROWS).to_pylist()
  golden = against('scores.jsonl', found, request)
  assert len(golden) == NUM_ROWS
  for row, expected in zip(found, golden, strict=True):
    nll, expected_nll = row.pop('nll_sum'), expected.pop('nll_sum')
    sums = {name: row.pop(name) for name in tables.TOKEN_SUMS}
    assert nll == pytest.approx(expected_nll, rel=NLL_TOLERANCE), (
      f'{row["example_id"]}. If numbers are meant to change: make goldens.'
    )
    for name, value in sums.items():
      assert value == pytest.approx(expected.pop(name), rel=1e-12)
    assert row == expected
