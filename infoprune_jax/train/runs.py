"""The stages that train: the reference model, and the arms."""

import contextlib
import dataclasses
from typing import Any, cast

import numpy as np

from infoprune_jax.batches import loader
from infoprune_jax.config.experiment import Config
from infoprune_jax.config.model import RUNTIME_ONLY_FIELDS, ModelConfig
from infoprune_jax.config.training import TrainingConfig
from infoprune_jax.config.validation import UserError
from infoprune_jax.corpus import quiet_tensorflow
from infoprune_jax.evaluate import perplexity
from infoprune_jax.model import checkpoints, flops, mesh as mesh_lib
from infoprune_jax.model.checkpoints import RunManifest
from infoprune_jax.runtime import artifacts, distributed, files, manifests
from infoprune_jax.runtime.options import options_of
from infoprune_jax.runtime.progress import logger
from infoprune_jax.runtime.workdir import reference_dir, run_dir, scores_dir
from infoprune_jax.selection.keep_set import KeepSet, selection_name
from infoprune_jax.tokens import folds as folds_lib
from infoprune_jax.tokens.tables import ScoreManifest
from infoprune_jax.tokens.token_store import TokenStore
from infoprune_jax.train import loop
from infoprune_jax.train.hooks import Run

# Two runs that differ in these alone take the same steps, as far as both go.
_NOT_FINGERPRINTED = (
  'gradient_accumulation_steps',
  'num_steps',
  'num_tokens',
  'num_flops',
  'log_every',
  'metric_sinks',
  'eval_every',
  'checkpoint_every',
  'checkpoint_minutes',
  'max_checkpoints',
  'keep_checkpoints_every',
  'watchdog_minutes',
  'profile_from',
  'profile_steps',
)


@dataclasses.dataclass(frozen=True)
class _Spec:
  """What decides one run, and where it lies."""

  name: str  # for the user
  path: str
  job: str
  model: ModelConfig
  training: TrainingConfig
  seed: int
  inputs: dict[str, str]  # fingerprints, by artifact


def run_reference(config: Config, workdir: str) -> None:
  """Trains the reference model, or one for each fold.

  Raises:
    UserError: the token store is missing, or the run there is another's.
  """
  section = config.reference
  if not section.is_trained:
    logger.info('reference: given, nothing to train')
    return
  store = TokenStore.open(workdir)
  training = in_steps(
    section.training, section.model, store.vocab_size, 'reference.training'
  )
  for fold in range(section.folds):
    spec = _Spec(
      'reference' if section.folds == 1 else f'reference fold {fold}',
      reference_dir(workdir, fold, section.folds),
      'reference',
      section.model,
      training,
      section.seed,
      {'token_store': store.fingerprint},
    )
    keep = [
      folds_lib.trained_documents(store.shard(p), fold, section.folds)
      for p in range(store.num_shards)
    ]
    _train(config, workdir, store, spec, keep)


def run_arms(config: Config, workdir: str) -> None:
  """Trains every arm for every seed.

  Raises:
    UserError: a keep set is missing or was made for another token store.
  """
  store = TokenStore.open(workdir)
  training = {
    arm: _training_of_arm(config, workdir, store, arm) for arm in config.arms
  }
  runs = [(arm, seed) for arm in config.arms for seed in config.train.seeds]
  keep_sets = {
    (arm, seed): KeepSet.open(
      workdir, selection_name(config.select.arms[arm], arm, seed), store
    )
    for arm, seed in runs
  }
  for (arm, seed), keep_set in keep_sets.items():
    spec = _Spec(
      f'train {arm} seed {seed}',
      run_dir(workdir, arm, seed),
      'train',
      config.model,
      training[arm],
      seed,
      {
        'token_store': store.fingerprint,
        'keep_set': keep_set.manifest['fingerprint'],
      },
    )
    keep = [keep_set.doc_indices(part) for part in range(store.num_shards)]
    _train(config, workdir, store, spec, keep)


def in_steps(
  training: TrainingConfig, model: ModelConfig, vocab_size: int, section: str
) -> TrainingConfig:
  """The training of a model with its budget in steps.

  See `TrainingConfig.in_steps`; a budget in tokens or FLOPs is logged.
  """
  per_token = flops.training_flops_per_token(
    model, vocab_size, training.sequence_length
  )
  in_steps = training.in_steps(per_token, section)
  if in_steps != training:
    tokens = in_steps.tokens_per_step
    logger.info(
      '%s.%s: %d steps of %d tokens, %.3g FLOPs, whole steps only',
      section,
      training.budget,
      in_steps.num_steps,
      tokens,
      in_steps.num_steps * tokens * per_token,
    )
  return in_steps


def _training_of_arm(
  config: Config, workdir: str, store: TokenStore, arm: str
) -> TrainingConfig:
  """The budget of an arm: equal tokens, or for 'all_plus_reference' equal total FLOPs.

  An arm of everything also gets the steps that the reference models and scoring
  cost the others.
  """
  training = in_steps(
    config.train.training, config.model, store.vocab_size, 'train.training'
  )
  if not any(
    rule.keep == 'all_plus_reference' for rule in config.select.arms[arm]
  ):
    return training
  scores = cast(
    ScoreManifest,
    manifests.open_finished(scores_dir(workdir), 'score table', 'score'),
  )
  spent = scores['flops'] + scores['reference']['flops']
  a_step = training.tokens_per_step * flops.training_flops_per_token(
    config.model, store.vocab_size, training.sequence_length
  )
  extra = int(spent // a_step)
  logger.info(
    'train %s: %d more steps, for the FLOPs of reference and scoring',
    arm,
    extra,
  )
  return dataclasses.replace(training, num_steps=training.num_steps + extra)


def _train(
  config: Config,
  workdir: str,
  store: TokenStore,
  spec: _Spec,
  keep: list[np.ndarray],
) -> None:
  """Trains one run on the documents kept, unless it is finished."""
  name, training = spec.name, spec.training
  options = run_options(spec.model, training, spec.seed)
  artifact = artifacts.Artifact(
    spec.path, f'run {name!r}', spec.job, options, spec.inputs
  )
  is_first = distributed.index() == 0
  with files.lock(spec.path) if is_first else contextlib.nullcontext():
    step = distributed.on_first(
      f'how far {name} has gone', lambda: _last_step(artifact)
    )
    if step == training.num_steps:
      logger.info('%s: finished before, skipped', name)
      return
    _check_longer(spec, step)
    mesh = mesh_lib.make_mesh(config.mesh)
    run = Run(
      name,
      workdir,
      artifact,
      spec.model,
      training,
      spec.seed,
      _reader(workdir, store, spec, keep),
      perplexity.make_curve(config.evaluate, spec.model, store, mesh),
      store.vocab_size,
      store.manifest['inputs']['vocabulary'],
      mesh,
    )
    loop.train(run)


def _check_longer(spec: _Spec, step: int) -> None:
  """Checks that a run may go on from the step where it once finished.

  Raises:
    UserError: it has gone further than the config asks.
  """
  training = spec.training
  if step > training.num_steps:
    raise UserError(
      f'{spec.path} has gone {step} steps, further than num_steps='
      f'{training.num_steps}: use another --workdir, or ask for as many.'
    )
  if step and training.schedule != 'constant':
    logger.warning(
      '%s: ended at step %d, where its learning rate had fallen, and goes on '
      "to %d with the longer run's schedule=%r: its first steps are not those "
      'of a run of %d steps from the start',
      spec.name,
      step,
      training.num_steps,
      training.schedule,
      training.num_steps,
    )


def _last_step(artifact: artifacts.Artifact) -> int:
  """The step of a finished run, or 0; a kill's leftovers are deleted."""
  manifest = artifact.finished()
  step = cast(RunManifest, manifest)['step'] if manifest else 0
  checkpoints.delete_leftovers(artifact.path)
  return step


def _reader(
  workdir: str, store: TokenStore, spec: _Spec, keep: list[np.ndarray]
) -> loader.Reader:
  """The reader that the config names, over the documents kept."""
  training = spec.training
  options = {
    'sequence_length': training.sequence_length,
    'batch_size': training.batch_size,
    'seed': spec.seed,
    'mixture': training.mixture,
  }
  try:
    if training.reader == 'grain':
      schedule = training.mixture_schedule
      return loader.grain_reader(store, keep, **options, schedule=schedule)
    # TensorFlow takes seconds to import, and a machine may do without it.
    quiet_tensorflow.import_seqio()
    from infoprune_jax.seqio_tasks import seqio_reader

    return seqio_reader.seqio_reader(spec.name, store, workdir, keep, **options)
  except UserError as error:
    raise UserError(f'{spec.name}: {error}') from None


def run_options(
  model: ModelConfig, training: TrainingConfig, seed: int
) -> dict[str, Any]:
  """The options that decide the steps of a run: model, training and seed."""
  options = {'model': options_of(model), 'training': options_of(training)}
  for name in RUNTIME_ONLY_FIELDS:
    del options['model'][name]
  for name in _NOT_FINGERPRINTED:
    del options['training'][name]
  return {**options, 'seed': seed}
