"""The stages that train: the reference model, and the arms."""

from typing import Any

import numpy as np

from infoprune_jax import artifacts, config as config_lib, files
from infoprune_jax.config import Config, ModelConfig, TrainingConfig, UserError
from infoprune_jax.data import loader
from infoprune_jax.data.keep_set import KeepSet, selection_name
from infoprune_jax.data.token_store import TokenStore
from infoprune_jax.evaluate import perplexity
from infoprune_jax.model import partitioning
from infoprune_jax.progress import logger
from infoprune_jax.train import loop

# Cadence, and how far a run goes, do not change the steps it shares with
# another: they are no part of what a run is.
_NOT_DECISIVE = (
  'num_steps',
  'log_every',
  'eval_every',
  'checkpoint_every',
  'max_checkpoints',
)


def run_reference(config: Config, workdir: str) -> None:
  """Trains the reference model on the reference split.

  Raises:
    UserError: the token store is missing, or the run there is another's.
  """
  store = TokenStore.open(workdir)
  keep = [store.part(p).rows_of('reference') for p in range(store.num_parts)]
  section = config.reference
  _train(
    config,
    store,
    'reference',
    artifacts.reference_dir(workdir),
    'reference',
    section.model,
    section.training,
    section.seed,
    keep,
    {'token_store': store.fingerprint},
  )


def run_arms(config: Config, workdir: str) -> None:
  """Trains every arm for every seed.

  Raises:
    UserError: a keep set is missing or was made for another token store.
  """
  store = TokenStore.open(workdir)
  runs = [(arm, seed) for arm in config.arms for seed in config.train.seeds]
  keep_sets = {
    (arm, seed): KeepSet.open(
      workdir, selection_name(config.select.arms[arm], arm, seed), store
    )
    for arm, seed in runs
  }
  for arm, seed in runs:
    keep_set = keep_sets[arm, seed]
    _train(
      config,
      store,
      f'train {arm} seed {seed}',
      artifacts.run_dir(workdir, arm, seed),
      'train',
      config.model,
      config.train.training,
      seed,
      [keep_set.rows(part) for part in range(store.num_parts)],
      {
        'token_store': store.fingerprint,
        'keep_set': keep_set.manifest['fingerprint'],
      },
    )


def _train(
  config: Config,
  store: TokenStore,
  name: str,
  path: str,
  job: str,
  model: ModelConfig,
  training: TrainingConfig,
  seed: int,
  keep: list[np.ndarray],
  inputs: dict[str, str],
) -> None:
  """One run, unless it has gone as far as it should."""
  artifact = artifacts.Artifact(
    path, f'run {name!r}', job, run_options(model, training, seed), inputs
  )
  with files.lock(path):
    finished = artifact.finished()
    if finished and finished['step'] == training.num_steps:
      logger.info('%s: finished before, skipped', name)
      return
    if finished and finished['step'] > training.num_steps:
      raise UserError(
        f'{path} has gone {finished["step"]} steps, further than num_steps='
        f'{training.num_steps}: use another --workdir, or ask for as many.'
      )
    mesh = partitioning.make_mesh(config.mesh)
    rows = loader.packed_rows(store, keep, training.row_length, seed)
    loop.train(
      loop.Run(
        name,
        artifact,
        model,
        training,
        seed,
        rows,
        perplexity.make_curve(config.evaluate, model, store, mesh),
        store.vocab_size,
        mesh,
      )
    )


def run_options(
  model: ModelConfig, training: TrainingConfig, seed: int
) -> dict[str, Any]:
  """What of the config decides the steps of a run."""
  decisive = config_lib.to_plain(training)
  for name in _NOT_DECISIVE:
    del decisive[name]
  return {
    'model': config_lib.to_plain(model),
    'training': decisive,
    'seed': seed,
  }
