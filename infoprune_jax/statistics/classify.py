"""The stage that trains classifiers, and scores every example by them. No JAX."""

import dataclasses
import functools
import posixpath
from collections.abc import Mapping

import numpy as np

from infoprune_jax.config.classifier import PREFIX, ClassifierConfig
from infoprune_jax.config.experiment import Config
from infoprune_jax.runtime import (
  artifacts,
  files,
  manifests,
  resumable,
  workers,
)
from infoprune_jax.runtime.manifests import Marker
from infoprune_jax.runtime.options import options_of
from infoprune_jax.runtime.progress import counted, logger
from infoprune_jax.runtime.workdir import classifier_dir, vocabulary_dir
from infoprune_jax.statistics import auc, classifier, example_texts
from infoprune_jax.statistics.classifier import Classifier, Texts
from infoprune_jax.statistics.example_texts import LabelledTexts
from infoprune_jax.tokens import folds as folds_lib, tables
from infoprune_jax.tokens.token_store import TokenStore
from infoprune_jax.tokens.vocabulary import Vocabulary

JOB = 'classify'
_WEIGHTS = 'weights.npy'  # of the features, and last the bias, float32


def check(config: Config) -> None:
  """Lists the files of all classifiers.

  Raises:
    UserError: a path matches nothing, or both labels have a file.
  """
  for name, section in config.classifiers.items():
    example_texts.list_files(name, section)


def run(config: Config, workdir: str) -> None:
  """Trains each classifier, and writes its log odds of every example.

  Raises:
    UserError: the token store is missing, the table there has other inputs, or
      the texts of a label are too few or cannot be read.
  """
  store = TokenStore.open(workdir)
  if not config.classifiers:
    logger.info('%s: config.classifiers names none: nothing to do', JOB)
    return
  with workers.shared_pool(config.corpus, workdir, JOB):
    for name in config.classifiers:
      _run(config, workdir, name, store)


def _run(config: Config, workdir: str, name: str, store: TokenStore) -> None:
  path = classifier_dir(workdir, name)
  with files.lock(path):
    manifest = manifests.read_manifest(path, JOB)
    inputs = {
      'token_store': store.fingerprint,
      # The texts may no longer be there.
      'examples': manifest['inputs']['examples']
      if manifest
      else example_texts.digest(name, config.classifiers[name]),
    }
    artifact = describe(config, workdir, name, inputs)
    if artifact.finished():
      logger.info('%s: %s finished before, skipped', JOB, name)
      return
    # Bad texts are refused before anything is written.
    model = _model(artifact)
    trained = None
    if not model.finished():
      trained = _train(config, workdir, name, store)
    artifact = artifact.begin()
    if trained:
      _save(model, *trained)
    _write_table(config, workdir, name, store, artifact)


def describe(
  config: Config, workdir: str, name: str, inputs: Mapping[str, str]
) -> artifacts.Artifact:
  """The table of a classifier, made from these inputs."""
  return artifacts.Artifact(
    classifier_dir(workdir, name),
    f'table of classifier {name}',
    JOB,
    {**options_of(config.classifiers[name]), 'folds': config.reference.folds},
    inputs,
    sections={'': f'classifiers.{name}', 'folds': 'reference.folds'},
  )


def _model(table: artifacts.Artifact) -> artifacts.Artifact:
  """The classifier itself, below its table: a shard may be written later."""
  path = posixpath.join(table.path, 'model')
  return dataclasses.replace(table, path=path, kind='classifier')


def _train(
  config: Config, workdir: str, name: str, store: TokenStore
) -> tuple[Classifier, dict[str, float]]:
  """A classifier, and its facts: counts of texts, accuracy and AUC."""
  section = config.classifiers[name]
  words = Vocabulary.load(vocabulary_dir(workdir))
  folds = config.reference.folds
  labelled = example_texts.read(name, section, store, words, folds)
  trained, odds = _fit(labelled, section)
  is_good = labelled.is_good[labelled.is_heldout]
  facts = {
    'num_good': int(labelled.is_good.sum()),
    'num_bad': int((~labelled.is_good).sum()),
    'num_heldout': len(is_good),
    # Both labels count alike.
    'accuracy': float(
      np.mean([np.mean(odds[is_good] > 0), np.mean(odds[~is_good] <= 0)])
    ),
    'auc': auc.auc(odds, is_good),
  }
  logger.info(
    '%s: %s learns from %s and %d bad ones; of %d that are held out it tells '
    '%.1f %% right (both labels count alike), AUC %.3f',
    JOB,
    name,
    counted(facts['num_good'], 'good text'),
    facts['num_bad'],
    facts['num_heldout'],
    100 * facts['accuracy'],
    facts['auc'],
  )
  return trained, facts


def _fit(
  labelled: LabelledTexts, section: ClassifierConfig
) -> tuple[Classifier, np.ndarray]:
  """A classifier of the texts that are not held out, and its odds of others."""
  texts, heldout = labelled.texts, labelled.is_heldout
  x = classifier.features(
    _only(texts, ~heldout), section.ngram, section.hash_bits
  )
  trained = classifier.fit(
    x, labelled.is_good[~heldout], section.l2, section.ngram
  )
  return trained, trained.log_odds(_only(texts, heldout))


def _only(texts: Texts, chosen: np.ndarray) -> Texts:
  """Some of the texts: `chosen` is [D] bool."""
  tokens = texts.tokens[np.repeat(chosen, texts.num_tokens)]
  return Texts(tokens, texts.num_tokens[chosen])


def _save(
  model: artifacts.Artifact, trained: Classifier, facts: dict[str, float]
) -> None:
  model = model.begin()
  weights = np.append(trained.weights, np.float32(trained.bias))
  path = posixpath.join(model.path, _WEIGHTS)
  written = model.write_file(path, lambda file: np.save(file, weights))
  model.finish({_WEIGHTS: written}, **facts)


@dataclasses.dataclass(frozen=True)
class _ShardTask:
  """What a worker needs to write one shard."""

  artifact: artifacts.Artifact
  workdir: str
  name: str
  shard: int
  folds: int
  ngram: int


@functools.lru_cache(maxsize=1)
def _opened(workdir: str) -> TokenStore:
  return TokenStore.open(workdir)


@functools.lru_cache(maxsize=1)
def _loaded(path: str, ngram: int) -> Classifier:
  manifest = manifests.open_finished(path, 'classifier', JOB)
  weights = np.load(manifests.verified(path, manifest, _WEIGHTS))
  return Classifier(weights[:-1], float(weights[-1]), ngram)


def _write_shard(task: _ShardTask) -> Marker:
  """Writes one shard of the table, and returns its marker."""
  store = _opened(task.workdir)
  shard = store.shard(task.shard)
  is_scored = folds_lib.fold_of_documents(shard, task.folds) >= 0
  trained = _loaded(_model(task.artifact).path, task.ngram)
  texts = _only(Texts(shard.tokens, shard.column('num_tokens')), is_scored)
  made = tables.shard_table(
    tables.classifier_schema(task.name),
    task.shard,
    np.flatnonzero(is_scored),
    shard.table('num_tokens'),
    **{f'{PREFIX}{task.name}': trained.log_odds(texts)},
  )
  return tables.write_shard(task.artifact, made, task.shard, store.num_shards)


def _write_table(
  config: Config,
  workdir: str,
  name: str,
  store: TokenStore,
  artifact: artifacts.Artifact,
) -> None:
  """Writes the missing shards, then the manifest."""
  folds, ngram = config.reference.folds, config.classifiers[name].ngram
  tasks = [
    _ShardTask(artifact, workdir, name, shard, folds, ngram)
    for shard in range(store.num_shards)
  ]
  work = resumable.ShardWork(
    f'{JOB}: {name}',
    _write_shard,
    tasks,
    'documents',
    store.documents_per_shard,
  )
  markers = resumable.write_missing_shards(
    artifact, work, config.corpus.num_workers
  )
  resumable.finish_from_markers(artifact, markers, sums=['num_examples'])
