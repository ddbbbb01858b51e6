"""The stage that turns a score table into a keep set for each arm. No JAX."""

import posixpath
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from infoprune_jax.config.corpus import SPLITS
from infoprune_jax.config.experiment import Config
from infoprune_jax.config.selection import RuleConfig
from infoprune_jax.config.validation import UserError
from infoprune_jax.runtime import artifacts, files
from infoprune_jax.runtime.progress import logger, quantity
from infoprune_jax.runtime.workdir import keep_set_dir, own_scores_dir
from infoprune_jax.selection import (
  groups_kept,
  inputs as inputs_lib,
  keep_set,
  rules as rules_lib,
  shown,
  summary,
)
from infoprune_jax.selection.arrays import steps
from infoprune_jax.selection.examples import Examples, ExampleShards
from infoprune_jax.selection.inputs import Inputs
from infoprune_jax.tokens.token_store import TokenStore

# Entries of summaries that only some have, see `Inputs.summary_key`.
_OPTIONAL_KEYS = ('tables', 'contaminated', 'per')


def run(config: Config, workdir: str) -> None:
  """Writes the keep sets of the arms, and their summaries.

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
  store, tables = inputs.store, config.select.tables
  examples = ranked = ExampleShards(workdir, store, tables)
  if inputs.own_scores:
    ranked = ExampleShards(workdir, store, tables, inputs.own_scores)
  selections = []
  for name, (arm, seed) in arms.items():
    read = inputs_lib.made_from(inputs, arm)
    artifact = describe(config, workdir, arm, seed, read)
    if _is_done(artifact, inputs_lib.summary_key(inputs, arm)):
      logger.info('select: %s finished before, skipped', name)
      continue
    try:
      selections.append(_select(inputs, examples, ranked, artifact, arm))
    except UserError as error:
      raise UserError(f'In select.arms.{arm}: {error}') from None
  # A rule that cannot be applied is refused before anything is written.
  for selection in selections:
    _write(inputs, selection)


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
  # uint8, [ceil(documents / 8)]: a bit for each; or [documents]: a count.
  data: np.ndarray
  is_mask: bool  # bits


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
  key = inputs_lib.summary_key(inputs, arm)
  counts = {
    **key,
    **summary.summarize(examples, kept),
    **_of_groups(key, ranked, kept, rules),
    **shown.examples_of(
      ranked,
      kept.astype(bool, copy=False),
      decision,
      config.report.num_examples,
    ),
    'ranked_within_folds': any(
      rules_lib.ranked_within_folds(ranked, rule.score)
      for rule in rules
      if rule.needs_score
    ),
  }
  mask = np.zeros(sum(store.documents_per_shard), kept.dtype)
  for some in steps(len(kept)):
    mask[examples.index[some]] = kept[some]
  if any(rule.keep == 'all_plus_reference' for rule in rules):
    counts['added'], mask = _with_reference_split(store, mask)
  keep_set.check_any(artifact, mask)
  is_mask = mask.dtype == bool
  data = np.packbits(mask) if is_mask else mask
  return _Selection(artifact, key, counts, data, is_mask)


def _of_groups(
  key: Mapping[str, Any],
  examples: Examples,
  kept: np.ndarray,
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
  artifact, key, counts, kept, is_mask = selection
  if is_mask:
    num_documents = sum(inputs.store.documents_per_shard)
    kept = np.unpackbits(kept, count=num_documents).astype(bool)
  with files.lock(artifact.path):
    if _is_done(artifact, key):
      return
    artifact = artifact.begin()
    files.write_record(
      posixpath.join(artifact.path, keep_set.SUMMARY),
      counts,
      artifact.write_file,
    )
    keep_set.write(artifact, kept, kept=counts['kept'], total=counts['total'])
    _log(posixpath.basename(artifact.path), counts)


def decide(
  rules: Sequence[RuleConfig], examples: Examples, draw: int
) -> tuple[np.ndarray, shown.Decision | None]:
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
  used = after.astype(bool, copy=False)
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


def _with_reference_split(
  store: TokenStore, mask: np.ndarray
) -> tuple[dict[str, Any], np.ndarray]:
  """Adds the reference split to a mask: all documents that are not held out.

  Args:
    store: The token store, of D documents.
    mask: [D] bool.

  Returns:
    The counts of the added documents, in all and by source; and the new mask,
    [D] bool.
  """
  shards = [store.shard(number) for number in range(store.num_shards)]
  split, tokens, size = (
    np.concatenate([shard.column(name) for shard in shards])
    for name in ('split', 'num_tokens', 'num_bytes')
  )
  added = (split != SPLITS.index('heldout')) & ~mask
  sources = np.concatenate(
    [shard.table('source')['source'].to_pylist() for shard in shards]
  )
  names, code = np.unique(sources[added], return_inverse=True)
  by_source = np.bincount(code, tokens[added], len(names))
  return {
    'examples': int(added.sum()),
    'tokens': int(tokens[added].sum()),
    'bytes': int(size[added].sum()),
    'sources': {
      str(name): int(count)
      for name, count in zip(names, by_source, strict=True)
    },
  }, mask | added
