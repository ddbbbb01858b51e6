"""What keep sets are made from: the token store, scores and other tables."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from infoprune_jax.config.classifier import PREFIX
from infoprune_jax.config.experiment import Config
from infoprune_jax.runtime import manifests
from infoprune_jax.runtime.workdir import (
  classifier_dir,
  contamination_dir,
  duplicated_text_dir,
  near_duplicates_dir,
  own_scores_dir,
  scores_dir,
  statistics_dir,
  user_table_dir,
  user_table_input,
)
from infoprune_jax.selection import groups_kept, rule_inputs
from infoprune_jax.tokens.token_store import TokenStore

# The version of summaries; those of another version are written again.
SUMMARY_VERSION = 3


class Inputs(NamedTuple):
  """What the keep sets of arms are made from."""

  config: Config
  workdir: str
  store: TokenStore
  tables: Mapping[str, str]  # fingerprints of the tables, by input name
  joined: Mapping[str, str]  # fingerprints of the user's tables, by name
  # Entries of a summary that decide whether it is written again.
  summary_key: Mapping[str, Any]
  # The folder of the score table that rules read, if it is by the checkpoint of
  # an arm; '' for that of the workdir.
  own_scores: str = ''


def open_inputs(config: Config, workdir: str, own_scores: str = '') -> Inputs:
  """Opens the token store and checks the tables that were made from it.

  Args:
    config: The experiment.
    workdir: Its workdir.
    own_scores: The folder of the score table that rules are to read; '' for
      that of the workdir.

  Raises:
    UserError: a table is missing, or was made from another token store.
  """
  store = TokenStore.open(workdir)
  path, kind = scores_dir(workdir), 'score table'
  scores = _open_table(path, kind, 'score', store)
  manifests.check_sizes(path, scores, kind, 'score')
  path, kind = statistics_dir(workdir), 'table of statistics'
  statistics = _open_table(path, kind, 'statistics', store)
  read = {'scores': scores['fingerprint']}
  if own_scores:
    own = _open_table(own_scores, kind, 'own_scores', store)
    read = {'own_scores': own['fingerprint']}
  contamination = ''
  if config.select.decontaminate.paths:
    contamination = _contamination(workdir, store)['fingerprint']
  joined = {}
  for name in config.select.tables:
    path = user_table_dir(workdir, name)
    table = _open_table(path, f'table {name}', 'join', store)
    joined[name] = table['fingerprint']
  return Inputs(
    config,
    workdir,
    store,
    {**read, 'statistics': statistics['fingerprint']},
    joined,
    {
      'version': SUMMARY_VERSION,
      # Summaries show deciles of the scores, also for rules that read none.
      'scores': scores['fingerprint'],
      'num_examples': config.report.num_examples,
      # Shown examples have these columns.
      **({'tables': joined} if joined else {}),
      **({'contaminated': contamination} if contamination else {}),
    },
    own_scores,
  )


def _open_table(
  path: str, kind: str, job: str, store: TokenStore
) -> manifests.Manifest:
  """The manifest of a table.

  Raises:
    UserError: the table is missing, or was made from another token store.
  """
  manifest = manifests.open_finished(path, kind, job)
  manifests.check_made_from(
    manifest, kind, 'token_store', store.manifest, 'token store'
  )
  return manifest


def _contamination(workdir: str, store: TokenStore) -> manifests.Manifest:
  path, kind = contamination_dir(workdir), 'table of contamination'
  return _open_table(path, kind, 'decontaminate', store)


def summary_key(inputs: Inputs, arm: str) -> dict[str, Any]:
  """Entries of the summary of an arm that decide if it is written again."""
  per = groups_kept.expressions(inputs.config.select.arms[arm])
  return {**inputs.summary_key, **({'per': per} if per else {})}


def made_from(inputs: Inputs, arm: str) -> dict[str, str]:
  """Fingerprints of what the keep sets of an arm are made from, by name."""
  rules = inputs.config.select.arms[arm]
  made_from = {'token_store': inputs.store.fingerprint}
  if rule_inputs.reads_tables(rules):
    made_from |= inputs.tables
  if rule_inputs.reads_near_duplicates(rules):
    groups = _open_table(
      near_duplicates_dir(inputs.workdir),
      'table of near-duplicates',
      'near_duplicates',
      inputs.store,
    )
    made_from['near_duplicates'] = groups['fingerprint']
  if rule_inputs.reads_duplicated_text(rules):
    path, kind = duplicated_text_dir(inputs.workdir), 'table of duplicated text'
    table = _open_table(path, kind, 'duplicated_text', inputs.store)
    made_from['duplicated_text'] = table['fingerprint']
  if rule_inputs.reads_contamination(rules):
    table = _contamination(inputs.workdir, inputs.store)
    made_from['contamination'] = table['fingerprint']
  for name in rule_inputs.tables_read(rules, inputs.joined):
    made_from[user_table_input(name)] = inputs.joined[name]
  for name in rule_inputs.classifiers_read(rules):
    path, kind = classifier_dir(inputs.workdir, name), f'classifier {name}'
    odds = _open_table(path, f'table of {kind}', 'classify', inputs.store)
    made_from[PREFIX + name] = odds['fingerprint']
  return made_from


def tables_read(
  config: Config, workdir: str, arm: str, seed: int
) -> dict[str, str]:
  """The folders of the tables that an arm reads, by the names of the inputs."""
  rules, read = config.select.arms[arm], {}
  if rule_inputs.reads_tables(rules):
    if config.select.scores_itself(arm):
      read['own_scores'] = own_scores_dir(workdir, arm, seed)
    else:
      read['scores'] = scores_dir(workdir)
    read['statistics'] = statistics_dir(workdir)
  if rule_inputs.reads_near_duplicates(rules):
    read['near_duplicates'] = near_duplicates_dir(workdir)
  if rule_inputs.reads_duplicated_text(rules):
    read['duplicated_text'] = duplicated_text_dir(workdir)
  if rule_inputs.reads_contamination(rules):
    read['contamination'] = contamination_dir(workdir)
  for name in rule_inputs.tables_read(rules, config.select.tables):
    read[user_table_input(name)] = user_table_dir(workdir, name)
  for name in rule_inputs.classifiers_read(rules):
    read[PREFIX + name] = classifier_dir(workdir, name)
  return read
