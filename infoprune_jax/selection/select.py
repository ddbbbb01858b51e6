"""The stage that turns a score table into a keep set for each arm. No JAX."""

import posixpath
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from infoprune_jax.config.corpus import SPLITS
from infoprune_jax.config.experiment import Config
from infoprune_jax.config.selection import RuleConfig
from infoprune_jax.config.validation import UserError
from infoprune_jax.runtime import artifacts, files, manifests
from infoprune_jax.runtime.progress import logger
from infoprune_jax.runtime.workdir import (
  keep_set_dir,
  near_duplicates_dir,
  scores_dir,
  statistics_dir,
)
from infoprune_jax.selection import keep_set, rules as rules_lib, shown, summary
from infoprune_jax.selection.arrays import steps
from infoprune_jax.selection.examples import Examples, ExampleShards
from infoprune_jax.tokens.token_store import TokenStore

# Of what a summary holds: one of another is written again.
SUMMARY_VERSION = 3


def run(config: Config, workdir: str) -> None:
  """Writes the keep sets of the arms, and what each keeps.

  Raises:
    UserError: the score table is missing or another store's, or a rule cannot
      be evaluated.
  """
  store = TokenStore.open(workdir)
  path = scores_dir(workdir)
  scores = manifests.open_finished(path, 'score table', 'score')
  manifests.check_made_from(
    scores, 'score table', 'token_store', store.manifest, 'token store'
  )
  manifests.check_sizes(path, scores, 'score table', 'score')
  statistics = manifests.open_finished(
    statistics_dir(workdir), 'table of statistics', 'statistics'
  )
  manifests.check_made_from(
    statistics,
    'table of statistics',
    'token_store',
    store.manifest,
    'token store',
  )
  tables = {
    'scores': scores['fingerprint'],
    'statistics': statistics['fingerprint'],
  }
  examples = ExampleShards(workdir, store.documents_per_shard)
  names = {
    keep_set.selection_name(config.select.arms[arm], arm, seed): (arm, seed)
    for arm in config.arms
    for seed in config.train.seeds
  }
  selections = []
  for name, (arm, seed) in names.items():
    artifact = _artifact(config, workdir, store, tables, name, arm, seed)
    about = {
      'version': SUMMARY_VERSION,
      # The summary of an arm that reads no score shows their deciles, too.
      'scores': tables['scores'],
      'num_examples': config.report.num_examples,
    }
    if _is_done(artifact, about):
      logger.info('select: %s finished before, skipped', name)
      continue
    try:
      selections.append(_select(config, store, examples, artifact, arm, about))
    except UserError as error:
      raise UserError(f'In select.arms.{arm}: {error}') from None
  # A rule that cannot be applied is refused before anything is written.
  for selection in selections:
    _write(store, selection)


def _artifact(
  config: Config,
  workdir: str,
  store: TokenStore,
  tables: Mapping[str, str],
  name: str,
  arm: str,
  seed: int,
) -> artifacts.Artifact:
  """The keep set `name` of an arm, and what it is made from."""
  rules = config.select.arms[arm]
  options = {
    'rules': tuple(rules),
    'draw': seed if keep_set.draws(rules) else 0,
    # Which examples there are to keep: also of rules that read no score.
    'folds': config.reference.folds,
  }
  inputs = {'token_store': store.fingerprint}
  if rules_lib.reads_tables(rules):
    inputs |= tables
  if rules_lib.reads_near_duplicates(rules):
    inputs |= _near_duplicates(workdir, store)
  return artifacts.Artifact(
    keep_set_dir(workdir, name),
    f'keep set {name}',
    'select',
    options,
    inputs,
  )


def _is_done(artifact: artifacts.Artifact, about: Mapping[str, Any]) -> bool:
  """Whether a keep set and its summary are there.

  Args:
    artifact: The keep set.
    about: What the summary says of itself.

  Raises:
    UserError: what is there was made from something else, or is damaged.
  """
  finished = artifact.finished()
  written = keep_set.read_summary(artifact.path) or {}
  return finished is not None and about.items() <= written.items()


class _Selection(NamedTuple):
  """A keep set that is to be written."""

  artifact: artifacts.Artifact
  about: Mapping[str, Any]  # what the summary says of itself
  counts: Mapping[str, Any]
  bits: np.ndarray  # [ceil(documents / 8)] uint8: there is one for each arm


def _select(
  config: Config,
  store: TokenStore,
  examples: Examples,
  artifact: artifacts.Artifact,
  arm: str,
  about: Mapping[str, Any],
) -> _Selection:
  """What an arm keeps.

  Raises:
    UserError: a rule cannot be evaluated, or nothing is kept.
  """
  rules = config.select.arms[arm]
  kept, decision = decide(rules, examples, artifact.options['draw'])
  counts = {
    **summary.summarize(examples, kept),
    **shown.examples_of(examples, kept, decision, config.report.num_examples),
    'ranked_within_folds': any(
      rules_lib.ranked_within_folds(examples, rule.score)
      for rule in rules
      if rule.needs_score
    ),
  }
  mask = np.zeros(sum(store.documents_per_shard), bool)
  for some in steps(len(kept)):
    mask[examples.index[some][kept[some]]] = True
  if any(rule.keep == 'all_plus_reference' for rule in rules):
    counts['added'], mask = _with_reference_split(store, mask)
  keep_set.check_any(artifact, mask)
  return _Selection(artifact, about, counts, np.packbits(mask))


def _write(store: TokenStore, selection: _Selection) -> None:
  """Writes a keep set, unless another process has done so since."""
  artifact, about, counts, bits = selection
  mask = np.unpackbits(bits, count=sum(store.documents_per_shard)).astype(bool)
  with files.lock(artifact.path):
    if _is_done(artifact, about):
      return
    artifact = artifact.begin()
    files.write_record(
      posixpath.join(artifact.path, keep_set.SUMMARY),
      {**about, **counts},
      artifact.write_file,
    )
    keep_set.write(artifact, mask, kept=counts['kept'], total=counts['total'])
    _log(posixpath.basename(artifact.path), counts)


def _near_duplicates(workdir: str, store: TokenStore) -> dict[str, str]:
  """The table of near-duplicates, as an input.

  Raises:
    UserError: it is missing, or another store's.
  """
  kind = 'table of near-duplicates'
  path = near_duplicates_dir(workdir)
  manifest = manifests.open_finished(path, kind, 'near_duplicates')
  manifests.check_made_from(
    manifest, kind, 'token_store', store.manifest, 'token store'
  )
  return {'near_duplicates': manifest['fingerprint']}


def decide(
  rules: Sequence[RuleConfig], examples: Examples, draw: int
) -> tuple[np.ndarray, shown.Decision | None]:
  """What rules keep, [examples] bool, and what the last that ranks did.

  Args:
    rules: Of an arm.
    examples: The scored split.
    draw: As for `rules.apply`.
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
  return kept, shown.Decision(rule, ranking, before, after)


def _log(name: str, counts: Mapping[str, Any]) -> None:
  logger.info(
    'select: %s keeps %d of %d examples, %.1f%% of tokens',
    name,
    counts['kept']['examples'],
    counts['total']['examples'],
    100 * counts['kept']['tokens'] / max(counts['total']['tokens'], 1),
  )
  if 'added' in counts:
    logger.info(
      'select: %s adds %d examples, %d tokens, of the reference split',
      name,
      counts['added']['examples'],
      counts['added']['tokens'],
    )


def _with_reference_split(
  store: TokenStore, mask: np.ndarray
) -> tuple[dict[str, Any], np.ndarray]:
  """Adds to a mask what else is not held out: the reference split.

  Args:
    store: Of D documents.
    mask: [D] bool.

  Returns:
    What was added, in all and by source, and the mask with it, [D] bool.
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
