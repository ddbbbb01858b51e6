"""Reading what earlier stages wrote."""

import dataclasses
import json
import math
import posixpath
import shutil

import numpy as np
import pytest

from infoprune_jax.config.validation import UserError
from infoprune_jax.report.results import inputs
from infoprune_jax.runtime import files, manifests
from infoprune_jax.runtime.workdir import (
  evaluation_dir,
  run_dir,
  selection_report_dir,
  vocabulary_dir,
)
from infoprune_jax.tokens import tables


@pytest.fixture(scope='module')
def small(make_workdir):
  return make_workdir(num_documents=10)


@pytest.fixture
def copied(small, tmp_path):
  config, workdir = small
  return config, shutil.copytree(workdir, str(tmp_path / 'copy'))


def test_losses_join_shards_with_their_own_dictionaries(small):
  config, workdir = small
  losses = inputs.heldout_losses(config, workdir)
  assert losses.arms == config.arms
  assert losses.nll_sum.shape == (5, 2, len(losses.source))
  path = evaluation_dir(workdir, 'top_sum', 1)
  rows = tables.read_table(path, ('source', 'nll_sum')).to_pydict()
  for name in set(rows['source']):
    expected = sum(
      nll
      for nll, source in zip(rows['nll_sum'], rows['source'], strict=True)
      if source == name
    )
    nll_sum = losses.by_source(losses.nll_sum[config.arms.index('top_sum'), 1])
    assert nll_sum[losses.sources.index(name)] == pytest.approx(expected)


def test_a_missing_run_is_named_with_its_job(copied):
  config, workdir = copied
  shutil.rmtree(evaluation_dir(workdir, 'top_nll', 1))
  with pytest.raises(UserError, match=r'top_nll/seed-1 is not there.*evaluate'):
    inputs.open_upstream(config, workdir)


def test_an_artifact_of_another_lineage_is_refused(copied):
  config, workdir = copied
  path = posixpath.join(run_dir(workdir, 'full', 0), 'manifest.json')
  manifest = files.read_record(path, '')
  files.write_record(path, {**manifest, 'fingerprint': 'f' * 16})
  with pytest.raises(UserError, match=r'evaluation of full, seed 0 .* f{16}'):
    inputs.open_upstream(config, workdir)


@pytest.mark.parametrize('made_from', ['keep_set', 'scores'])
def test_a_run_from_other_artifacts_is_refused(copied, made_from):
  config, workdir = copied
  path = posixpath.join(run_dir(workdir, 'full', 0), 'manifest.json')
  manifest = files.read_record(path, '')
  named = {**manifest['inputs'], made_from: 'e' * 16}
  files.write_record(path, {**manifest, 'inputs': named})
  with pytest.raises(UserError, match=r'training run of full, seed 0 .* e{16}'):
    inputs.open_upstream(config, workdir)


def test_runs_evaluated_on_other_documents_are_refused(small, monkeypatch):
  config, workdir = small

  read_table = tables.read_table

  def shifted(path, columns):
    rows = read_table(path, columns)
    return rows.slice(1) if path.endswith('top_nll/seed-1') else rows

  monkeypatch.setattr(tables, 'read_table', shifted)
  with pytest.raises(UserError, match='top_nll/seed-1 holds other documents'):
    inputs.heldout_losses(config, workdir)


def test_a_loss_that_is_not_finite_is_refused(small, monkeypatch):
  config, workdir = small

  read_table = tables.read_table

  def broken(path, columns):
    rows = read_table(path, columns)
    if not path.endswith('random/seed-0'):
      return rows
    nll = rows['nll_sum'].to_numpy().copy()
    nll[7] = np.nan
    at = rows.column_names.index('nll_sum')
    return rows.set_column(at, 'nll_sum', [nll])

  monkeypatch.setattr(tables, 'read_table', broken)
  with pytest.raises(UserError, match='not finite, in record 7'):
    inputs.heldout_losses(config, workdir)


def write_metrics(workdir: str, *lines: dict) -> str:
  """Other metrics for a run; returns their file."""
  run = run_dir(workdir, 'full', 0)
  path = posixpath.join(run, 'metrics.jsonl')
  text = ''.join(json.dumps(line) + '\n' for line in lines)
  manifest = manifests.read_manifest(run, 'train')
  manifest['metrics'] = files.write_text(path, text)
  files.write_record(posixpath.join(run, 'manifest.json'), manifest)
  return path


def test_curve_is_by_step(copied):
  _, workdir = copied
  path = write_metrics(
    workdir,
    {
      **{
        'step': 0,
        'tokens': 0,
        'heldout_nll': 1,
        'heldout_bits_per_byte': 4.0,
      },
      **{'heldout_nll/a/b': 1.5, 'heldout_nll/rare': 7.0},
    },
    {'step': 5, 'tokens': 50, 'loss': 3.0},
    {
      **{'step': 10, 'tokens': 100, 'heldout_bits_per_byte': 2.0},
      'heldout_nll/a/b': 0.5,
    },
  )
  curve = {
    'step': [0, 10],
    'tokens': [0, 100],
    'bits_per_byte': [4.0, 2.0],
    'nats_per_token_by_source': {'a/b': [1.5, 0.5]},
  }
  assert inputs.heldout_curve(workdir, 'full', 0) == curve
  text = files.read_bytes(path).decode()
  # A run that went on since, and was killed.
  files.write_text(path, text + '{"step": 15, "tok')
  assert inputs.heldout_curve(workdir, 'full', 0) == curve
  for damaged in (text.replace('4.0', '4.1'), text[:-1]):
    files.write_text(path, damaged)
    with pytest.raises(UserError, match=r'metrics\.jsonl is damaged'):
      inputs.heldout_curve(workdir, 'full', 0)
  write_metrics(
    workdir, {'step': 7, 'tokens': 0, 'heldout_bits_per_byte': math.nan}
  )
  with pytest.raises(UserError, match='of step 7 is nan'):
    inputs.heldout_curve(workdir, 'full', 0)


def test_a_damaged_shard_is_named(copied):
  config, workdir = copied
  path = evaluation_dir(workdir, 'full', 1)
  part = posixpath.join(path, 'data/part-00001-of-00002.parquet')
  files.write_text(part, 'short')
  with pytest.raises(
    UserError, match=r'part-00001-of-00002\.parquet has 5 byte'
  ):
    inputs.open_upstream(config, workdir)


def test_a_selection_report_of_another_config_is_refused(small):
  config, workdir = small
  other = dataclasses.replace(
    config, report=dataclasses.replace(config.report, num_examples=7)
  )
  with pytest.raises(
    UserError,
    match=r'report: num_examples 3 -> 7\. Run --job=selection_report',
  ):
    inputs.open_upstream(other, workdir)


def test_a_selection_report_of_other_artifacts_is_refused(copied):
  config, workdir = copied
  path = posixpath.join(vocabulary_dir(workdir), 'manifest.json')
  manifest = files.read_record(path, '')
  files.write_record(path, {**manifest, 'fingerprint': 'f' * 16})
  with pytest.raises(UserError, match='another version of vocabulary'):
    inputs.open_upstream(config, workdir)


def test_a_missing_selection_report_is_named_with_its_job(copied):
  config, workdir = copied
  shutil.rmtree(selection_report_dir(workdir))
  with pytest.raises(UserError, match='Run --job=selection_report first'):
    inputs.open_upstream(config, workdir)


def test_runs_short_of_the_budget_are_refused(small):
  config, workdir = small
  training = dataclasses.replace(config.train.training, num_steps=600)
  train = dataclasses.replace(config.train, training=training)
  with pytest.raises(UserError, match=r'has 500 steps, but .* asks for 600'):
    inputs.open_upstream(dataclasses.replace(config, train=train), workdir)


@pytest.mark.parametrize(
  'budget, steps',
  [
    ({'num_tokens': 500 * 4096 + 4095}, 500),
    ({'num_flops': 2e13}, 500),
    ({'num_flops': 1.999e13}, 499),
  ],
)
def test_a_budget_in_tokens_or_flops_is_one_in_steps(small, budget, steps):
  """500 steps of 4096 tokens for 2e13 FLOPs."""
  config, workdir = small
  training = dataclasses.replace(config.train.training, num_steps=0, **budget)
  train = dataclasses.replace(config.train, training=training)
  upstream = inputs.open_upstream(config, workdir)
  config = dataclasses.replace(config, train=train)
  assert upstream.num_steps(config) == steps
  if steps == 500:
    upstream.check_budget(config)
  else:
    with pytest.raises(UserError, match=r'num_flops=1\.999e\+13 asks for 499'):
      upstream.check_budget(config)


@pytest.fixture(scope='module')
def longer(make_workdir):
  return make_workdir(num_documents=10, everything=True)


def test_everything_goes_on_for_the_flops_of_the_others(longer):
  """500 steps for 2e13 FLOPs, so 500 for the reference, 100 for scoring."""
  config, workdir = longer
  upstream = inputs.open_upstream(config, workdir)
  assert upstream.runs['everything', 0]['step'] == 1100


@pytest.mark.parametrize(
  'step, scoring, accepted',
  [
    (1100, 4e12, True),
    (1100, 4e12 * (1 + 1e-12), True),  # Summed in another order.
    (1100, 4e12 * (1 - 1e-12), True),
    (1100, 4.039e12, True),  # Not enough for one step more.
    (1099, 3.99e12, True),
    (1099, 4e12 * 1.001, False),
    (1101, 4e12, False),
    (500, 4e12, False),
  ],
)
def test_steps_of_everything(longer, step, scoring, accepted):
  config, workdir = longer
  upstream = inputs.open_upstream(config, workdir)
  run = dict(upstream.runs['everything', 0], step=step, flops=step * 4e10)
  upstream = dataclasses.replace(
    upstream,
    scores={**upstream.scores, 'flops': scoring},
    runs={**upstream.runs, ('everything', 0): run, ('everything', 1): run},
  )
  if accepted:
    upstream.check_budget(config)
  else:
    with pytest.raises(UserError, match=r'should have 1100\. Arms must'):
      upstream.check_budget(config)


def test_other_arms_may_not_be_a_step_short(longer):
  config, workdir = longer
  upstream = inputs.open_upstream(config, workdir)
  for step in (499, 501):
    run = dict(upstream.runs['full', 0], step=step)
    short = dataclasses.replace(
      upstream, runs={**upstream.runs, ('full', 0): run}
    )
    with pytest.raises(UserError, match=f'full, seed 0 has {step} steps'):
      short.check_budget(config)
