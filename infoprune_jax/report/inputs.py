"""What the report reads: manifests, losses and curves."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, cast

import numpy as np

from infoprune_jax.config.experiment import Config
from infoprune_jax.config.validation import UserError
from infoprune_jax.report import selection_findings
from infoprune_jax.report.selection_inputs import Selected, open_selected
from infoprune_jax.report.statistics import HeldoutLosses
from infoprune_jax.runtime import manifests
from infoprune_jax.runtime.workdir import (
  evaluation_dir,
  reference_dir,
  reference_input,
  run_dir,
)
from infoprune_jax.train import budget

_ROUNDING = 1e-6  # of a step
_DOCUMENT_COLUMNS = (
  'shard',
  'doc_index',
  'source',
  'num_tokens',
  'num_bytes',
  'nll_sum',
  'content_hash',
)


@dataclasses.dataclass(frozen=True)
class Upstream(Selected):
  """The manifests of every artifact that the report rests on."""

  references: tuple[Mapping[str, Any], ...]  # one a fold; () if none is ours
  selection_report: Mapping[str, Any]
  runs: Mapping[tuple[str, int], Mapping[str, Any]]  # by arm and seed
  evaluations: Mapping[tuple[str, int], Mapping[str, Any]]  # by arm and seed

  @property
  def fingerprints(self) -> dict[str, str]:
    """By path below the workdir."""
    manifests = {'selection_report': self.selection_report}
    for fold, manifest in enumerate(self.references):
      path = reference_dir('', fold, len(self.references))
      manifests[path] = manifest
    for folder, by_run in (
      ('train', self.runs),
      ('evaluate', self.evaluations),
    ):
      for (arm, seed), manifest in by_run.items():
        manifests[f'{folder}/{arm}/seed-{seed}'] = manifest
    return {
      **super().fingerprints,
      **{path: item['fingerprint'] for path, item in manifests.items()},
    }

  def check_lineage(self) -> None:
    """Raises `UserError` where one artifact was not made from another here."""
    super().check_lineage()
    check = manifests.check_made_from
    for fold, manifest in enumerate(self.references):
      name = reference_input(fold, len(self.references))
      check(self.scores, 'score table', name, manifest, 'reference model')
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
      if any(
        rule.keep == 'all_plus_reference' for rule in config.select.arms[arm]
      ):
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
  runs = [(arm, seed) for arm in config.arms for seed in config.train.seeds]
  selected = open_selected(config, workdir)
  upstream = Upstream(
    **vars(selected),
    selection_report=selection_findings.open_report(config, workdir, selected),
    references=tuple(
      manifests.open_finished(
        reference_dir(workdir, fold, config.reference.folds),
        'reference model',
        'reference',
      )
      for fold in range(config.reference.folds * config.reference.is_trained)
    ),
    runs={
      run: manifests.open_finished(
        run_dir(workdir, *run), 'training run', 'train'
      )
      for run in runs
    },
    evaluations={
      run: manifests.open_finished(
        evaluation_dir(workdir, *run), 'evaluation', 'evaluate'
      )
      for run in runs
    },
  )
  upstream.check_lineage()
  upstream.check_budget(config)
  for run, manifest in upstream.evaluations.items():
    manifests.check_sizes(
      evaluation_dir(workdir, *run),
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
  from infoprune_jax.tokens.tables import read_table

  arms, seeds = config.arms, config.train.seeds
  table = read_table(
    evaluation_dir(workdir, arms[0], seeds[0]), _DOCUMENT_COLUMNS
  )
  keys = {name: table[name].to_numpy() for name in ('shard', 'doc_index')}
  nll_sum = np.empty((len(arms), len(seeds), table.num_rows))
  for a, arm in enumerate(arms):
    for s, seed in enumerate(seeds):
      path = evaluation_dir(workdir, arm, seed)
      run = read_table(path, ('shard', 'doc_index', 'nll_sum'))
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


def heldout_curve(workdir: str, arm: str, seed: int) -> dict[str, list[float]]:
  """Held-out loss while training: `tokens` and `bits_per_byte`, by step.

  Raises:
    UserError: the metrics are missing or damaged, or a loss is not finite.
  """
  from infoprune_jax.train import metrics

  path = run_dir(workdir, arm, seed)
  manifest = manifests.open_finished(path, 'training run', 'train')
  points = {}
  for line in metrics.read(path, cast(Any, manifest)['metrics'], 'train'):
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
