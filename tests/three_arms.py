"""A finished workdir of three arms, for tests that change its config."""

import hashlib
import pathlib
import re
from typing import Any

import pytest
from ml_collections import ConfigDict
from small_corpus import small_config

from configs import base
from infoprune_jax import stages
from infoprune_jax.config import experiment as config_lib

# What is made anew each time, or differs from run to run.
ANEW = re.compile(r'^(selection_)?report/|/tensorboard/|timing\.jsonl|\.lock$')
CHECKPOINT = re.compile(r'/checkpoints/\d+/')


def edited(edits: ConfigDict, **changes: Any) -> config_lib.Config:
  """The config with other values, by the names of options."""
  edits = edits.copy_and_resolve_references()
  for name, value in changes.items():
    section, _, option = name.rpartition('.')
    node = edits
    for key in section.split('.'):
      node = node[key]
    node[option] = value
  return config_lib.from_mapping(edits)


@pytest.fixture(scope='session')
def three_arms(corpus_path) -> ConfigDict:
  """Three arms that are selected, two that are trained."""
  edits = small_config(corpus_path)
  edits.train.seeds = (0,)
  edits.select.arms = ConfigDict(
    {
      'random': base.arm('random', fraction=0.5),
      'top_nll': base.arm('top', base.INFORMATION, fraction=0.5),
      'distinct': base.arm('distinct', 'near_duplicate_group'),
    },
    sort_keys=False,
  )
  edits.train.arms = ('random', 'top_nll')
  edits.report.baseline = 'random'
  edits.report.bootstrap_samples = 20
  edits.export.formats = ('scores',)
  for training in (edits.train.training, edits.reference.training):
    training.num_steps, training.warmup_steps = 4, 1
    training.checkpoint_every, training.max_checkpoints = 1, 1
    training.schedule = 'constant'
  return edits


def run(config: config_lib.Config, workdir: Any, *jobs: str | None, **how: Any):
  for job in jobs or (None, 'export'):
    stages.run(config, str(workdir), job, **how)


@pytest.fixture(scope='session')
def three_arms_run(three_arms, tmp_path_factory) -> pathlib.Path:
  workdir = tmp_path_factory.mktemp('finished') / 'work'
  run(edited(three_arms), workdir)
  return workdir


def times(workdir: pathlib.Path) -> dict[str, int]:
  """When each file was written that no stage makes anew each time."""
  paths = {str(p.relative_to(workdir)): p for p in workdir.rglob('*')}
  return {
    name: path.stat().st_mtime_ns
    for name, path in paths.items()
    if path.is_file() and not ANEW.search(name)
  }


def digests(workdir: pathlib.Path) -> dict[str, str]:
  """The bytes of each file; of checkpoints, the names of steps alone."""
  return {
    name: hashlib.sha256((workdir / name).read_bytes()).hexdigest()
    if not CHECKPOINT.search(name)
    else ''
    for name in times(workdir)
    if not re.search(r'/checkpoints/\d+/.*/', name)
  }
