"""A finished workdir, and copies of it to damage."""

import dataclasses
import pathlib
import shutil

import pytest
from small_corpus import only_arms, small_config

from infoprune_jax import stages
from infoprune_jax.config import experiment as config_lib
from infoprune_jax.runtime import files, manifests


@pytest.fixture(scope='module')
def config(corpus_path):
  edits = small_config(corpus_path)
  edits.train.seeds = (0,)
  only_arms(edits, 'random', 'top_nll')
  return config_lib.from_mapping(edits)


@pytest.fixture(scope='module')
def finished(config, tmp_path_factory) -> pathlib.Path:
  # A name that globs, fsspec and DuckDB would take for a pattern.
  workdir = tmp_path_factory.mktemp('finished') / 'lr[3e-4]*?::1'
  for job in ('tokenize', 'statistics', 'reference', 'score', 'select'):
    stages.STAGES[job].run(config, str(workdir))
  one = dataclasses.replace(config.train, arms=('top_nll',))
  for job in ('train', 'evaluate'):
    stages.STAGES[job].run(dataclasses.replace(config, train=one), str(workdir))
  for job in ('selection_report', 'report'):
    page = files.write_text(str(workdir / job / 'index.html'), '<p>' * 9)
    [planned] = stages.STAGES[job].artifacts(config, str(workdir))
    inputs = {
      name: manifest['fingerprint']
      for name, path in planned.made_from.items()
      if (manifest := manifests.read_manifest(path, job))
    }
    made = dataclasses.replace(planned.artifact, inputs=inputs)
    made.finish({'index.html': page})
  return workdir


@pytest.fixture
def copied(finished, tmp_path) -> pathlib.Path:
  return shutil.copytree(finished, tmp_path / finished.name)
