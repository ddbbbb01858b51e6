"""The artifacts that a config asks for, and what each is made from.

There is one function for each stage. `runtime/lineage.py` compares what they
list with what is on disk.
"""

import functools
import itertools
import posixpath
from collections.abc import Callable, Iterable, Mapping
from typing import Any, cast

from infoprune_jax.config.classifier import PREFIX
from infoprune_jax.config.experiment import Config
from infoprune_jax.config.training import TrainingConfig
from infoprune_jax.config.validation import UserError
from infoprune_jax.export import job as export_job
from infoprune_jax.model import flops
from infoprune_jax.report.results import page as results_page
from infoprune_jax.report.selection import artifact as selection_artifact
from infoprune_jax.runtime import manifests
from infoprune_jax.runtime.artifacts import Artifact
from infoprune_jax.runtime.lineage import GROWS, STAYS, Growth, Planned
from infoprune_jax.runtime.options import UNKNOWN
from infoprune_jax.runtime.workdir import (
  classifier_dir,
  contamination_dir,
  evaluation_dir,
  heldout_copies_dir,
  keep_set_dir,
  labels_dir,
  own_scores_dir,
  reference_dir,
  reference_input,
  run_dir,
  scores_dir,
  selection_report_dir,
  statistics_dir,
  task_results_dir,
  token_store_dir,
  user_table_dir,
  user_table_input,
  vocabulary_dir,
)
from infoprune_jax.score import references, stage
from infoprune_jax.score.references import PlannedModel, Reference
from infoprune_jax.selection import inputs, join, select, user_tables
from infoprune_jax.statistics import (
  benchmark_ngrams,
  classify,
  decontaminate,
  duplicated_text,
  example_texts,
  heldout_copies,
  near_duplicates,
  statistics,
)
from infoprune_jax.tokens import (
  growth,
  own_vocabulary,
  tokenize,
  vocabulary_files,
)
from infoprune_jax.train import runs


def tokenize_artifacts(config: Config, workdir: str) -> list[Planned]:
  """The token store, and the vocabulary."""
  try:
    given = vocabulary_files.of_config(config)
    is_trained = given is None
  except UserError:  # As in `if_reachable`.
    given, is_trained = None, False
  words = {'vocabulary': given.hash} if given else {}
  model = {'model': given.hash} if given else {}
  store = tokenize.store_artifact(config, workdir, words)
  return [
    Planned(
      store,
      growth=Growth(
        growth.is_addition, functools.partial(growth.pending, config)
      ),
    ),
    Planned(
      own_vocabulary.describe(config, workdir, model),
      stale_with=store.path if is_trained else '',
    ),
  ]


def if_reachable(open_file: Callable[[], Any]) -> Any:
  """A file of the user's as it is opened, or None if that cannot be.

  Stages that only read what was made with a model run on other machines, too.
  """
  try:
    return open_file()
  except UserError:
    return None


def statistics_artifacts(config: Config, workdir: str) -> list[Planned]:
  """The table of statistics."""
  store = {'token_store': token_store_dir(workdir)}
  table = statistics.describe(config, workdir, {})
  return [Planned(table, store, on_growth=GROWS)]


def near_duplicates_artifacts(config: Config, workdir: str) -> list[Planned]:
  """The table of near-duplicates, and that of near-copies of held-out text."""
  store = {'token_store': token_store_dir(workdir)}
  kinds = near_duplicates, heldout_copies
  return [Planned(one.describe(config, workdir, {}), store) for one in kinds]


def duplicated_text_artifacts(config: Config, workdir: str) -> list[Planned]:
  """The table of duplicated text."""
  store = {'token_store': token_store_dir(workdir)}
  return [Planned(duplicated_text.describe(config, workdir, {}), store)]


def decontaminate_artifacts(config: Config, workdir: str) -> list[Planned]:
  """The table of contamination, if there are benchmarks."""
  section, path = config.select.decontaminate, contamination_dir(workdir)
  if not section.paths:
    return []
  read, is_begun = (
    {},
    if_reachable(lambda: manifests.read_begun(path, decontaminate.JOB)),
  )
  if is_begun:
    read = if_reachable(lambda: benchmark_ngrams.digests(section)) or {}
  table = decontaminate.describe(config, workdir, read)
  store = {'token_store': token_store_dir(workdir)}
  return [Planned(table, store, inputs_are_known=bool(read))]


def join_artifacts(config: Config, workdir: str) -> list[Planned]:
  """The user's tables, joined with the examples."""
  planned, store = [], {'token_store': token_store_dir(workdir)}
  for name in config.select.tables:
    digest = functools.partial(_digest_of_table, config, workdir, name)
    read = _read(user_table_dir(workdir, name), join.JOB, 'files', digest)
    planned.append(Planned(join.describe(config, workdir, name, read), store))
  return planned


def _digest_of_table(config: Config, workdir: str, name: str) -> str:
  table = user_tables.open_table(name, config.select.tables[name])
  return user_tables.digest(join.files_facts(workdir, table))


def _read(
  path: str, job: str, name: str, digest: Callable[[], str]
) -> dict[str, str]:
  """The user's files that an artifact was made from: their digest, by name.

  It is left out if the artifact is not begun, and where the files are not.
  """
  if not if_reachable(lambda: manifests.read_begun(path, job)):
    return {}
  known = if_reachable(digest)
  return {name: known} if known else {}


def classify_artifacts(config: Config, workdir: str) -> list[Planned]:
  """The table of each classifier."""
  planned, store = [], {'token_store': token_store_dir(workdir)}
  for name, section in config.classifiers.items():
    digest = functools.partial(example_texts.digest, name, section)
    path = classifier_dir(workdir, name)
    read = _read(path, classify.JOB, 'examples', digest)
    table = classify.describe(config, workdir, name, read)
    planned.append(Planned(table, store))
  return planned


def reference_artifacts(config: Config, workdir: str) -> list[Planned]:
  """The run of each model that the stage `reference` trains."""
  section = config.reference
  store = token_store_dir(workdir)
  model = PlannedModel(section.model, vocab_size(workdir))
  return [
    Planned(
      runs.describe_reference(config, workdir, fold, {}),
      {'token_store': store},
      num_steps=steps(section.training, model),
      budget_section='reference.training',
      on_growth=STAYS,
    )
    for fold in range(section.folds if section.is_trained else 0)
  ]


def vocab_size(workdir: str) -> int:
  """Of the token store; 0 if there is none."""
  store = manifest(token_store_dir(workdir), 'tokenize')
  return store['vocab_size'] if store else 0


def manifest(path: str, job: str) -> Any:
  """A manifest; None if it is missing or damaged."""
  return if_reachable(lambda: manifests.read_manifest(path, job))


def steps(training: TrainingConfig, model: PlannedModel) -> int | None:
  """The budget in steps; None if it needs a vocabulary that is not there."""
  if training.num_flops and not model.vocab_size:
    return None
  return training.whole_steps(
    flops.training_flops_per_token(
      model.model, model.vocab_size, training.sequence_length
    )
  )


def score_artifacts(config: Config, workdir: str) -> list[Planned]:
  """The score table."""
  section = config.reference
  made_from = {'token_store': token_store_dir(workdir)}
  if section.is_trained:
    for fold in range(section.folds):
      name = reference_input(fold, section.folds)
      made_from[name] = reference_dir(workdir, fold, section.folds)
  given = {}
  table = manifest(scores_dir(workdir), 'score')
  # A digest of a large model takes a minute. Only the stage `score` itself
  # finds out whether the files of the same path have changed.
  if (table or {}).get('given_paths') != stage.given_paths(config):
    given = if_reachable(lambda: references.given_models(config)) or {}
  steps = if_reachable(lambda: _steps_by_column(config, workdir, given))
  digests = references.made_from([*given.values()])
  scores = stage.describe(config, workdir, steps or UNKNOWN, digests)
  return [Planned(scores, made_from, on_growth=GROWS)]


def _steps_by_column(
  config: Config, workdir: str, given: Mapping[str, Reference]
) -> dict[str, Any]:
  """As `references.steps`, of the models that a config asks for.

  Args:
    config: The experiment.
    workdir: Where reference models are trained.
    given: The models that were trained elsewhere, by column; the steps of those
      that it lacks are `UNKNOWN`.
  """
  section, steps = config.reference, {}
  for column, checkpoint in section.checkpoints.items():
    for fold in range(section.folds):
      name = reference_input(fold, section.folds)
      step = checkpoint.step
      if column in given:
        name, step = given[column].input, given[column].step
      elif step < 0 and not checkpoint.path:
        path = reference_dir(workdir, fold, section.folds)
        run = manifests.read_manifest(path, 'reference')
        step = cast(Any, run)['step'] if run else UNKNOWN
      is_known = column in given or not checkpoint.path
      steps[f'{column}, fold {fold}'] = (
        {'input': name, 'step': step} if is_known else UNKNOWN
      )
  return steps


def select_artifacts(config: Config, workdir: str) -> list[Planned]:
  """The keep set of each arm; of those that draw at random, one per seed.

  Without arms that score with their own checkpoints.
  """
  planned = [
    keep_set(config, workdir, arm, seed)
    for arm in config.select.arms
    for seed in config.train.seeds
    if not config.select.scores_itself(arm)
  ]
  return list({one.path: one for one in planned}.values())


def keep_set(config: Config, workdir: str, arm: str, seed: int) -> Planned:
  """The keep set of an arm and seed."""
  return Planned(
    select.describe(config, workdir, arm, seed, {}),
    {
      'token_store': token_store_dir(workdir),
      **inputs.tables_read(config, workdir, arm, seed),
    },
  )


def selection_report_artifacts(config: Config, workdir: str) -> list[Planned]:
  """The selection report."""
  sources = [
    vocabulary_dir(workdir),
    token_store_dir(workdir),
    statistics_dir(workdir),
    scores_dir(workdir),
    *(one.path for one in select_artifacts(config, workdir)),
  ]
  for arm, seed in itertools.product(config.own_scored, config.train.seeds):
    sources.append(own_scores_dir(workdir, arm, seed))
    sources.append(keep_set(config, workdir, arm, seed).path)
  sources += [user_table_dir(workdir, name) for name in config.select.tables]
  if config.select.decontaminate.paths:
    sources.append(contamination_dir(workdir))
  for arm, seed in itertools.product(config.selected, config.train.seeds):
    sources += inputs.tables_read(config, workdir, arm, seed).values()
  report = selection_artifact.describe(config, workdir, {})
  return [Planned(report, _below(workdir, sources))]


def _below(workdir: str, paths: Iterable[str]) -> dict[str, str]:
  """Paths by their names below the workdir."""
  return {posixpath.relpath(path, workdir): path for path in paths}


def report_artifacts(config: Config, workdir: str) -> list[Planned]:
  """The report."""
  [selected] = selection_report_artifacts(config, workdir)
  sources = [
    *selected.made_from.values(),
    selection_report_dir(workdir),
    *(one.path for one in reference_artifacts(config, workdir)),
  ]
  for arm, seed in config.runs:
    sources += [run_dir(workdir, arm, seed), evaluation_dir(workdir, arm, seed)]
    if config.evaluate.has_tasks and arm in config.arms:
      sources.append(task_results_dir(workdir, arm, seed))
  if manifest(heldout_copies_dir(workdir), near_duplicates.JOB):
    sources.append(heldout_copies_dir(workdir))
  report = results_page.describe(config, workdir, {})
  return [Planned(report, _below(workdir, sources))]


def export_artifacts(config: Config, workdir: str) -> list[Planned]:
  """The export of each arm and format."""
  planned = []
  for format, name, selections in export_job.folders(config):
    made_from = {'token_store': token_store_dir(workdir)}
    if name == export_job.EVERY_ARM:
      made_from['scores'] = scores_dir(workdir)
      made_from['statistics'] = statistics_dir(workdir)
      for table in config.select.tables:
        made_from[user_table_input(table)] = user_table_dir(workdir, table)
      for classifier in config.classifiers:
        made_from[PREFIX + classifier] = classifier_dir(workdir, classifier)
    for selection in selections:
      made_from[f'keep_set/{selection}'] = keep_set_dir(workdir, selection)
    export = export_job.describe(config, workdir, format, name, {})
    planned.append(Planned(export, made_from))
  return planned


def labels_artifacts(config: Config, workdir: str) -> list[Planned]:
  """The folder of labelled pages, which holds artifacts by their digests."""
  [scores] = score_artifacts(config, workdir)
  made_from = {**scores.made_from, 'vocabulary': vocabulary_dir(workdir)}
  folder = posixpath.dirname(labels_dir(workdir, 'any'))
  pages = Artifact(folder, 'figures of labelled pages', 'labels', {}, {})
  return [Planned(pages, made_from)]
