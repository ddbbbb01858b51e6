"""The excess loss of each token, from scoring to an arm and its report."""

import dataclasses
import json
import pathlib
import shutil
import types
from typing import Any

import numpy as np
import pytest
from changed_artifacts import reseal
from small_corpus import small_config

from configs import base
from infoprune_jax import stages
from infoprune_jax.config import experiment as config_lib
from infoprune_jax.config.validation import UserError
from infoprune_jax.report.results import costs, wording
from infoprune_jax.runtime import manifests
from infoprune_jax.score import references, scorer as scorer_lib
from infoprune_jax.tokens import folds as folds_lib, token_excess
from infoprune_jax.tokens.token_store import TokenStore
from infoprune_jax.verify import workdir as verify

SHARDS, FRACTION = 3, 0.4
JOBS = ('tokenize', 'statistics', 'reference', 'score', 'select', 'train')


@pytest.fixture(scope='module')
def config(corpus_path) -> config_lib.Config:
  """Three arms of the same documents, and two folds."""
  edits = small_config(corpus_path)
  edits.reference.folds = 2
  for training in (edits.reference.training, edits.train.training):
    training.num_steps = training.eval_every = 7
  # A step that is kept because it is named, not every 5 steps.
  edits.reference.extra_models.early = base.checkpoint(step=3)
  edits.score.token_excess = 'early'
  edits.select.arms = {
    name: base.arm('all') for name in ('full', 'rho', 'whole')
  }
  edits.train.token_weights = {'rho': FRACTION, 'whole': 1.0}
  edits.train.seeds = (0,)
  edits.report.baseline = 'full'
  return config_lib.from_mapping(edits)


@pytest.fixture(scope='module')
def workdir(config, tmp_path_factory) -> pathlib.Path:
  """All that training rests on, and the runs."""
  path = tmp_path_factory.mktemp('excess')
  for job in JOBS:
    stages.run(config, str(path), job)
  return path


@pytest.fixture
def copied(workdir, tmp_path) -> pathlib.Path:
  return shutil.copytree(workdir, tmp_path / 'copy')


def levels_of(workdir: pathlib.Path, shard: int) -> np.ndarray:
  return np.load(workdir / 'scores' / token_excess.file(shard, SHARDS))


def manifest_of(workdir: pathlib.Path, name: str) -> dict:
  return json.loads((workdir / name / manifests.MANIFEST).read_text())


def test_each_token_has_the_excess_of_the_models(config, workdir, mesh):
  """One document at a time, on one device."""
  store = TokenStore.open(str(workdir))
  models = references.open_all(config, str(workdir), store)
  scorer = scorer_lib.compile_scorer(
    config.reference.model, config.score, store.vocab_size, mesh
  )
  params = {(m.column, m.fold): references.load(m, mesh) for m in models}
  windows = 0
  for number in range(SHARDS):
    shard, levels = store.shard(number), levels_of(workdir, number)
    assert levels.shape == shard.tokens.shape
    for doc, fold in enumerate(folds_lib.fold_of_documents(shard, 2).tolist()):
      if doc % 5:  # It takes long.
        continue
      own = levels[shard.offsets[doc] : shard.offsets[doc + 1]]
      if fold < 0:
        assert (own == token_excess.NOT_SCORED).all()
        continue
      where = np.array([number]), np.array([doc])
      early, last = (
        scorer.token_statistics(params[name, fold], store, *where, ['nll'])
        for name in ('nll_sum_early', 'nll_sum')
      )
      excess = early['nll'] - last['nll']
      # Packing moves NLL by a rounding, and so an excess near a bound.
      expected = token_excess.levels(excess).astype(int)
      assert np.abs(own - expected).max(initial=0) <= 1
      assert (own != expected).mean() <= 0.05 if len(own) > 20 else True
      windows += len(own) > config.score.sequence_length
  assert windows


def test_a_shard_made_again_is_the_same(config, copied):
  folder = copied / 'scores'
  manifest = (folder / manifests.MANIFEST).read_bytes()
  (folder / manifests.MANIFEST).unlink()
  for path in folder.rglob('part-00001-*'):
    path.unlink()
  stages.run(config, str(copied), 'score')
  assert (folder / manifests.MANIFEST).read_bytes() == manifest


def test_the_highest_count_within_each_fold(workdir):
  store = TokenStore.open(str(workdir))
  counted = token_excess.CountedTokens.open(str(workdir), store, FRACTION)
  results = []
  for number in range(SHARDS):
    shard = store.shard(number)
    doc = np.repeat(np.arange(len(shard.offsets) - 1), np.diff(shard.offsets))
    fold = folds_lib.fold_of_documents(shard, 2)[doc]
    counts = counted(number, doc, np.arange(len(doc)))
    results.append((fold, levels_of(workdir, number), counts))
    # Any tokens in any order, as batches ask for them.
    some = np.random.default_rng(number).permutation(len(doc))[:50]
    np.testing.assert_array_equal(
      counted(number, doc[some], some), counts[some]
    )
  fold, levels, counts = map(np.concatenate, zip(*results, strict=True))
  assert not counts[fold < 0].any()
  for one in range(2):
    inside, outside = (levels[(fold == one) & (counts == c)] for c in (1, 0))
    assert inside.min() >= outside.max()
    size = len(inside) + len(outside)
    assert abs(len(inside) / size - FRACTION) < 1.0 / np.sqrt(size)


def test_an_arm_learns_from_the_tokens_that_count(workdir):
  runs = {
    arm: manifest_of(workdir, f'train/{arm}/seed-0')
    for arm in ('full', 'rho', 'whole')
  }
  assert runs['whole']['params_hash'] == runs['full']['params_hash']
  assert runs['rho']['params_hash'] != runs['full']['params_hash']
  assert runs['rho']['flops'] == runs['full']['flops']
  assert runs['rho']['options']['token_weights'] == FRACTION
  scores = manifest_of(workdir, 'scores')['fingerprint']
  assert runs['rho']['inputs']['scores'] == scores
  for arm in ('full', 'whole'):
    assert 'token_weights' not in runs[arm]['options']
    assert 'scores' not in runs[arm]['inputs']


def test_the_report_charges_both_models(config, workdir):
  scores = manifest_of(workdir, 'scores')
  runs = {
    (arm, 0): {**manifest_of(workdir, f'train/{arm}/seed-0'), 'epochs': 1.0}
    for arm in config.arms
  }
  upstream: Any = types.SimpleNamespace(scores=scores, runs=runs)
  flops = {
    arm: costs.of_arm(config, upstream, arm)['flops'] for arm in config.arms
  }
  assert flops['rho']['scoring'] == scores['flops'] > 0.0
  assert flops['rho']['reference'] == scores['reference']['flops'] > 0.0
  assert flops['rho']['training'] == flops['full']['training']
  for arm in ('full', 'whole'):
    assert flops[arm]['scoring'] == flops[arm]['reference'] == 0.0
  fractions = config.train.token_weights
  [line] = wording.token_weights(fractions)
  assert 'excess (rho 40 %)' in line
  assert not [*wording.token_weights({'whole': 1.0})]


def test_another_fraction_makes_one_run_stale(config, workdir):
  weights = {**config.train.token_weights, 'rho': 0.5}
  train = dataclasses.replace(config.train, token_weights=weights)
  other = dataclasses.replace(config, train=train)
  with pytest.raises(UserError) as caught:
    stages.run(other, str(workdir), 'train')
  assert 'train.token_weights: rho 0.4 -> 0.5 (train/rho/seed-0)' in str(
    caught.value
  )


def test_scores_without_the_excess_are_stale(config, workdir):
  score = dataclasses.replace(config.score, token_excess='')
  train = dataclasses.replace(config.train, token_weights={})
  other = dataclasses.replace(config, score=score, train=train)
  with pytest.raises(UserError, match="score: token_excess 'early' -> ''"):
    stages.run(other, str(workdir), 'score')


def test_wrong_levels_are_named(copied):
  problems = [line for _, lines in verify.check(str(copied)) for line in lines]
  assert not problems
  name = token_excess.file(1, SHARDS)
  data = bytearray((copied / 'scores' / name).read_bytes())
  data[-1] = not data[-1]  # A level for no score, or none for a score.
  reseal(copied / 'scores', name, bytes(data))
  wrong = {
    status.path.rpartition('/')[2]: ' '.join(lines)
    for status, lines in verify.check(str(copied))
    if lines
  }
  assert f'{name}: 1 tokens have a level without' in wrong['scores']
