"""What the report reads: manifests, losses, scores, curves and texts."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from infoprune_jax import artifacts
from infoprune_jax.config import Config, UserError
from infoprune_jax.report.statistics import HeldoutLosses
from infoprune_jax.train import budget

MAX_TEXT_CHARS = 400
_NUM_BINS = 60
_ROUNDING = 1e-6  # of a step
_DOCUMENT_COLUMNS = (
  'shard',
  'row',
  'source',
  'num_tokens',
  'num_bytes',
  'nll_sum',
  'content_hash',
)


@dataclasses.dataclass(frozen=True)
class Upstream:
  """The manifests of every artifact that the report rests on."""

  vocabulary: Mapping[str, Any]
  store: Mapping[str, Any]
  references: tuple[Mapping[str, Any], ...]  # one a fold; () if none is ours
  statistics: Mapping[str, Any]
  scores: Mapping[str, Any]
  keep_sets: Mapping[str, Mapping[str, Any]]  # by selection
  selections: Mapping[tuple[str, int], str]  # by arm and seed
  runs: Mapping[tuple[str, int], Mapping[str, Any]]  # by arm and seed
  evaluations: Mapping[tuple[str, int], Mapping[str, Any]]  # by arm and seed

  @property
  def fingerprints(self) -> dict[str, str]:
    """By path below the workdir."""
    manifests = {
      'vocabulary': self.vocabulary,
      'token_store': self.store,
      'statistics': self.statistics,
      'scores': self.scores,
    }
    for fold, manifest in enumerate(self.references):
      path = artifacts.reference_dir('', fold, len(self.references))
      manifests[path] = manifest
    for name, manifest in self.keep_sets.items():
      manifests[f'keep_sets/{name}'] = manifest
    for folder, by_run in (
      ('train', self.runs),
      ('evaluate', self.evaluations),
    ):
      for (arm, seed), manifest in by_run.items():
        manifests[f'{folder}/{arm}/seed-{seed}'] = manifest
    return {path: item['fingerprint'] for path, item in manifests.items()}

  def selections_of(self, arm: str) -> tuple[str, ...]:
    """The keep sets of an arm: one, or one a seed where it draws at random."""
    names = [name for run, name in self.selections.items() if run[0] == arm]
    return tuple(dict.fromkeys(names))

  def check_lineage(self) -> None:
    """Raises `UserError` where one artifact was not made from another here."""
    check = artifacts.check_made_from
    table = (self.scores, 'score table')
    check(*table, 'token_store', self.store, 'token store')
    for fold, manifest in enumerate(self.references):
      name = artifacts.reference_input(fold, len(self.references))
      check(*table, name, manifest, 'reference model')
    for name, manifest in self.keep_sets.items():
      keep_set = (manifest, f'keep set {name}')
      check(*keep_set, 'token_store', self.store, 'token store')
      if 'scores' in manifest['inputs']:  # Not of arms that read no score.
        check(*keep_set, 'scores', self.scores, 'score table')
        check(*keep_set, 'statistics', self.statistics, 'table of statistics')
    for (arm, seed), name in self.selections.items():
      of_run = f'of {arm}, seed {seed}'
      run = self.runs[arm, seed]
      check(
        run,
        f'training run {of_run}',
        'keep_set',
        self.keep_sets[name],
        f'keep set {name}',
      )
      check(
        self.evaluations[arm, seed],
        f'evaluation {of_run}',
        'run',
        run,
        'training run',
      )

  def num_steps(self, config: Config) -> int:
    """The steps of the budget that all arms share."""
    run = next(iter(self.runs.values()))
    # By the model's formula, a whole number.
    flops_per_token = round(run['flops'] / run['tokens'])
    return budget.num_steps(config.train.training, flops_per_token)

  def check_budget(self, config: Config) -> None:
    """Raises `UserError` unless each run has gone as far as the config asks."""
    num_steps = self.num_steps(config)
    for (arm, seed), run in self.runs.items():
      asked = budget.describe(config.train.training)
      why, more = f'what train.training.{asked} asks for is', 0.0
      if any(rule.keep == 'everything' for rule in config.select.arms[arm]):
        why = 'for the FLOPs of the other arms in total it should go'
        scored = self.scores['reference']['flops'] + self.scores['flops']
        more = scored * run['step'] / max(run['flops'], 1.0)
      # Whole steps only; a hair's breadth for sums in another order.
      slack = _ROUNDING if more else 0.0
      short = num_steps + more - run['step']
      if not -slack <= short < 1.0 + slack:
        raise UserError(
          f'The training run of {arm}, seed {seed} has gone {run["step"]} '
          f'steps, but {why} {math.floor(num_steps + more)}: run '
          '--job=train and --job=evaluate again, so that arms are compared at '
          'an equal budget.'
        )


def open_upstream(config: Config, workdir: str) -> Upstream:
  """Opens every artifact.

  Raises:
    UserError: one is missing, unfinished, damaged, or not made from the others.
  """
  from infoprune_jax.data.keep_set import selection_name

  runs = [(arm, seed) for arm in config.arms for seed in config.train.seeds]
  selections = {
    (arm, seed): selection_name(config.select.arms[arm], arm, seed)
    for arm, seed in runs
  }
  upstream = Upstream(
    vocabulary=artifacts.open_finished(
      artifacts.vocabulary_dir(workdir), 'vocabulary', 'tokenize'
    ),
    store=artifacts.open_finished(
      artifacts.token_store_dir(workdir), 'token store', 'tokenize'
    ),
    references=tuple(
      artifacts.open_finished(
        artifacts.reference_dir(workdir, fold, config.reference.folds),
        'reference model',
        'reference',
      )
      for fold in range(config.reference.folds * config.reference.is_trained)
    ),
    statistics=artifacts.open_finished(
      artifacts.statistics_dir(workdir), 'table of statistics', 'statistics'
    ),
    scores=artifacts.open_finished(
      artifacts.scores_dir(workdir), 'score table', 'score'
    ),
    keep_sets={
      name: artifacts.open_finished(
        artifacts.keep_set_dir(workdir, name), 'keep set', 'select'
      )
      for name in selections.values()
    },
    selections=selections,
    runs={
      run: artifacts.open_finished(
        artifacts.run_dir(workdir, *run), 'training run', 'train'
      )
      for run in runs
    },
    evaluations={
      run: artifacts.open_finished(
        artifacts.evaluation_dir(workdir, *run), 'evaluation', 'evaluate'
      )
      for run in runs
    },
  )
  upstream.check_lineage()
  upstream.check_budget(config)
  artifacts.check_sizes(
    artifacts.scores_dir(workdir), upstream.scores, 'score table', 'score'
  )
  for run, manifest in upstream.evaluations.items():
    artifacts.check_sizes(
      artifacts.evaluation_dir(workdir, *run),
      manifest,
      'evaluation',
      'evaluate',
    )
  return upstream


def heldout_losses(config: Config, workdir: str) -> HeldoutLosses:
  """The held-out losses of every arm and seed, document by document.

  Raises:
    UserError: two runs were evaluated on other documents, or a loss is not
      finite.
  """
  from infoprune_jax.score.table import read_table

  arms, seeds = config.arms, config.train.seeds
  table = read_table(
    artifacts.evaluation_dir(workdir, arms[0], seeds[0]), _DOCUMENT_COLUMNS
  )
  keys = {name: table[name].to_numpy() for name in ('shard', 'row')}
  nll_sum = np.empty((len(arms), len(seeds), table.num_rows))
  for a, arm in enumerate(arms):
    for s, seed in enumerate(seeds):
      path = artifacts.evaluation_dir(workdir, arm, seed)
      run = read_table(path, ('shard', 'row', 'nll_sum'))
      for name, expected in keys.items():
        if not np.array_equal(run[name].to_numpy(), expected):
          raise UserError(
            f'{path} holds other documents than the evaluation of {arms[0]}, '
            f'seed {seeds[0]}: delete it and run --job=evaluate again.'
          )
      nll_sum[a, s] = run['nll_sum'].to_numpy()
      if not np.isfinite(nll_sum[a, s]).all():
        raise UserError(
          f'{path} has a loss that is not finite, in row '
          f'{int(np.flatnonzero(~np.isfinite(nll_sum[a, s]))[0])}: look at the '
          f'training run of {arm}, seed {seed}.'
        )
  names, codes = _encoded(table['source'])
  return HeldoutLosses.from_documents(
    arms,
    seeds,
    sources=names,
    source=codes,
    **keys,
    **{
      name: table[name].to_numpy()
      for name in ('content_hash', 'num_tokens', 'num_bytes')
    },
    nll_sum=nll_sum,
  )


def _encoded(column: Any) -> tuple[list[str], np.ndarray]:
  """A string column as names and codes, whatever its dictionary a part."""
  import pyarrow as pa

  encoded = column.cast(pa.string()).combine_chunks().dictionary_encode()
  return encoded.dictionary.to_pylist(), encoded.indices.to_numpy()


def score_histogram(workdir: str) -> dict[str, Any]:
  """Tokens of the scored split by their example's mean NLL.

  Returns:
    `edges` in nats a token, one more than `tokens`. They span 99.8 % of the
    tokens; examples beyond count into the first and the last bin.
  """
  from infoprune_jax.score.table import read_table

  table = read_table(artifacts.scores_dir(workdir), ('num_tokens', 'nll_sum'))
  tokens = table['num_tokens'].to_numpy()
  some = tokens > 0
  tokens, mean = tokens[some], table['nll_sum'].to_numpy()[some] / tokens[some]
  if not len(tokens):
    raise UserError('The scored split has no token: nothing was scored.')
  order = np.argsort(mean, kind='stable')
  share = np.cumsum(tokens[order]) / tokens.sum()
  low, high = mean[order][
    np.searchsorted(share, [0.001, 0.999]).clip(max=len(order) - 1)
  ]
  if low == high:
    low, high = low - 0.5, high + 0.5
  edges = np.linspace(low, high, _NUM_BINS + 1)
  counts, _ = np.histogram(mean.clip(low, high), edges, weights=tokens)
  return {'edges': edges.tolist(), 'tokens': counts.astype(int).tolist()}


def heldout_curve(workdir: str, arm: str, seed: int) -> dict[str, list[float]]:
  """Held-out loss while training: `tokens` and `bits_per_byte`, by step.

  Raises:
    UserError: the metrics are missing or damaged, or a loss is not finite.
  """
  from infoprune_jax.train import metrics

  path = artifacts.run_dir(workdir, arm, seed)
  manifest = artifacts.open_finished(path, 'training run', 'train')
  points = {}
  for line in metrics.read(path, manifest['metrics'], 'train'):
    if 'heldout_bits_per_byte' not in line:
      continue
    value = line['heldout_bits_per_byte']
    if not math.isfinite(value):
      raise UserError(
        f'{path}/{metrics.FILE}: the held-out loss of step {line["step"]} is '
        f'{value}.'
      )
    points[line['step']] = (line['tokens'], value)
  ordered = [points[step] for step in sorted(points)]
  return {
    'tokens': [tokens for tokens, _ in ordered],
    'bits_per_byte': [value for _, value in ordered],
  }


def keep_summaries(
  workdir: str, upstream: Upstream
) -> dict[str, list[dict[str, Any]]]:
  """The selection reports of each arm: one, or one a seed.

  Raises:
    UserError: one is missing, or was made with another score table.
  """
  from infoprune_jax.data.keep_set import read_summary

  summaries: dict[str, list[dict[str, Any]]] = {}
  first = None
  for arm in dict.fromkeys(arm for arm, _ in upstream.selections):
    summaries[arm] = []
    for name in upstream.selections_of(arm):
      folder = artifacts.keep_set_dir(workdir, name)
      summary = read_summary(folder)
      if summary is None:
        raise UserError(
          f'{folder}/summary.json is missing: delete {folder} and run '
          '--job=select again.'
        )
      # An arm that reads no score does not name the score table that its
      # deciles come from.
      bounds = [(d['decile'], d['low'], d['high']) for d in summary['deciles']]
      first = first or bounds
      if bounds != first:
        raise UserError(
          f'{folder}/summary.json has other score deciles than other arms, as '
          f'if made with another score table: delete {folder} and run '
          '--job=select again.'
        )
      summaries[arm].append(summary)
  return summaries


def texts_of(workdir: str, examples: Sequence[tuple[int, int]]) -> list[str]:
  """The beginning of the text of each (shard, row)."""
  from infoprune_jax.data.token_store import TokenStore
  from infoprune_jax.data.vocabulary import Vocabulary

  if not examples:
    return []
  store = TokenStore.open(workdir)
  vocabulary = Vocabulary.load(artifacts.vocabulary_dir(workdir))
  # A character takes four tokens at most, when it is spelled in bytes.
  most = 4 * (MAX_TEXT_CHARS + 1)
  return [
    vocabulary.decode(store.document(shard, row)[:most])
    for shard, row in examples
  ]
