"""The stages that train: the reference model, and the arms."""

import contextlib
import dataclasses
from collections.abc import Collection, Mapping
from typing import Any, cast

from infoprune_jax.config.experiment import Config
from infoprune_jax.config.model import RUNTIME_ONLY_FIELDS, ModelConfig
from infoprune_jax.config.training import TrainingConfig
from infoprune_jax.config.validation import UserError
from infoprune_jax.evaluate import perplexity
from infoprune_jax.model import checkpoints, flops, mesh as mesh_lib
from infoprune_jax.model.checkpoints import RunManifest
from infoprune_jax.runtime import artifacts, distributed, files, manifests
from infoprune_jax.runtime.options import UNKNOWN, options_of
from infoprune_jax.runtime.progress import logger, quantity
from infoprune_jax.runtime.workdir import reference_dir, run_dir, scores_dir
from infoprune_jax.score import references
from infoprune_jax.score.references import PlannedModel, Reference
from infoprune_jax.tokens import folds as folds_lib
from infoprune_jax.tokens.tables import ScoreManifest
from infoprune_jax.tokens.token_excess import CountedTokens
from infoprune_jax.tokens.token_store import TokenStore
from infoprune_jax.train import branches, loop, readers, token_weights
from infoprune_jax.train.branches import Start
from infoprune_jax.train.hooks import Run
from infoprune_jax.train.readers import Kept

# Runs that differ only in these options take the same steps, up to the shorter.
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
  """One run to train."""

  name: str  # for the user
  artifact: artifacts.Artifact
  model: ModelConfig
  vocab_size: int
  training: TrainingConfig
  seed: int
  kept: Mapping[int, Kept]  # see `readers.open_reader`
  initial: Reference | None = None  # the model to start from
  start: Start | None = None
  kept_steps: Collection[int] = ()
  counted: CountedTokens | None = None  # tokens in the loss; None for all


def describe_reference(
  config: Config, workdir: str, fold: int, inputs: Mapping[str, str]
) -> artifacts.Artifact:
  """The run of a reference model, made from these inputs."""
  section = config.reference
  name = 'reference' if section.folds == 1 else f'reference fold {fold}'
  return artifacts.Artifact(
    reference_dir(workdir, fold, section.folds),
    f'run {name!r}',
    'reference',
    run_options(section.model, section.training, section.seed),
    inputs,
    sections={'': 'reference'},
  )


def describe_arm(
  config: Config,
  workdir: str,
  model: ModelConfig | None,
  arm: str,
  seed: int,
  num_steps: int | None,
  inputs: Mapping[str, str],
) -> artifacts.Artifact:
  """The run of an arm and seed.

  Args:
    config: The experiment.
    workdir: Where the run goes.
    model: That of all arms; None if it is not known here.
    arm: The arm.
    seed: The seed.
    num_steps: Its steps; None if they are not known.
    inputs: What the run is made from, by fingerprints.
  """
  return artifacts.Artifact(
    run_dir(workdir, arm, seed),
    f"run 'train {arm} seed {seed}'",
    'train',
    {
      **run_options(model, config.train.training, seed),
      **branches.options(config, arm, num_steps),
      **token_weights.options(config, arm),
    },
    inputs,
    sections={
      '': f'select.arms.{arm}',
      'model': 'model',
      'token_weights': f'train.token_weights.{arm}',
      'training': 'train.training',
      'seed': 'train.seeds',
      'inputs.initial': 'train.init_from',
    },
  )


def run_reference(
  config: Config, workdir: str, *, extend: bool = False
) -> None:
  """Trains the reference model, or one for each fold.

  Args:
    config: The experiment.
    workdir: Where the token store is.
    extend: Whether finished runs with fewer steps go on.

  Raises:
    UserError: the token store is missing, or the run there has other options.
  """
  section = config.reference
  if not section.is_trained:
    logger.info('reference: the model is given, nothing to train')
    return
  # Documents that were added to the corpus are no reference text.
  store = TokenStore.open(workdir).first
  training = in_steps(
    section.training, section.model, store.vocab_size, 'reference.training'
  )
  inputs = {'token_store': store.fingerprint}
  for fold in range(section.folds):
    kept = [
      folds_lib.trained_documents(store.shard(p), fold, section.folds)
      for p in range(store.num_shards)
    ]
    spec = _Spec(
      'reference' if section.folds == 1 else f'reference fold {fold}',
      describe_reference(config, workdir, fold, inputs),
      section.model,
      store.vocab_size,
      training,
      section.seed,
      {0: kept},
      kept_steps=section.kept_steps,
    )
    if not _train(config, workdir, store, spec, extend):
      logger.info('%s: finished before, skipped', spec.name)


def run_arms(
  config: Config,
  workdir: str,
  *,
  extend: bool = False,
  arms: Collection[str] = (),
) -> None:
  """Trains every arm for every seed.

  Args:
    config: The experiment.
    workdir: Where the token store and the keep sets are.
    extend: Whether finished runs with fewer steps go on.
    arms: Those to train, () for all.

  Raises:
    UserError: a keep set is missing or was made for another token store.
  """
  store = TokenStore.open(workdir)
  initial = references.initial_model(config)
  words = store.manifest['inputs']['vocabulary']
  model = references.arm_model(config, store.vocab_size, words)
  of_all = in_steps(
    config.train.training, model.model, model.vocab_size, 'train.training'
  )
  wanted = branches.in_order(config, arms)
  training = {
    arm: _training_of_arm(config, workdir, model, of_all, arm)
    for arm, _ in wanted
  }
  keep_sets = [
    branches.open_keep_sets(config, workdir, store, *run) for run in wanted
  ]
  steps, skipped = of_all.num_steps, 0
  for (arm, seed), by_name in zip(wanted, keep_sets, strict=True):
    counted = token_weights.open_counted(config, workdir, store, arm)
    inputs = {
      'token_store': store.fingerprint,
      **{name: one.manifest['fingerprint'] for name, one in by_name.items()},
      **({'initial': initial.fingerprint} if initial else {}),
      **({'scores': counted.manifest['fingerprint']} if counted else {}),
    }
    kept = [one.of_shards() for one in by_name.values()]
    spec = _Spec(
      f'train {arm} seed {seed}',
      describe_arm(config, workdir, model.model, arm, seed, steps, inputs),
      model.model,
      model.vocab_size,
      training[arm],
      seed,
      dict(zip(branches.phase_steps(config, arm, steps), kept, strict=True)),
      initial,
      branches.start(config, workdir, arm, seed, steps),
      branches.kept_steps(config, arm, steps),
      counted,
    )
    skipped += not _train(config, workdir, store, spec, extend)
  if skipped:
    counts = skipped, len(wanted)
    logger.info('train: %d of %d runs finished before, skipped', *counts)


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
      '%s.%s: %d whole steps of %d tokens, %s',
      section,
      training.budget,
      in_steps.num_steps,
      tokens,
      quantity(in_steps.num_steps * tokens * per_token, 'FLOP'),
    )
  return in_steps


def _training_of_arm(
  config: Config,
  workdir: str,
  model: PlannedModel,
  training: TrainingConfig,
  arm: str,
) -> TrainingConfig:
  """The training of an arm, from that of all arms in steps."""
  extra = 0
  training = branches.training(config, arm, training)
  if is_longer(config, arm):
    scores = cast(
      ScoreManifest,
      manifests.open_finished(scores_dir(workdir), 'score table', 'score'),
    )
    extra = extra_steps(training, model, scores)
    logger.info(
      'train %s: %d more steps than the other arms, for the FLOPs that the '
      'reference model and scoring cost them',
      arm,
      extra,
    )
    if not scores['reference']['flops']:
      logger.warning(
        'train %s: what the training of the reference model cost is not known, '
        'as it was trained elsewhere. Only scoring is counted',
        arm,
      )
  return dataclasses.replace(training, num_steps=training.num_steps + extra)


def is_longer(config: Config, arm: str) -> bool:
  """Whether an arm trains for equal total FLOPs, not for equal tokens.

  'all_plus_reference' gets more steps, for the FLOPs that the reference model
  and scoring cost the other arms.
  """
  rules = config.select.arms.get(arm, ())
  return any(rule.keep == 'all_plus_reference' for rule in rules)


def extra_steps(
  training: TrainingConfig, model: PlannedModel, scores: ScoreManifest
) -> int:
  """The steps that an arm has more if it `is_longer`."""
  spent = scores['flops'] + scores['reference']['flops']
  a_step = training.tokens_per_step * flops.training_flops_per_token(
    model.model, model.vocab_size, training.sequence_length
  )
  return int(spent // a_step)


def _train(
  config: Config, workdir: str, store: TokenStore, spec: _Spec, extend: bool
) -> bool:
  """Trains one run; returns False if it is finished."""
  name, training, artifact = spec.name, spec.training, spec.artifact
  is_first = distributed.index() == 0
  with files.lock(artifact.path) if is_first else contextlib.nullcontext():
    step = distributed.on_first(
      f'how far {name} has gone', lambda: _last_step(artifact)
    )
    if step == training.num_steps:
      return False
    _check_longer(spec, step, extend)
    mesh = mesh_lib.make_mesh(config.mesh)
    run = Run(
      name,
      workdir,
      artifact,
      spec.model,
      training,
      spec.seed,
      readers.open_reader(
        name, store, workdir, spec.kept, training, spec.seed, spec.counted
      ),
      perplexity.make_curve(
        config.evaluate, spec.model, spec.vocab_size, store, mesh
      ),
      spec.vocab_size,
      store.manifest['inputs']['vocabulary'],
      mesh,
      spec.initial,
      step,
      spec.start,
      spec.kept_steps,
    )
    loop.train(run)
    return True


def _check_longer(spec: _Spec, step: int, extend: bool) -> None:
  """Checks that a finished run may continue to the budget of the config.

  Raises:
    UserError: it may not, or has more steps than the config asks for.
  """
  training = spec.training
  if step and (step > training.num_steps or not extend):
    repair_hint = (
      'A finished run cannot become shorter.'
      if step > training.num_steps
      else '--extend continues it.'
    )
    raise UserError(
      f'The run in {spec.artifact.path} is finished, and does not belong to '
      f'this config: num_steps {step} -> {training.num_steps}. {repair_hint} '
      '--stale=redo deletes it and trains it from the start. Otherwise set '
      'the steps back, or use another --workdir.'
    )
  if step and training.schedule != 'constant':
    logger.warning(
      '%s: ended at step %d, where its learning rate had fallen, and continues '
      "to %d with the longer run's schedule=%r: its first steps are not those "
      'of a run of %d steps from the start',
      spec.name,
      step,
      training.num_steps,
      training.schedule,
      training.num_steps,
    )


def _last_step(artifact: artifacts.Artifact) -> int:
  """The step of a finished run, or 0; deletes leftovers of killed processes."""
  manifest = artifact.finished()
  step = cast(RunManifest, manifest)['step'] if manifest else 0
  checkpoints.delete_leftovers(artifact.path)
  return step


def run_options(
  model: ModelConfig | None, training: TrainingConfig, seed: int
) -> dict[str, Any]:
  """The options that decide the steps of a run: model, training and seed.

  A model of None equals any.
  """
  options = {'model': UNKNOWN, 'training': options_of(training)}
  if model:
    options['model'] = options_of(model)
    for name in RUNTIME_ONLY_FIELDS:
      del options['model'][name]
  for name in _NOT_FINGERPRINTED:
    del options['training'][name]
  return {**options, 'seed': seed}
