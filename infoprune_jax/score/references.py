"""The models that score: trained here, by another job, or out of a file."""

import dataclasses
from typing import Any, cast

from infoprune_jax.config.experiment import (
  CheckpointConfig,
  Config,
  ReferenceConfig,
)
from infoprune_jax.config.model import RUNTIME_ONLY_FIELDS, ModelConfig
from infoprune_jax.config.validation import UserError, build
from infoprune_jax.model import checkpoints, parameter_file
from infoprune_jax.model.mesh import Mesh
from infoprune_jax.runtime import files, filesystems, manifests
from infoprune_jax.runtime.progress import logger
from infoprune_jax.runtime.workdir import reference_dir, reference_input
from infoprune_jax.score import scorer as scorer_lib
from infoprune_jax.tokens.tables import TrainingFacts
from infoprune_jax.tokens.token_store import TokenStore

# What a table tells of the training of its models; counted once a run.
TRAINING_FACTS = ('num_params', 'step', 'tokens', 'flops')
_FACTS = (*TRAINING_FACTS, 'vocabulary', 'vocab_size')


@dataclasses.dataclass(frozen=True)
class Reference:
  """One model, before it is loaded."""

  column: str  # of the table
  fold: int  # whose documents it scores
  input: str  # what the table calls it, among what it is made from
  fingerprint: str
  path: str  # of the run, or the file
  step: int
  model: ModelConfig
  facts: dict[str, Any]  # TRAINING_FACTS, and of its vocabulary


def open_all(
  config: Config, workdir: str, store: TokenStore
) -> list[Reference]:
  """Every model that scores, by column and then by fold.

  Raises:
    UserError: one is missing, or of another vocabulary.
  """
  references = []
  for column, checkpoint in config.reference.checkpoints.items():
    if checkpoint.path:
      given = _open_given(config.reference, column, checkpoint)
      _check_vocabulary(given, store)
      references += [
        dataclasses.replace(given, fold=fold)
        for fold in range(config.reference.folds)
      ]
    else:
      references += [
        _open_own(config.reference, workdir, store, column, checkpoint, fold)
        for fold in range(config.reference.folds)
      ]
  return references


def _open_own(
  reference: ReferenceConfig,
  workdir: str,
  store: TokenStore,
  column: str,
  checkpoint: CheckpointConfig,
  fold: int,
) -> Reference:
  """A step of the run that the stage `reference` has left."""
  path = reference_dir(workdir, fold, reference.folds)
  manifest = manifests.open_finished(path, 'reference model', 'reference')
  manifests.check_made_from(
    manifest, 'reference model', 'token_store', store.manifest, 'token store'
  )
  name = reference_input(fold, reference.folds)
  run = cast(checkpoints.RunManifest, manifest)
  return _of_run(
    path, run, column, fold, name, checkpoint.step, reference.model
  )


def _open_given(
  reference: ReferenceConfig, column: str, checkpoint: CheckpointConfig
) -> Reference:
  """A model that was trained elsewhere, computed as this job does."""
  how = {name: getattr(reference.model, name) for name in RUNTIME_ONLY_FIELDS}
  return open_given(column, checkpoint, how)


def open_given(
  column: str, checkpoint: CheckpointConfig, how: dict[str, Any]
) -> Reference:
  """A model that was trained elsewhere.

  Args:
    column: What it is to score.
    checkpoint: Where it is.
    how: The fields of `ModelConfig` that no run is of, RUNTIME_ONLY_FIELDS.

  Raises:
    UserError: there is none, or none of this version.
  """
  path, name = filesystems.canonical(checkpoint.path), f'given_{column}'
  filesystems.check_utf8(path, f'The model for {column}')
  if checkpoint.is_file:
    facts = parameter_file.read_facts(path)
    digest = files.facts_of(filesystems.local_copy(path))['sha256']
    model = _model(facts, how, path)
    return Reference(
      column, 0, name, digest[:16], path, facts['step'], model, facts
    )
  manifest = manifests.read_manifest(path, 'train')
  if manifest is None or manifest['job'] not in ('reference', 'train'):
    raise UserError(
      f'{path}, for {column}, is no finished training run: name '
      'the folder of one (its manifest.json is there, such as DIR/reference or '
      'DIR/train/top/seed-0), or a .safetensors file.'
    )
  manifest = manifests.open_finished(path, 'training run', manifest['job'])
  model = _model(manifest['options'], how, path)
  run = cast(checkpoints.RunManifest, manifest)
  return _of_run(path, run, column, 0, name, checkpoint.step, model)


def _of_run(
  path: str,
  manifest: checkpoints.RunManifest,
  column: str,
  fold: int,
  name: str,
  step: int,
  model: ModelConfig,
) -> Reference:
  step = manifest['step'] if step < 0 else step
  checkpoints.check_step(path, step)
  facts = {fact: manifest[fact] for fact in _FACTS}
  return Reference(
    column, fold, name, manifest['fingerprint'], path, step, model, facts
  )


def _model(
  facts: dict[str, Any], how: dict[str, Any], path: str
) -> ModelConfig:
  """The model that a run or a file tells of."""
  fields = {**facts['model'], **how}
  return build(ModelConfig, fields, f'the model of {path}')


def _check_vocabulary(given: Reference, store: TokenStore) -> None:
  """Token ids must mean to a model from elsewhere what they mean here."""
  here = store.manifest['inputs']['vocabulary']
  if given.facts['vocabulary'] != here:
    raise UserError(
      f'{given.path}, which is to give {given.column}, was trained with the '
      f'vocabulary {given.facts["vocabulary"]}, the token store here has '
      f'{here}: tokenize with its vocabulary (vocabulary.path).'
    )
  logger.warning(
    'score: %s is by a model from elsewhere, %s: whether it was trained on what '
    'it scores is not known here',
    given.column,
    given.path,
  )


def models(config: Config) -> dict[str, ModelConfig]:
  """The model of each column, without a look at what is trained here.

  Raises:
    UserError: as `open_given`.
  """
  return {
    column: _open_given(config.reference, column, checkpoint).model
    if checkpoint.path
    else config.reference.model
    for column, checkpoint in config.reference.checkpoints.items()
  }


def made_from(references: list[Reference]) -> dict[str, str]:
  """What a table by these models names as its inputs."""
  return {one.input: one.fingerprint for one in references}


def steps(references: list[Reference]) -> dict[str, Any]:
  """Which step of which input gives each column, by column and fold."""
  return {
    f'{one.column}, fold {one.fold}': {'input': one.input, 'step': one.step}
    for one in references
  }


def training_facts(references: list[Reference]) -> TrainingFacts:
  """The first model's TRAINING_FACTS, with all runs' tokens and FLOPs.

  A run of which several steps score was paid for once.
  """
  runs = {one.fingerprint: one.facts for one in references}
  totals = {
    name: sum(facts[name] for facts in runs.values())
    for name in ('tokens', 'flops')
  }
  first = references[0].facts
  facts = {**{name: first[name] for name in TRAINING_FACTS}, **totals}
  return cast(TrainingFacts, facts)


def load(reference: Reference, vocab_size: int, mesh: Mesh) -> Any:
  """The parameters, spread over a mesh.

  Raises:
    UserError: they are missing, damaged, or of another model.
  """
  path, model = reference.path, reference.model
  target = scorer_lib.abstract_params(model, vocab_size, mesh)
  if path.endswith('.safetensors'):
    return parameter_file.load(path, target)
  return checkpoints.load_params(path, reference.step, target)
