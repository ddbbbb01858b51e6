"""The job that compares scores with labels that people gave to pages.

Labelled pages are tokenized and scored like a corpus, with the vocabulary,
models and token frequencies of the workdir, in a folder below it. Finished
scores are used again. The name of the folder depends on all that decides the
scores, so another file of pages or another model gets a folder of its own.
"""

import dataclasses
import posixpath
from typing import Any, cast

import numpy as np

from infoprune_jax.config.corpus import SPLITS
from infoprune_jax.config.experiment import Config
from infoprune_jax.config.validation import UserError
from infoprune_jax.corpus import labelled
from infoprune_jax.corpus.labelled import Pages
from infoprune_jax.runtime import artifacts, files, hashing, manifests
from infoprune_jax.runtime.options import recorded
from infoprune_jax.runtime.progress import logger
from infoprune_jax.runtime.workdir import (
  labels_dir,
  scores_dir,
  statistics_dir,
  token_store_dir,
  vocabulary_dir,
)
from infoprune_jax.score import references as references_lib, stage
from infoprune_jax.score.references import Reference
from infoprune_jax.selection import expressions
from infoprune_jax.selection.examples import scored_examples
from infoprune_jax.statistics import auc, statistics
from infoprune_jax.tokens import (
  folds as folds_lib,
  tables as table_lib,
  tokenize,
)
from infoprune_jax.tokens.token_store import StoreMarker, TokenStore
from infoprune_jax.tokens.vocabulary import Vocabulary

JOB = 'labels'
ALL = ''  # the name of the group of all pages
FILE = 'auc.json'
MEANING = 'above 0.5, pages labelled 1 have the higher score'


def check(config: Config) -> None:
  """Checks the expressions, by evaluating them over zero pages.

  Raises:
    UserError: an expression cannot be evaluated.
  """
  schema = table_lib.example_schema(config.score_columns)
  for name, expression in config.labels.scores.items():
    try:
      expressions.parse(expression, schema)
    except UserError as error:
      raise UserError(f'In labels.scores.{name}: {error}') from None


def run(config: Config, workdir: str) -> None:
  """Prints and writes the AUC of each score against the labels.

  With two reference models, the first one scores. Token frequencies are then
  those of its half of the text.

  Raises:
    UserError: a record is not a page with a label, a model is missing, or an
      expression cannot be evaluated.
  """
  store = TokenStore.open(workdir)
  pages = labelled.read(config.labels)
  references = [
    reference
    for reference in references_lib.open_all(config, workdir, store)
    if reference.fold == 0
  ]
  words = _open_vocabulary(workdir, store)
  files.check_writable(workdir)
  home = labels_dir(workdir, _digest(config, store, words, references, pages))
  with files.lock(home):
    content = np.array(
      [hashing.content_hash(document.text) for document in pages.documents]
    )
    own = _tokenize(config, home, pages, content, words)
    _write_statistics(config, workdir, home, store, own)
    _score(_of_one_fold(config), home, own, references)
    result = {
      'path': config.labels.path,
      'meaning': MEANING,
      'confidence': auc.CONFIDENCE,
      'models': references_lib.steps(references),
      'trained_on': _num_trained(config, store, content),
      **_figures(config, home, pages.label, content),
    }
    _write(config, home, result)
  if result['trained_on']:
    logger.warning(
      'labels: %d of %d pages are in the training text of the reference model: '
      'it predicts them better than unseen text',
      result['trained_on'],
      len(pages.label),
    )
  print(_text(result), flush=True)
  logger.info('labels: wrote %s', posixpath.join(_auc_dir(home), FILE))


def _open_vocabulary(workdir: str, store: TokenStore) -> Vocabulary:
  words = Vocabulary.load(vocabulary_dir(workdir))
  manifests.check_made_from(
    store.manifest,
    'token store',
    'vocabulary',
    {'fingerprint': words.hash},
    'vocabulary',
  )
  return words


def _score(
  config: Config, home: str, own: TokenStore, references: list[Reference]
) -> None:
  """The scores of the pages, by the models of the workdir."""
  steps = references_lib.steps(references)
  inputs = stage.made_from(own, references)
  scores = stage.describe(config, home, steps, inputs, JOB)
  stage.write(config, own, references, scores)


def _of_one_fold(config: Config) -> Config:
  reference = dataclasses.replace(config.reference, folds=1)
  return dataclasses.replace(config, reference=reference)


def _digest(
  config: Config,
  store: TokenStore,
  words: Vocabulary,
  references: list[Reference],
  pages: Pages,
) -> str:
  """A digest of all that decides the scores of the pages."""
  return manifests.fingerprint(
    {
      'format_version': manifests.FORMAT_VERSION,
      'pages': pages.digest,
      'columns': [config.labels.text_column, config.labels.group_column],
      'vocabulary': words.hash,
      'counted': store.first.fingerprint,
      'statistics': statistics.options(config.reference.folds),
      'score': recorded(stage.score_options(config)),
      'references': references_lib.made_from(references),
      'steps': references_lib.steps(references),
    }
  )


def _tokenize(
  config: Config,
  home: str,
  pages: Pages,
  content: np.ndarray,
  words: Vocabulary,
) -> TokenStore:
  """The token store of the pages, in one shard, in their order."""
  artifact = artifacts.Artifact(
    token_store_dir(home),
    'token store',
    JOB,
    {'columns': [config.labels.text_column, config.labels.group_column]},
    {'pages': pages.digest, 'vocabulary': words.hash},
  )
  if artifact.finished() is None:
    artifact = artifact.begin()
    marker = artifact.finished_shard(0, 1) or tokenize.write_shard(
      artifact,
      0,
      1,
      words,
      tokenize.ShardTexts(
        pages.documents,
        np.full(len(content), SPLITS.index('scored')),
        content,
      ),
    )
    tokenize.finish(artifact, [cast(StoreMarker, marker)], words, {})
  return TokenStore.open(home)


def _write_statistics(
  config: Config, workdir: str, home: str, store: TokenStore, own: TokenStore
) -> None:
  """The statistics of the pages, by the frequencies of the workdir's store."""
  artifact = artifacts.Artifact(
    statistics_dir(home),
    'table of statistics',
    JOB,
    statistics.options(1),
    {'token_store': own.fingerprint, 'counted': store.first.fingerprint},
  )
  if artifact.finished() is None:
    artifact = artifact.begin()
    num_workers = config.corpus.num_workers
    folds = config.reference.folds
    counts = statistics.token_counts(workdir, store, folds, num_workers)
    statistics.write(artifact, home, own, counts[:1], num_workers)


def _num_trained(config: Config, store: TokenStore, content: np.ndarray) -> int:
  """The number of pages in the training text of the reference model."""
  trained, store = np.zeros(len(content), bool), store.first
  for number in range(store.num_shards):
    shard = store.shard(number)
    rows = folds_lib.trained_documents(shard, 0, config.reference.folds)
    trained |= np.isin(content, shard.column('content_hash')[rows])
  return int(trained.sum())


def _figures(
  config: Config, home: str, label: np.ndarray, content: np.ndarray
) -> dict[str, Any]:
  """The AUC of each score, over all pages and within each group."""
  examples = scored_examples(home, TokenStore.open(home))
  values = {}
  for name, expression in config.labels.scores.items():
    try:
      values[name] = expressions.score(examples, expression)
    except UserError as error:
      raise UserError(f'In labels.scores.{name}: {error}') from None
  groups = {ALL: np.arange(len(label))}
  if config.labels.group_column:
    group = np.array(examples.table['source'].to_pylist())
    groups |= {str(name): np.flatnonzero(group == name) for name in set(group)}
  return {
    'scores': dict(config.labels.scores),
    'groups': [
      _group(config, name, groups[name], label, content, values)
      for name in sorted(groups)
    ],
  }


def _group(
  config: Config,
  name: str,
  inside: np.ndarray,
  label: np.ndarray,
  content: np.ndarray,
  values: dict[str, np.ndarray],
) -> dict[str, Any]:
  """The AUC of each score over the pages at some positions.

  Copies of a text with one label count as one page: drawn separately, they
  would look like more evidence than there is.
  """
  pairs = np.stack([content[inside], label[inside]])
  _, first = np.unique(pairs, axis=1, return_index=True)
  pages = inside[np.sort(first)]
  judged = label[pages]
  section = config.labels
  rows = []
  for score, score_values in values.items():
    area = bounds = None
    if judged.any() and not judged.all():
      area = auc.auc(score_values[pages], judged)
      bounds = auc.interval(
        score_values[pages], judged, section.bootstrap_samples, section.seed
      )
    low, high = bounds or (None, None)
    rows.append({'score': score, 'auc': area, 'low': low, 'high': high})
  return {
    'group': name,
    'pages': {'1': int(judged.sum()), '0': int((~judged).sum())},
    'copies': len(inside) - len(pages),
    'auc': rows,
  }


def _auc_dir(home: str) -> str:
  return posixpath.join(home, 'auc')


def _write(config: Config, home: str, result: dict[str, Any]) -> None:
  """Writes the results, always anew: it takes seconds."""
  tables = {
    'scores': scores_dir(home),
    'statistics': statistics_dir(home),
  }
  path = _auc_dir(home)
  artifact = artifacts.Artifact(
    path,
    'figures of labelled pages',
    JOB,
    config.labels,
    {
      name: manifests.open_finished(table, name, JOB)['fingerprint']
      for name, table in tables.items()
    },
  ).take_over()
  name = posixpath.join(path, FILE)
  artifact.finish({FILE: files.write_json(name, result, artifact.write_file)})


def _text(result: dict[str, Any]) -> str:
  """The results as a table for a terminal."""
  groups = len(result['groups']) > 1
  width = max(map(len, result['scores']))
  lines = [f'AUC of each score: {result["meaning"]}.']
  for group in result['groups']:
    pages, copies = group['pages'], group['copies']
    lines.append(
      f'{group["group"] or "all" if groups else "Pages"}: {pages["1"]} labelled '
      f'1, {pages["0"]} labelled 0'
      + f' ({copies} copies counted once)'
      * bool(copies)
    )
    lines.append(f'  {"score":{width}}    AUC  95 % interval')
    for row in group['auc']:
      area = '-' if row['auc'] is None else f'{row["auc"]:.3f}'
      bounds = '-'
      if row['low'] is not None:
        bounds = f'{row["low"]:.3f} to {row["high"]:.3f}'
      lines.append(f'  {row["score"]:{width}}  {area:>5}  {bounds}')
  return '\n'.join(lines)
