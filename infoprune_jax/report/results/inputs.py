"""The inputs of the report: manifests, losses and curves."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, cast

import numpy as np

from infoprune_jax.config.experiment import Config
from infoprune_jax.config.validation import UserError
from infoprune_jax.report.results.statistics import HeldoutLosses
from infoprune_jax.report.selection import artifact as selection_artifact
from infoprune_jax.report.selection.inputs import Selected, open_selected
from infoprune_jax.runtime import manifests
from infoprune_jax.runtime.workdir import (
  evaluation_dir,
  reference_dir,
  reference_input,
  run_dir,
)

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

  references: tuple[Mapping[str, Any], ...]  # by fold; () if trained elsewhere
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
    # The model's formula gives a whole number.
    flops_per_token = round(run['flops'] / run['tokens'])
    return config.train.training.whole_steps(flops_per_token)

  def check_budget(self, config: Config) -> None:
    """Raises `UserError` unless each run has gone as far as the config asks."""
    num_steps = self.num_steps(config)
    for (arm, seed), run in self.runs.items():
      asked = config.train.training.budget
      why, more = f'train.training.{asked} asks for', 0.0
      if any(
        rule.keep == 'all_plus_reference' for rule in config.select.arms[arm]
      ):
        why = 'at the total FLOPs of the other arms it should have'
        scored = self.scores['reference']['flops'] + self.scores['flops']
        more = scored * run['step'] / max(run['flops'], 1.0)
      # A run has whole steps. The slack is for rounding in sums of FLOPs.
      slack = _ROUNDING if more else 0.0
      short = num_steps + more - run['step']
      if not -slack <= short < 1.0 + slack:
        raise UserError(
          f'The training run of {arm}, seed {seed} has {run["step"]} steps, '
          f'but {why} {math.floor(num_steps + more)}. Arms must be compared at an '
          'equal budget: run --job=train and --job=evaluate again.'
        )


def open_upstream(config: Config, workdir: str) -> Upstream:
  """Opens every artifact.

  Raises:
    UserError: one is missing, unfinished, damaged, or not made from the others.
  """
  selected = open_selected(config, workdir)
  selection = selection_artifact.open_report(config, workdir, selected)
  opened = manifests.open_finished
  folds = config.reference.folds
  references = tuple(
    opened(
      reference_dir(workdir, fold, folds),
      'reference model',
      'reference',
    )
    for fold in range(folds * config.reference.is_trained)
  )
  runs, evaluations = {}, {}
  for arm in config.arms:
    for seed in config.train.seeds:
      run = run_dir(workdir, arm, seed)
      runs[arm, seed] = opened(run, 'training run', 'train')
      path = evaluation_dir(workdir, arm, seed)
      evaluations[arm, seed] = opened(path, 'evaluation', 'evaluate')
      manifests.check_sizes(
        path, evaluations[arm, seed], 'evaluation', 'evaluate'
      )
  upstream = Upstream(
    **vars(selected),
    references=references,
    selection_report=selection,
    runs=runs,
    evaluations=evaluations,
  )
  upstream.check_lineage()
  upstream.check_budget(config)
  return upstream


def heldout_losses(config: Config, workdir: str) -> HeldoutLosses:
  """The held-out losses of every arm and seed, document by document.

  Raises:
    UserError: two runs were evaluated on other documents, or a loss is not
      finite.
  """
  from infoprune_jax.tokens.tables import read_table

  arms, seeds = config.arms, config.train.seeds
  first = evaluation_dir(workdir, arms[0], seeds[0])
  table = read_table(first, _DOCUMENT_COLUMNS)
  names, codes = _encoded(table['source'])
  documents = {
    name: table[name].to_numpy()
    for name in _DOCUMENT_COLUMNS
    if name != 'source'
  }
  nll_sum = np.stack(
    [
      [
        _nll_sums(evaluation_dir(workdir, arm, seed), first, documents)
        for seed in seeds
      ]
      for arm in arms
    ]
  )
  return HeldoutLosses.from_documents(
    arms, seeds, names, {**documents, 'source': codes, 'nll_sum': nll_sum}
  )


def _nll_sums(
  path: str, first: str, documents: Mapping[str, np.ndarray]
) -> np.ndarray:
  """The losses of one run, checked to be finite and of the same documents.

  Args:
    path: The evaluation of the run.
    first: The evaluation that `documents` come from.
    documents: Columns `shard` and `row`.
  """
  from infoprune_jax.tokens.tables import read_table

  table = read_table(path, ('shard', 'doc_index', 'nll_sum'))
  for name in ('shard', 'doc_index'):
    if not np.array_equal(table[name].to_numpy(), documents[name]):
      raise UserError(
        f'{path} holds other documents than {first}: delete it and run '
        '--job=evaluate again.'
      )
  nll_sum = table['nll_sum'].to_numpy()
  infinite = np.flatnonzero(~np.isfinite(nll_sum))
  if len(infinite):
    raise UserError(
      f'{path} has a loss that is not finite, in row {infinite[0]}: check the '
      'training run of this arm and seed.'
    )
  return nll_sum


def _encoded(column: Any) -> tuple[list[str], np.ndarray]:
  """A string column as names and codes; each part may have its dictionary."""
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
