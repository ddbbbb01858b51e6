"""The inputs of the report: manifests, losses and curves."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
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
  heldout_copies_dir,
  reference_dir,
  reference_input,
  run_dir,
  task_results_dir,
)

_ROUNDING = 1e-6  # of a step
_OF_SOURCE = 'heldout_nll/'  # before the name of a source in the metrics
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
  tasks: Mapping[tuple[str, int], Mapping[str, Any]]  # by arm and seed, or none
  heldout_copies: Mapping[str, Any] | None  # if there is such a table

  @property
  def fingerprints(self) -> dict[str, str]:
    """By path below the workdir."""
    manifests = {'selection_report': self.selection_report}
    if self.heldout_copies:
      manifests['heldout_copies'] = self.heldout_copies
    for fold, manifest in enumerate(self.references):
      path = reference_dir('', fold, len(self.references))
      manifests[path] = manifest
    for folder, by_run in (
      ('train', self.runs),
      ('evaluate', self.evaluations),
      ('tasks', self.tasks),
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
    if self.heldout_copies:
      copies = self.heldout_copies, 'table of near-copies'
      check(*copies, 'token_store', self.store, 'token store')
    for fold, manifest in enumerate(self.references):
      name = reference_input(fold, len(self.references))
      check(self.scores, 'score table', name, manifest, 'reference model')
    for (arm, seed), table in self.own_scores.items():
      of_table = f'score table of {arm}, seed {seed}'
      trained = self.runs[table['options']['branch_of'], seed]
      check(table, of_table, 'run', trained, 'training run')
    for (arm, seed), run in self.runs.items():
      of_run = f'of {arm}, seed {seed}'
      for made_from in run['inputs']:
        folder, _, other = made_from.partition('/')  # That of a phase.
        if folder != 'keep_set':
          continue
        name = self.selections[other or arm, seed]
        kept = self.keep_sets[name]
        check(
          run, f'training run {of_run}', made_from, kept, f'keep set {name}'
        )
      if 'scores' in run['inputs']:  # Some tokens count, by their scores.
        scores = ('scores', self.scores, 'score table')
        check(run, f'training run {of_run}', *scores)
      check(
        self.evaluations[arm, seed],
        f'evaluation {of_run}',
        'run',
        run,
        'training run',
      )
      if results := self.tasks.get((arm, seed)):
        check(results, f'results of tasks {of_run}', 'run', run, 'training run')

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
      budget = config.budget_arms.get(arm, 1.0)
      rules = config.select.arms.get(arm, ())
      if any(rule.keep == 'all_plus_reference' for rule in rules):
        why = 'at the total FLOPs of the other arms it should have'
        scored = self.scores['reference']['flops'] + self.scores['flops']
        more = scored * run['step'] / max(run['flops'], 1.0)
      # A run has whole steps. The slack is for rounding in sums of FLOPs.
      slack = _ROUNDING if more else 0.0
      asked_steps = round(budget * num_steps)
      short = asked_steps + more - run['step']
      if not -slack <= short < 1.0 + slack:
        raise UserError(
          f'The training run of {arm}, seed {seed} has {run["step"]} steps, '
          f'but {why} {math.floor(asked_steps + more)}. Arms must be compared at an '
          'equal budget: run --job=train and --job=evaluate again.'
        )


def open_upstream(config: Config, workdir: str) -> Upstream:
  """Opens every artifact.

  Raises:
    UserError: one is missing, unfinished, damaged, or not made from the others.
  """
  selected = open_selected(config, workdir)
  selection = selection_artifact.open_report(
    config, workdir, selected.fingerprints
  )
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
  runs, evaluations, tasks = {}, {}, {}
  for arm, seed in config.runs:
    run = run_dir(workdir, arm, seed)
    runs[arm, seed] = opened(run, 'training run', 'train')
    path = evaluation_dir(workdir, arm, seed)
    evaluations[arm, seed] = opened(path, 'evaluation', 'evaluate')
    manifests.check_sizes(
      path, evaluations[arm, seed], 'evaluation', 'evaluate'
    )
    if config.evaluate.has_tasks and arm in config.arms:
      path = task_results_dir(workdir, arm, seed)
      tasks[arm, seed] = opened(path, 'results of tasks', 'evaluate')
  upstream = Upstream(
    **vars(selected),
    references=references,
    selection_report=selection,
    runs=runs,
    evaluations=evaluations,
    tasks=tasks,
    heldout_copies=manifests.read_manifest(
      heldout_copies_dir(workdir), 'near_duplicates'
    ),
  )
  upstream.check_lineage()
  upstream.check_budget(config)
  return upstream


def heldout_losses(
  config: Config, workdir: str, more_arms: Sequence[str] = ()
) -> HeldoutLosses:
  """The held-out losses of every arm and seed, document by document.

  Args:
    config: The experiment.
    workdir: Its workdir.
    more_arms: Of `config.budget_arms`, after the arms that are compared.

  Raises:
    UserError: two runs were evaluated on other documents, or a loss is not
      finite.
  """
  from infoprune_jax.tokens.tables import read_table

  arms, seeds = (*config.arms, *more_arms), config.train.seeds
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
    documents: Columns `shard` and `doc_index`.
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
      f'{path} has a loss that is not finite, in record {infinite[0]}: check '
      'the training run of this arm and seed.'
    )
  return nll_sum


def _encoded(column: Any) -> tuple[list[str], np.ndarray]:
  """A string column as names and codes; chunks may have own dictionaries."""
  import pyarrow as pa

  encoded = column.cast(pa.string()).combine_chunks().dictionary_encode()
  return encoded.dictionary.to_pylist(), encoded.indices.to_numpy()


def heldout_curve(workdir: str, arm: str, seed: int) -> dict[str, Any]:
  """Held-out loss during training: a list with a number for each evaluation.

  Returns:
    `step`, `tokens`, `bits_per_byte`; and `nats_per_token_by_source`, a list
    for each source that every evaluation names.

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
    points[line['step']] = line
  steps = sorted(points)
  names = [
    {key for key in line if key.startswith(_OF_SOURCE)}
    for line in points.values()
  ]
  common = sorted(set.intersection(*names)) if names else []
  return {
    'step': steps,
    'tokens': [points[step]['tokens'] for step in steps],
    'bits_per_byte': [points[step]['heldout_bits_per_byte'] for step in steps],
    'nats_per_token_by_source': {
      key.removeprefix(_OF_SOURCE): [points[step][key] for step in steps]
      for key in common
    },
  }
