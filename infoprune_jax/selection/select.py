"""The stage that turns a score table into a keep set for each arm. No JAX."""

import contextlib
import posixpath
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from infoprune_jax.config.experiment import Config
from infoprune_jax.config.selection import RuleConfig
from infoprune_jax.config.validation import UserError
from infoprune_jax.runtime import artifacts, files, workers
from infoprune_jax.runtime.progress import logger, quantity
from infoprune_jax.runtime.workdir import keep_set_dir, own_scores_dir
from infoprune_jax.selection import (
  by_shard,
  groups_kept,
  inputs as inputs_lib,
  keep_set,
  rules as rules_lib,
  shown,
  store_order,
  summary,
)
from infoprune_jax.selection.computed import Column, Computed
from infoprune_jax.selection.examples import Examples, ExampleShards
from infoprune_jax.selection.inputs import Inputs

# Entries of summaries that only some have, see `Inputs.summary_key`.
_OPTIONAL_KEYS = ('tables', 'contaminated', 'per')


def run(config: Config, workdir: str) -> None:
  """Writes the keep sets of the arms, and their summaries.

  With `corpus.beam_options`, Beam's workers select by shard, where rules allow
  it.

  Raises:
    UserError: the score table is missing or of another token store, or a rule
      cannot be evaluated.
  """
  select = config.select
  arms = {
    keep_set.selection_name(select, arm, seed): (arm, seed)
    for arm in select.arms
    for seed in config.train.seeds
    if not select.scores_itself(arm)
  }
  _run(inputs_lib.open_inputs(config, workdir), arms)


def run_own(config: Config, workdir: str, arm: str, seed: int) -> None:
  """Writes the keep set of an arm and seed, whose rules read its own scores.

  Its summary has deciles by the reference model's scores, as those of all arms.

  Raises:
    UserError: as `run`; or the arm's own scores are missing.
  """
  own_scores = own_scores_dir(workdir, arm, seed)
  inputs = inputs_lib.open_inputs(config, workdir, own_scores)
  name = keep_set.selection_name(config.select, arm, seed)
  _run(inputs, {name: (arm, seed)})


def _run(inputs: Inputs, arms: Mapping[str, tuple[str, int]]) -> None:
  """Writes keep sets, given the arm and seed of each by its name."""
  config, workdir = inputs.config, inputs.workdir
  waiting = {}
  for name, (arm, seed) in arms.items():
    made_from = inputs_lib.made_from(inputs, arm)
    artifact = describe(config, workdir, arm, seed, made_from)
    if _is_done(artifact, inputs_lib.summary_key(inputs, arm)):
      logger.info('select: %s finished before, skipped', name)
    else:
      waiting[name] = artifact, arm
  if waiting and inputs.store.earlier:
    before, now = inputs.store.first.num_shards, inputs.store.num_shards
    logger.info(
      'select: fractions are of the whole corpus, which has grown from %d to %d '
      'shards',
      *(before, now),
    )
  with contextlib.ExitStack() as stack:
    by_beam = None
    if config.corpus.beam_options and waiting and not inputs.own_scores:
      stack.enter_context(workers.shared_pool(config.corpus, workdir, 'select'))
      tables = config.select.tables
      by_beam = by_shard.of_workdir(workdir, inputs.store, tables)
    # A rule that cannot be applied is refused before anything is written.
    selections = [*_select_all(inputs, waiting, by_beam)]
  for selection in selections:
    _write(inputs, selection)


def _select_all(
  inputs: Inputs,
  waiting: Mapping[str, tuple[artifacts.Artifact, str]],
  by_beam: Examples | None,
) -> Iterator['_Selection']:
  """Applies the rules of arms.

  Args:
    inputs: What the stage reads.
    waiting: The keep set and the arm of each selection, by its name.
    by_beam: The scored split by shards; None without Beam.

  Raises:
    UserError: as `_select`; the arm is named.
  """
  tables = inputs.config.select.tables
  here = ranked = ExampleShards(inputs.workdir, inputs.store, tables)
  if inputs.own_scores:
    ranked = ExampleShards(
      inputs.workdir, inputs.store, tables, scores=inputs.own_scores
    )
  if by_beam is None:
    len(here)  # Damaged tables are refused, whatever the rules.
  for name, (artifact, arm) in waiting.items():
    try:
      examples, read = here, ranked
      rules = inputs.config.select.arms[arm]
      if by_beam is not None:
        reason = by_shard.why_not(rules, by_beam)
        if reason:
          _log_one_machine(name, reason, len(by_beam))
        else:
          examples = read = by_beam
      yield _select(inputs, examples, read, artifact, arm)
    except UserError as error:
      raise UserError(f'In select.arms.{arm}: {error}') from None


def _log_one_machine(name: str, reason: str, num_examples: int) -> None:
  logger.info(
    'select: %s is selected on this machine, not by Beam, because of %s. '
    '%d examples take about %.3g GB of scratch files in $TMPDIR.',
    name,
    reason,
    num_examples,
    num_examples * by_shard.BYTES_PER_EXAMPLE / 1e9,
  )


def describe(
  config: Config, workdir: str, arm: str, seed: int, inputs: Mapping[str, str]
) -> artifacts.Artifact:
  """The keep set of an arm and seed, made from these inputs."""
  rules = config.select.arms[arm]
  name = keep_set.selection_name(config.select, arm, seed)
  options = {
    'rules': tuple(rules),
    'draw': seed if keep_set.draws(rules) else 0,
    # Folds decide which examples there are, also for rules without a score.
    'folds': config.reference.folds,
  }
  only_rule = 'rules[0]' if len(rules) == 1 else 'rules'
  return artifacts.Artifact(
    keep_set_dir(workdir, name),
    f'keep set {name}',
    keep_set.selection_job(config.select, arm),
    options,
    inputs,
    sections={
      'rules': f'select.arms.{arm}',
      only_rule: f'select.arms.{arm}',
      'draw': 'train.seeds',
      'folds': 'reference.folds',
    },
  )


def _is_done(
  artifact: artifacts.Artifact, summary_key: Mapping[str, Any]
) -> bool:
  """Whether a keep set and its summary are finished.

  Args:
    artifact: The keep set.
    summary_key: The entries that the summary must have.

  Raises:
    UserError: the keep set there has other options or inputs, or is damaged.
  """
  finished = artifact.finished()
  written = keep_set.read_summary(artifact.path) or {}
  names = {*_OPTIONAL_KEYS, *summary_key}
  same = all(written.get(name) == summary_key.get(name) for name in names)
  return finished is not None and same


class _Selection(NamedTuple):
  """A keep set that is to be written."""

  artifact: artifacts.Artifact
  key: Mapping[str, Any]  # entries that decide if it is written again
  counts: Mapping[str, Any]  # the summary
  data: np.ndarray  # as in the file
  file: str  # one of `keep_set.FILES`


def _select(
  inputs: Inputs,
  examples: Examples,
  ranked: Examples,
  artifact: artifacts.Artifact,
  arm: str,
) -> _Selection:
  """Applies the rules of an arm.

  Args:
    inputs: What keep sets are made from.
    examples: The scored split, for the summary.
    ranked: The same, with the scores that rules read.
    artifact: The keep set.
    arm: The arm.

  Raises:
    UserError: a rule cannot be evaluated, or nothing is kept.
  """
  config, store = inputs.config, inputs.store
  rules = config.select.arms[arm]
  kept, decision = decide(rules, ranked, artifact.options['draw'])
  # Before anything else reads them, with other scores.
  kept = ranked.value(kept)
  key = inputs_lib.summary_key(inputs, arm)
  is_kept = ranked.value(Computed(np.asarray, kept, bool))
  counts = {
    **key,
    **summary.summarize(examples, kept),
    **_of_groups(key, ranked, kept, rules),
    **shown.examples_of(ranked, is_kept, decision, config.report.num_examples),
    'ranked_within_folds': any(
      rules_lib.ranked_within_folds(ranked, rule.score)
      for rule in rules
      if rule.needs_score
    ),
  }
  size = sum(store.documents_per_shard)
  if any(rule.keep == 'repeat' for rule in rules):
    data, file = store_order.counts(examples, kept, size), keep_set.REPEATS_FILE
  else:
    data, file = store_order.bits(examples, kept, size), keep_set.FILE
  if any(rule.keep == 'all_plus_reference' for rule in rules):
    counts['added'], data = store_order.with_reference_split(store, data)
  keep_set.check_any(artifact, data)
  return _Selection(artifact, key, counts, data, file)


def _of_groups(
  key: Mapping[str, Any],
  examples: Examples,
  kept: Column,
  rules: Sequence[RuleConfig],
) -> dict[str, Any]:
  """What is kept of groups and of contaminated examples, where there are any."""
  counts: dict[str, Any] = {}
  if 'per' in key:
    counts['groups'] = groups_kept.by_groups(examples, kept, rules)
  if 'contaminated' in key:
    counts['benchmarks'] = groups_kept.by_benchmarks(examples, kept)
  return counts


def _write(inputs: Inputs, selection: _Selection) -> None:
  """Writes a keep set, unless another process has written it meanwhile."""
  artifact, key, counts, data, file = selection
  with files.lock(artifact.path):
    if _is_done(artifact, key):
      return
    artifact = artifact.begin()
    files.write_record(
      posixpath.join(artifact.path, keep_set.SUMMARY),
      counts,
      artifact.write_file,
    )
    keep_set.write_data(
      artifact,
      data,
      file,
      num_documents=sum(inputs.store.documents_per_shard),
      kept=counts['kept'],
      total=counts['total'],
    )
    _log(posixpath.basename(artifact.path), counts)


def decide(
  rules: Sequence[RuleConfig], examples: Examples, draw: int
) -> tuple[Column, shown.Decision | None]:
  """Applies rules, and remembers the last one that ranks.

  Args:
    rules: The rules of an arm.
    examples: The scored split.
    draw: As for `rules.apply`.

  Returns:
    What all rules keep, as from `rules.apply`; and the last ranking rule with
    its values, its input and its output, or None if no rule ranks.
  """
  ranked = [number for number, rule in enumerate(rules) if rule.needs_score]
  if not ranked:
    return rules_lib.apply(rules, examples, draw), None
  last = ranked[-1]
  rule = rules[last]
  before = rules_lib.apply(rules[:last], examples, draw)
  after = rules_lib.apply([rule], examples, draw, before)
  kept = rules_lib.apply(rules[last + 1 :], examples, draw, after)
  ranking = rules_lib.ranking(examples, rule.score, rule.missing)
  used = examples.value(Computed(np.asarray, after, bool))
  return kept, shown.Decision(rule, ranking, before, used)


def _log(name: str, counts: Mapping[str, Any]) -> None:
  added = counts.get('added')
  logger.info(
    'select: %s keeps %d of %d examples, %.1f %% of tokens%s%s',
    name,
    summary.unique(counts)['examples'],
    counts['total']['examples'],
    100 * counts['kept']['tokens'] / max(counts['total']['tokens'], 1),
    ' with repeats' if 'repeats' in counts else '',
    f', and adds {quantity(added["tokens"], "tokens")} of the reference split'
    if added
    else '',
  )
