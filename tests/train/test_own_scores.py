"""An arm whose rules read the scores by the checkpoint that it starts from."""

import pytest
from small_corpus import small_config

from configs import base
from infoprune_jax import stages
from infoprune_jax.config import experiment as config_lib
from infoprune_jax.config.experiment import Config

TOP = base.arm('top', base.INFORMATION, fraction=0.5)
SEEDS = (0, 1)


def experiment(corpus_path: str, **arms) -> Config:
  edits = small_config(corpus_path)
  edits.select.arms = {
    'full': base.arm('all'),
    'late': base.branch('full', at=0.5, then=TOP, score_with='itself'),
    'top': TOP,
    **arms,
  }
  edits.train.seeds = SEEDS
  edits.train.arms = ('full', 'late')
  edits.report.update(baseline='full', bootstrap_samples=50)
  edits.train.training.update(num_steps=4, warmup_steps=1, log_every=1)
  edits.reference.training.update(num_steps=2, warmup_steps=1)
  return config_lib.from_mapping(edits)


@pytest.fixture(scope='module')
def config(corpus_path) -> Config:
  return experiment(corpus_path)


@pytest.fixture(scope='module')
def finished(config, tmp_path_factory) -> str:
  workdir = str(tmp_path_factory.mktemp('own') / 'work')
  stages.run(config, workdir, None)
  return workdir


def test_it_runs(finished):
  print(finished)
