"""The stage of arms that score with their own checkpoints.

Such an arm starts from a checkpoint of another arm's run. For each seed the
stage trains that other run, scores the examples with its checkpoint, and writes
the keep set by these scores. So all keep sets are known before the arm trains.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, cast

from infoprune_jax.config.experiment import CheckpointConfig, Config
from infoprune_jax.model.checkpoints import RunManifest
from infoprune_jax.runtime import artifacts, distributed, manifests
from infoprune_jax.runtime.options import UNKNOWN
from infoprune_jax.runtime.workdir import own_scores_dir, run_dir
from infoprune_jax.score import references as references_lib, stage
from infoprune_jax.selection import select
from infoprune_jax.tokens.token_store import TokenStore
from infoprune_jax.train import branches, runs

JOB = 'own_scores'
_WAIT = 24 * 3600  # seconds: process 0 selects from a large corpus
RUN = 'run'  # the name of the run that scores, among the inputs of a table
_COLUMN = 'nll_sum'


def run(config: Config, workdir: str, *, extend: bool = False) -> None:
  """Writes the score tables and keep sets of arms that score themselves.

  Args:
    config: The experiment.
    workdir: Where the token store and the other keep sets are.
    extend: Whether finished runs with fewer steps go on.

  Raises:
    UserError: an input is missing, or what is there has other options.
  """
  store = TokenStore.open(workdir)
  for arm in config.own_scored:
    others = branches.origins(config, arm)
    runs.run_arms(config, workdir, extend=extend, arms=others)
    for seed in config.train.seeds:
      _score(config, workdir, store, arm, seed)
      distributed.on_first(
        f'the keep set of {arm}, seed {seed}',
        functools.partial(select.run_own, config, workdir, arm, seed),
        _WAIT,
      )


def _score(
  config: Config, workdir: str, store: TokenStore, arm: str, seed: int
) -> None:
  """Scores with the checkpoint that a run of an arm starts from."""
  path = run_dir(workdir, config.select.branches[arm].arm, seed)
  trained = cast(
    RunManifest, manifests.open_finished(path, 'training run', 'train')
  )
  words = store.manifest['inputs']['vocabulary']
  model = references_lib.arm_model(config, store.vocab_size, words).model
  step = start_step(config, arm, trained['step'])
  references = [
    references_lib.of_run(path, trained, _COLUMN, fold, RUN, step, model)
    for fold in range(config.reference.folds)
  ]
  inputs = stage.made_from(store, references)
  table = describe(config, workdir, arm, seed, trained['step'], inputs)
  stage.write(_of_one_model(config), store, references, table)


def start_step(config: Config, arm: str, num_steps: int) -> int:
  """The step whose checkpoint scores; `num_steps` is the budget of all arms."""
  begins = branches.origin(config, arm, num_steps)
  assert begins, arm
  return begins[1]


def describe(
  config: Config,
  workdir: str,
  arm: str,
  seed: int,
  num_steps: int | None,
  inputs: Mapping[str, str],
) -> artifacts.Artifact:
  """The score table of an arm and seed, made from these inputs.

  Args:
    config: The experiment.
    workdir: Its workdir.
    arm: One of `config.own_scored`.
    seed: The seed.
    num_steps: The budget of all arms in steps; None if it is not known.
    inputs: What the table is made from, by fingerprints.
  """
  steps: Any = UNKNOWN
  if num_steps is not None:
    step = start_step(config, arm, num_steps)
    steps = {
      f'{_COLUMN}, fold {fold}': {'input': RUN, 'step': step}
      for fold in range(config.reference.folds)
    }
  made = stage.describe(_of_one_model(config), workdir, steps, inputs, JOB)
  section = f'select.arms.{arm}'
  return dataclasses.replace(
    made,
    path=own_scores_dir(workdir, arm, seed),
    kind=f'score table of {arm}, seed {seed}',
    options={**made.options, 'branch_of': config.select.branches[arm].arm},
    sections={**made.sections, 'steps': section, 'branch_of': section},
  )


def _of_one_model(config: Config) -> Config:
  """The experiment, where only one model scores and weighs no tokens."""
  return dataclasses.replace(
    config,
    reference=dataclasses.replace(
      config.reference, checkpoint=CheckpointConfig(), extra_models={}
    ),
    score=dataclasses.replace(config.score, token_excess=''),
    train=dataclasses.replace(config.train, token_weights={}),
  )
