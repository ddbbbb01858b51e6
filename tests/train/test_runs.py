"""The stages that train: folds, equal FLOPs, and the reader over SeqIO."""

import dataclasses
import json

import numpy as np
import pyarrow.compute as pc
import pytest
from small_corpus import small_config

from configs import base
from infoprune_jax import stages
from infoprune_jax.config import experiment as config_lib
from infoprune_jax.config.validation import UserError
from infoprune_jax.runtime import files, manifests
from infoprune_jax.runtime.workdir import (
  reference_dir,
  reference_input,
  report_dir,
  run_dir,
  scores_dir,
)
from infoprune_jax.selection.keep_set import KeepSet
from infoprune_jax.tokens import folds, tables
from infoprune_jax.tokens.token_store import TokenStore
from infoprune_jax.train import hooks, metrics

ARMS = {
  'full': base.arm('all'),
  'everything': base.arm('all_plus_reference'),
  'top_nll': base.arm('top', base.INFORMATION, fraction=0.5),
}


def experiment(corpus_path: str, **training) -> config_lib.Config:
  edits = small_config(corpus_path)
  edits.select.arms = ARMS
  edits.train.seeds = (0,)
  edits.report.baseline = 'full'
  edits.reference.folds = 2
  edits.train.training.update(training)
  return config_lib.from_mapping(edits)


@pytest.fixture(scope='module')
def two_folds(corpus_path, tmp_path_factory) -> str:
  """A finished workdir with two folds."""
  workdir = str(tmp_path_factory.mktemp('folds'))
  stages.run(experiment(corpus_path), workdir, None)
  return workdir


def test_nothing_is_scored_by_a_model_that_trained_on_it(two_folds):
  """Neither the example itself nor a copy of it."""
  store = TokenStore.open(two_folds)
  scores = tables.read_table(scores_dir(two_folds))
  for fold in range(2):
    trained = np.concatenate(
      [
        store.shard(p).column('content_hash')[
          folds.trained_documents(store.shard(p), fold, 2)
        ]
        for p in range(store.num_shards)
      ]
    )
    scored = scores.filter(pc.equal(scores['fold'], fold))['content_hash']
    assert len(scored) and not np.isin(scored.to_numpy(), trained).any()


def test_every_example_that_is_not_held_out_is_scored_once(two_folds):
  store = TokenStore.open(two_folds)
  scores = tables.read_table(scores_dir(two_folds))
  splits = store.manifest['splits']
  assert scores.num_rows == sum(
    splits[name]['documents'] for name in ('reference', 'scored')
  )
  pairs = set(
    zip(
      scores['shard'].to_pylist(), scores['doc_index'].to_pylist(), strict=True
    )
  )
  assert len(pairs) == scores.num_rows


def test_each_fold_has_a_model_of_its_own(two_folds):
  references = [
    files.read_json(f'{reference_dir(two_folds, fold, 2)}/{manifests.MANIFEST}')
    for fold in range(2)
  ]
  assert references[0]['params_hash'] != references[1]['params_hash']
  scores = files.read_json(f'{scores_dir(two_folds)}/{manifests.MANIFEST}')
  for fold, manifest in enumerate(references):
    name = reference_input(fold, 2)
    assert scores['inputs'][name] == manifest['fingerprint']


def test_an_arm_of_everything_costs_what_the_others_cost_in_total(two_folds):
  def spent(path):
    return files.read_json(f'{path}/{manifests.MANIFEST}')['flops']

  overhead = spent(scores_dir(two_folds)) + sum(
    spent(reference_dir(two_folds, fold, 2)) for fold in range(2)
  )
  pruned = spent(run_dir(two_folds, 'top_nll', 0)) + overhead
  everything = files.read_json(
    f'{run_dir(two_folds, "everything", 0)}/{manifests.MANIFEST}'
  )
  a_step = everything['flops'] / everything['step']
  assert everything['step'] > 12
  assert pruned - a_step < everything['flops'] <= pruned


def test_the_report_counts_both_references(two_folds):
  report = json.loads(files.read_bytes(f'{report_dir(two_folds)}/report.json'))
  arms = {arm['name']: arm for arm in report['arms']}
  reference = files.read_json(
    f'{reference_dir(two_folds, 0, 2)}/{manifests.MANIFEST}'
  )
  assert arms['top_nll']['flops']['reference'] == pytest.approx(
    2 * reference['flops']
  )
  total = arms['top_nll']['flops']['total']
  assert arms['everything']['flops']['total'] == pytest.approx(total, rel=0.1)


# With SeqIO.


@pytest.fixture(scope='module')
def through_seqio(corpus_path, two_folds) -> config_lib.Config:
  return experiment(corpus_path, reader='seqio')


def train(config, source: str, workdir, num_steps: int) -> str:
  """Trains `top_nll` in a workdir that shares the rest with another."""
  workdir.mkdir(exist_ok=True)
  for name in ('token_store', 'vocabulary', 'keep_sets', 'scores', 'reference'):
    if not (workdir / name).exists():
      (workdir / name).symlink_to(f'{source}/{name}')
  section = config.train
  training = dataclasses.replace(section.training, num_steps=num_steps)
  section = dataclasses.replace(section, arms=('top_nll',), training=training)
  report = dataclasses.replace(config.report, baseline='top_nll')
  config = dataclasses.replace(config, train=section, report=report)
  stages.run(config, str(workdir), 'train')
  return run_dir(str(workdir), 'top_nll', 0)


def test_training_through_seqio_resumes_exactly(
  through_seqio, two_folds, tmp_path, monkeypatch
):
  whole = train(through_seqio, two_folds, tmp_path / 'whole', 12)

  class Killed(Exception):
    pass

  save = hooks.Checkpoint.save

  def killed(self, number, state):
    save(self, number, state)
    raise Killed

  with monkeypatch.context() as patch, pytest.raises(Killed):
    patch.setattr(hooks.Checkpoint, 'save', killed)
    train(through_seqio, two_folds, tmp_path / 'parts', 12)
  parts = train(through_seqio, two_folds, tmp_path / 'parts', 12)
  first, second = (
    files.read_json(f'{path}/{manifests.MANIFEST}') for path in (whole, parts)
  )
  assert first == second
  assert files.read_bytes(f'{whole}/{metrics.FILE}') == files.read_bytes(
    f'{parts}/{metrics.FILE}'
  )
  kept = KeepSet.open(two_folds, 'top_nll', TokenStore.open(two_folds))
  assert first['inputs']['keep_set'] == kept.manifest['fingerprint']


def test_readers_are_not_mixed(through_seqio, two_folds, corpus_path, tmp_path):
  train(through_seqio, two_folds, tmp_path / 'run', 3)
  with pytest.raises(
    UserError, match="train.training: reader 'seqio' -> 'grain'"
  ):
    train(experiment(corpus_path), two_folds, tmp_path / 'run', 12)


def test_a_mixture_of_other_sources_is_refused(
  corpus_path, two_folds, tmp_path
):
  config = experiment(corpus_path, mixture={'blogs': 1.0})
  with pytest.raises(UserError, match=r"train top_nll seed 0: .*'blogs'"):
    train(config, two_folds, tmp_path / 'run', 12)
