"""The models that score: trained by this job or another, or imported."""

import dataclasses
from typing import Any, cast

from infoprune_jax.config.corpus import VocabularyConfig
from infoprune_jax.config.experiment import (
  CheckpointConfig,
  Config,
  ReferenceConfig,
)
from infoprune_jax.config.model import RUNTIME_ONLY_FIELDS, ModelConfig
from infoprune_jax.config.validation import UserError, build
from infoprune_jax.model import checkpoints, flops, parameter_file
from infoprune_jax.model.hugging_face import load as hugging_face
from infoprune_jax.model.mesh import Mesh
from infoprune_jax.runtime import (
  distributed,
  files,
  filesystems,
  hub,
  manifests,
)
from infoprune_jax.runtime.progress import logger
from infoprune_jax.runtime.workdir import reference_dir, reference_input
from infoprune_jax.score import scorer as scorer_lib
from infoprune_jax.tokens import vocabulary_files
from infoprune_jax.tokens.tables import TrainingFacts
from infoprune_jax.tokens.token_store import TokenStore

# Facts about the training of models, in the manifest of a table.
TRAINING_FACTS = ('num_params', 'step', 'tokens', 'flops')
_FACTS = (*TRAINING_FACTS, 'vocabulary', 'vocab_size')
# Options of arms that start from a model, which are not those of the model.
_COMPUTED = (*RUNTIME_ONLY_FIELDS, 'dtype')
_OWN_IDS = VocabularyConfig()  # takes the special ids that a tokenizer names


@dataclasses.dataclass(frozen=True)
class Reference:
  """One model, before it is loaded."""

  column: str  # of the table
  fold: int  # the fold that it scores
  input: str  # its name among the inputs of the table
  fingerprint: str
  path: str  # of the run, or the file
  step: int
  model: ModelConfig
  facts: dict[str, Any]  # TRAINING_FACTS, 'vocabulary' and 'vocab_size'

  @property
  def vocab_size(self) -> int:
    """The ids of the model: those of its vocabulary, or more if it is padded."""
    return self.facts['vocab_size']


def open_all(
  config: Config, workdir: str, store: TokenStore
) -> list[Reference]:
  """Every model that scores, ordered by column and then by fold.

  Raises:
    UserError: a model is missing, or has another vocabulary.
  """
  references = []
  for column, checkpoint in config.reference.checkpoints.items():
    if checkpoint.path:
      given = _open_given(config, column, checkpoint)
      _check_vocabulary(
        given, store.manifest['inputs']['vocabulary'], store.vocab_size
      )
      logger.warning(
        'score: %s is by a model from elsewhere, %s. If it was trained on the '
        'documents that it scores, their NLL is too low',
        column,
        given.path,
      )
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
  """A step of the run of the stage `reference`."""
  path = reference_dir(workdir, fold, reference.folds)
  manifest = manifests.open_finished(path, 'reference model', 'reference')
  manifests.check_made_from(
    manifest,
    'reference model',
    'token_store',
    store.first.manifest,
    'token store',
  )
  name = reference_input(fold, reference.folds)
  run = cast(checkpoints.RunManifest, manifest)
  return of_run(path, run, column, fold, name, checkpoint.step, reference.model)


def _open_given(
  config: Config, column: str, checkpoint: CheckpointConfig
) -> Reference:
  """A model that was trained elsewhere, with the kernels of this config."""
  model = config.reference.model
  how = {name: getattr(model, name) for name in RUNTIME_ONLY_FIELDS}
  return open_given(column, checkpoint, how, config.vocabulary)


def open_given(
  column: str,
  checkpoint: CheckpointConfig,
  how: dict[str, Any],
  vocabulary: VocabularyConfig = _OWN_IDS,
) -> Reference:
  """A model that was trained elsewhere.

  Args:
    column: The column that it is to score, for messages, too.
    checkpoint: Its path and step.
    how: The values of `RUNTIME_ONLY_FIELDS`, which a run does not record.
    vocabulary: Its special ids, where they are set, replace those that the
      tokenizer of a model of Hugging Face names.

  Raises:
    UserError: there is no model at the path, or it is damaged, of another
      version or not supported.
  """
  path, name = hub.local(checkpoint.path), f'given_{column}'
  filesystems.check_utf8(path, f'The model for {column}')
  if hugging_face.is_imported(path):
    return _open_imported(path, column, name, how, vocabulary)
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
      f'{path}, for {column}, is neither a finished run nor a model: name '
      'the folder of one (its manifest.json is there, such as DIR/reference or '
      'DIR/train/top/seed-0), a .safetensors file of tools/export_params.py, a '
      'folder of a Hugging Face model (config.json is there), its id on the Hub '
      '(hf://ORG/NAME), or a .gguf file.'
    )
  manifest = manifests.open_finished(path, 'training run', manifest['job'])
  model = _model(manifest['options'], how, path)
  run = cast(checkpoints.RunManifest, manifest)
  return of_run(path, run, column, 0, name, checkpoint.step, model)


def _open_imported(
  path: str,
  column: str,
  name: str,
  how: dict[str, Any],
  vocabulary: VocabularyConfig,
) -> Reference:
  """A model of Hugging Face. The facts about its training are 0: not known."""
  imported = hugging_face.open_model(path)
  model = dataclasses.replace(imported.model, **how)
  words = vocabulary_files.open_given(
    dataclasses.replace(vocabulary, path=path)
  )
  facts = {
    **dict.fromkeys(TRAINING_FACTS, 0),
    'num_params': flops.num_params(model, imported.vocab_size),
    'vocabulary': words.hash,
    'vocab_size': imported.vocab_size,
  }
  digest = hugging_face.fingerprint(path)
  return Reference(column, 0, name, digest, path, 0, model, facts)


def of_run(
  path: str,
  manifest: checkpoints.RunManifest,
  column: str,
  fold: int,
  name: str,
  step: int,
  model: ModelConfig,
) -> Reference:
  """A step of a finished run.

  Args:
    path: The run.
    manifest: Its manifest.
    column: The column that it scores.
    fold: The fold that it scores.
    name: Its name among the inputs of the table.
    step: Its step; -1 for the last.
    model: The model of the run.

  Raises:
    UserError: there is no checkpoint of the step.
  """
  step = manifest['step'] if step < 0 else step
  checkpoints.check_step(path, step)
  facts = {fact: manifest[fact] for fact in _FACTS}
  return Reference(
    column, fold, name, manifest['fingerprint'], path, step, model, facts
  )


def _model(
  facts: dict[str, Any], how: dict[str, Any], path: str
) -> ModelConfig:
  """The `ModelConfig` that a run or a file records."""
  fields = {**facts['model'], **how}
  return build(ModelConfig, fields, f'the model of {path}')


def _check_vocabulary(given: Reference, hash_: str, size: int) -> None:
  """Checks that a model from elsewhere has the vocabulary of this job.

  Args:
    given: The model.
    hash_: `Vocabulary.hash` of the vocabulary of this job.
    size: The number of its ids.

  Raises:
    UserError: the model has another vocabulary, or too few ids.
  """
  if given.facts['vocabulary'] != hash_:
    raise UserError(
      f'{given.path}, for {given.column}, was trained with the '
      f'vocabulary {given.facts["vocabulary"]}, the vocabulary here is '
      f'{hash_}: tokenize with that of the model (vocabulary.path).'
    )
  if given.vocab_size < size:
    raise UserError(
      f'The vocabulary here has {size} ids, but the model {given.path}, for '
      f'{given.column}, has only {given.vocab_size}: its tokenizer is that of '
      'another model, or has added tokens. Name the vocabulary that the model '
      'was trained with in vocabulary.path.'
    )


@dataclasses.dataclass(frozen=True)
class PlannedModel:
  """A model that is not loaded, and the number of its token ids."""

  model: ModelConfig
  vocab_size: int


def vocab_size(config: Config) -> int:
  """The size of the vocabulary of a config: given, of its model, or trained."""
  given = vocabulary_files.of_config(config)
  return given.size if given else config.vocabulary.size


def planned(config: Config) -> dict[str, PlannedModel]:
  """The model that scores each column, before the stage `reference` has run.

  Raises:
    UserError: as `open_given`; or a model has another vocabulary.
  """
  vocabulary = vocabulary_files.of_config(config)
  size = vocabulary.size if vocabulary else config.vocabulary.size
  own = PlannedModel(config.reference.model, size)
  models = dict.fromkeys(config.reference.checkpoints, own)
  for column, given in given_models(config).items():
    if vocabulary:
      _check_vocabulary(given, vocabulary.hash, size)
    models[column] = PlannedModel(given.model, given.vocab_size)
  return models


def initial_model(config: Config) -> Reference | None:
  """The model that every arm starts from; None for random parameters.

  Raises:
    UserError: as `open_given`.
  """
  if not config.train.init_from:
    return None
  how = {name: getattr(config.model, name) for name in _COMPUTED}
  checkpoint = CheckpointConfig(path=config.train.init_from)
  return open_given('train.init_from', checkpoint, how, config.vocabulary)


def arm_model(
  config: Config, vocab_size: int, vocabulary: str = ''
) -> PlannedModel:
  """The model that arms train.

  Args:
    config: Which model, or which one to start from.
    vocab_size: The number of ids of the vocabulary of this job.
    vocabulary: `Vocabulary.hash` of this vocabulary; '' if it is not trained
      yet.

  Raises:
    UserError: as `open_given`; or the model to start from has another
      vocabulary.
  """
  initial = initial_model(config)
  if initial is None:
    return PlannedModel(config.model, vocab_size)
  if vocabulary:
    _check_vocabulary(initial, vocabulary, vocab_size)
  return PlannedModel(initial.model, initial.vocab_size)


def given_models(config: Config) -> dict[str, Reference]:
  """The models that were trained elsewhere, by the column that they score.

  Raises:
    UserError: as `open_given`.
  """
  return {
    column: _open_given(config, column, checkpoint)
    for column, checkpoint in config.reference.checkpoints.items()
    if checkpoint.path
  }


def check_same_commits() -> None:
  """Checks that all hosts have one commit of each model of the Hub.

  Raises:
    UserError: this host has another one than process 0.
  """
  here = hub.facts()
  there = distributed.broadcast('the commits of models of the Hub', here)
  if here != there:
    raise UserError(
      f'Process {distributed.index()} has other commits of the Hub than process '
      f'0: {here} here, {there} there. Name a revision for each model: '
      'hf://ORG/NAME@COMMIT.'
    )


def made_from(references: list[Reference]) -> dict[str, str]:
  """The fingerprints of these models, by their names among a table's inputs."""
  return {one.input: one.fingerprint for one in references}


def steps(references: list[Reference]) -> dict[str, Any]:
  """The input and the step that score each column, by column and fold."""
  return {
    f'{one.column}, fold {one.fold}': {'input': one.input, 'step': one.step}
    for one in references
  }


def training_facts(references: list[Reference]) -> TrainingFacts:
  """The TRAINING_FACTS of the first model, with tokens and FLOPs of all runs.

  A run is counted once, even if several of its steps score.
  """
  runs = {one.fingerprint: one.facts for one in references}
  totals = {
    name: sum(facts[name] for facts in runs.values())
    for name in ('tokens', 'flops')
  }
  first = references[0].facts
  facts = {**{name: first[name] for name in TRAINING_FACTS}, **totals}
  return cast(TrainingFacts, facts)


def load(reference: Reference, mesh: Mesh) -> Any:
  """Loads the parameters, sharded over a mesh.

  Raises:
    UserError: they are missing, damaged, or of another model.
  """
  path, model = reference.path, reference.model
  target = scorer_lib.abstract_params(model, reference.vocab_size, mesh)
  if hugging_face.is_imported(path):
    return hugging_face.load(hugging_face.open_model(path), target)
  if path.endswith('.safetensors'):
    return parameter_file.load(path, target)
  return checkpoints.load_params(path, reference.step, target)
