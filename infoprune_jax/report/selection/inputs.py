"""The inputs of the selection report: all artifacts made before training."""

import dataclasses
import itertools
import posixpath
from collections.abc import Iterable, Mapping
from typing import Any

from infoprune_jax.config.classifier import PREFIX
from infoprune_jax.config.experiment import Config
from infoprune_jax.config.validation import UserError
from infoprune_jax.runtime import manifests
from infoprune_jax.runtime.workdir import (
  classifier_dir,
  contamination_dir,
  duplicated_text_dir,
  keep_set_dir,
  near_duplicates_dir,
  own_scores_dir,
  scores_dir,
  statistics_dir,
  token_store_dir,
  user_table_dir,
  user_table_input,
  vocabulary_dir,
)
from infoprune_jax.selection.inputs import SUMMARY_VERSION
from infoprune_jax.selection.keep_set import (
  read_summary,
  selection_job,
  selection_name,
)
from infoprune_jax.tokens.token_store import TokenStore
from infoprune_jax.tokens.vocabulary import Vocabulary

MAX_TEXT_CHARS = 400

Summaries = Mapping[str, list[dict[str, Any]]]  # by arm; one, or one per seed


@dataclasses.dataclass(frozen=True)
class Selected:
  """The manifests of every artifact that selections are made from."""

  vocabulary: Mapping[str, Any]
  store: Mapping[str, Any]
  statistics: Mapping[str, Any]
  scores: Mapping[str, Any]
  # Tables that compare examples, those that a keep set reads, by input name.
  compared: Mapping[str, Mapping[str, Any]]
  contamination: Mapping[str, Any] | None  # if there are benchmarks
  joined: Mapping[str, Mapping[str, Any]]  # tables of the user's, by name
  classifiers: Mapping[str, Mapping[str, Any]]  # those that a keep set reads
  # Score tables by checkpoints of arms, by arm and seed.
  own_scores: Mapping[tuple[str, int], Mapping[str, Any]]
  keep_sets: Mapping[str, Mapping[str, Any]]  # by selection
  selections: Mapping[tuple[str, int], str]  # by arm and seed

  @property
  def fingerprints(self) -> dict[str, str]:
    """By path below the workdir."""
    manifests = {
      'vocabulary': self.vocabulary,
      'token_store': self.store,
      'statistics': self.statistics,
      'scores': self.scores,
    }
    manifests |= self.compared
    if self.contamination:
      manifests['contamination'] = self.contamination
    for name, manifest in self.joined.items():
      manifests[user_table_input(name)] = manifest
    for name, manifest in self.classifiers.items():
      manifests[f'classifiers/{name}'] = manifest
    for (arm, seed), manifest in self.own_scores.items():
      manifests[own_scores_dir('', arm, seed)] = manifest
    for name, manifest in self.keep_sets.items():
      manifests[f'keep_sets/{name}'] = manifest
    return {path: item['fingerprint'] for path, item in manifests.items()}

  def selections_of(self, arm: str) -> tuple[str, ...]:
    """The keep sets of an arm: one, or one per seed if it draws at random."""
    names = [name for run, name in self.selections.items() if run[0] == arm]
    return tuple(dict.fromkeys(names))

  def check_lineage(self) -> None:
    """Raises `UserError` if an artifact was not made from the others here."""
    check = manifests.check_made_from
    store = ('token_store', self.store, 'token store')
    check(self.scores, 'score table', *store)
    check(self.statistics, 'table of statistics', *store)
    for name, manifest in self.joined.items():
      check(manifest, f'table {name}', *store)
    for name, manifest in self.keep_sets.items():
      keep_set = (manifest, f'keep set {name}')
      check(*keep_set, *store)
      if 'scores' in manifest['inputs']:  # The arm reads a score.
        check(*keep_set, 'scores', self.scores, 'score table')
      if 'statistics' in manifest['inputs']:
        check(*keep_set, 'statistics', self.statistics, 'table of statistics')
      for input_name, compared in self.compared.items():
        if input_name in manifest['inputs']:
          check(*keep_set, input_name, compared, compared['kind'])
      if self.contamination and 'contamination' in manifest['inputs']:
        table = (self.contamination, 'table of contamination')
        check(*keep_set, 'contamination', *table)
      for table, joined in self.joined.items():
        if user_table_input(table) in manifest['inputs']:
          input_name = user_table_input(table)
          check(*keep_set, input_name, joined, f'table {table}')
      for classifier, table in self.classifiers.items():
        if (column := PREFIX + classifier) in manifest['inputs']:
          check(*keep_set, column, table, f'table of classifier {classifier}')
    for run, manifest in self.own_scores.items():
      check(manifest, f'score table of {run[0]}, seed {run[1]}', *store)
      kept = f'keep set {self.selections[run]}'
      read = ('own_scores', manifest, 'score table of its checkpoint')
      check(self.keep_sets[self.selections[run]], kept, *read)


def open_selected(config: Config, workdir: str) -> Selected:
  """Opens every artifact.

  Raises:
    UserError: one is missing, unfinished, damaged, or not made from the others.
  """
  opened = manifests.open_finished
  selections = {
    (arm, seed): selection_name(config.select, arm, seed)
    for arm in config.selected
    for seed in config.train.seeds
  }
  path = scores_dir(workdir)
  scores = opened(path, 'score table', 'score')
  manifests.check_sizes(path, scores, 'score table', 'score')
  keep_sets = {
    name: opened(
      keep_set_dir(workdir, name),
      f'keep set {name}',
      selection_job(config.select, arm),
    )
    for (arm, _), name in selections.items()
  }
  vocabulary = vocabulary_dir(workdir)
  store = token_store_dir(workdir)
  path = statistics_dir(workdir)
  selected = Selected(
    vocabulary=opened(vocabulary, 'vocabulary', 'tokenize'),
    store=opened(store, 'token store', 'tokenize'),
    statistics=opened(path, 'table of statistics', 'statistics'),
    scores=scores,
    compared=_compared(workdir, keep_sets),
    contamination=opened(
      contamination_dir(workdir), 'table of contamination', 'decontaminate'
    )
    if config.select.decontaminate.paths
    else None,
    joined={
      name: opened(user_table_dir(workdir, name), f'table {name}', 'join')
      for name in config.select.tables
    },
    classifiers={
      name: opened(
        classifier_dir(workdir, name), f'table of classifier {name}', 'classify'
      )
      for name in _classifiers_read(keep_sets)
    },
    own_scores=_own_scores(config, workdir),
    keep_sets=keep_sets,
    selections=selections,
  )
  selected.check_lineage()
  return selected


def _compared(
  workdir: str, keep_sets: Mapping[str, Mapping[str, Any]]
) -> dict[str, Mapping[str, Any]]:
  """The manifests of `Selected.compared`."""
  kinds = {
    near_duplicates_dir(workdir): 'table of near-duplicates',
    duplicated_text_dir(workdir): 'table of duplicated text',
  }
  read = set().union(*(kept['inputs'] for kept in keep_sets.values()))
  return {
    name: manifests.open_finished(path, kind, name)
    for path, kind in kinds.items()
    if (name := posixpath.basename(path)) in read
  }


def _classifiers_read(
  keep_sets: Mapping[str, Mapping[str, Any]],
) -> list[str]:
  """The names of the classifiers that keep sets were made from."""
  columns = itertools.chain(*(kept['inputs'] for kept in keep_sets.values()))
  own = (name for name in columns if name.startswith(PREFIX))
  return [name.removeprefix(PREFIX) for name in dict.fromkeys(own)]


def _own_scores(
  config: Config, workdir: str
) -> dict[tuple[str, int], Mapping[str, Any]]:
  """The score tables by checkpoints of arms, by arm and seed."""
  return {
    (arm, seed): manifests.open_finished(
      own_scores_dir(workdir, arm, seed),
      f'score table of {arm}, seed {seed}',
      'own_scores',
    )
    for arm in config.own_scored
    for seed in config.train.seeds
  }


def keep_summaries(workdir: str, selected: Selected) -> Summaries:
  """The summaries of each arm that the stage `select` wrote: one, or by seed.

  Raises:
    UserError: one is missing, of an older version, or of another score table.
  """
  return {
    arm: [
      _summary(workdir, name, selected) for name in selected.selections_of(arm)
    ]
    for arm in dict.fromkeys(arm for arm, _ in selected.selections)
  }


def _summary(workdir: str, name: str, selected: Selected) -> dict[str, Any]:
  folder = keep_set_dir(workdir, name)
  summary = read_summary(folder)
  if summary is None:
    raise UserError(
      f'{folder}/summary.json is missing: run --job=select again.'
    )
  version = summary.get('version', 1)  # Version 1 had no such key.
  if version != SUMMARY_VERSION:
    raise UserError(
      f'{folder}/summary.json has version {version}, but this program reads '
      f'{SUMMARY_VERSION}: run --job=select again, which writes it anew and '
      'does not change the keep set.'
    )
  # The summary shows deciles of the score, even if the arm reads no score.
  scores = selected.scores['fingerprint']
  if summary['scores'] != scores:
    raise UserError(
      f'{folder}/summary.json was made with the scores {summary["scores"]}, '
      f'but the table here is {scores}: run --job=select again.'
    )
  contaminated = (selected.contamination or {}).get('fingerprint')
  joined = {name: one['fingerprint'] for name, one in selected.joined.items()}
  if (
    summary.get('tables', {}) != joined
    or summary.get('contaminated') != contaminated
  ):
    raise UserError(
      f'{folder}/summary.json was made with other tables of the config: run '
      '--job=select again, which writes it anew and does not change the keep '
      'set.'
    )
  return summary


def texts_of(
  workdir: str, examples: Iterable[tuple[int, int]]
) -> dict[tuple[int, int], str]:
  """The beginning of the text of each (shard, doc_index)."""
  # In the order of the store, so that each shard is opened once.
  ordered = sorted(set(examples))
  if not ordered:
    return {}
  store = TokenStore.open(workdir)
  vocabulary = Vocabulary.load(vocabulary_dir(workdir))
  # A character takes at most four tokens: one for each of its bytes.
  most = 4 * (MAX_TEXT_CHARS + 1)
  return {
    key: vocabulary.decode(store.document(*key)[:most]) for key in ordered
  }
