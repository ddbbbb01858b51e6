"""What arms and the whole experiment cost, in FLOPs."""

from collections.abc import Mapping
from typing import Any

from infoprune_jax.config.experiment import Config
from infoprune_jax.report.results.inputs import Upstream
from infoprune_jax.selection import expressions


def of_arm(config: Config, upstream: Upstream, arm: str) -> dict[str, Any]:
  """The cost of one run of an arm, with the scores that its rules read."""
  runs = [upstream.runs[arm, seed] for seed in config.train.seeds]
  # Only rules that rank by the reference model's NLL need it, and weights.
  pays = config.train.token_weights.get(arm, 1.0) < 1.0 or any(
    expressions.reads_reference(text)
    for _, keep_set in config.select.phases(arm)
    if not config.select.scores_itself(keep_set)
    for rule in config.select.arms[keep_set]
    for text in rule.expressions
  )
  scores, own_scores = upstream.scores, _own_scores(config, upstream, arm)
  scoring = float(scores['flops']) if pays else 0.0
  flops = {
    'training': _mean(runs, 'flops'),
    'reference': float(scores['reference']['flops']) if pays else 0.0,
    'scoring': scoring + sum(one['flops'] for one in own_scores),
  }
  return {
    'step': runs[0]['step'],
    # A model from elsewhere does not tell what it cost.
    'cost_is_known': not pays or flops['reference'] > 0.0,
    # What such an arm keeps is what its last phase keeps.
    'has_phases': arm in config.select.branches,
    'shared': _shared(config, arm, runs),
    'needs_reference': pays,
    'own_scores': own_scores,
    'tokens': round(_mean(runs, 'tokens')),
    'epochs': _mean(runs, 'epochs'),
    'flops': {**flops, 'total': sum(flops.values())},
  }


def _shared(
  config: Config, arm: str, runs: list[Mapping[str, Any]]
) -> dict[str, Any] | None:
  """The steps that an arm's runs have from another arm's, and their FLOPs.

  They are part of the arm's total. None if it takes all steps itself.
  """
  branch = config.select.shared(arm)
  if not branch:
    return None
  step = runs[0]['shared_steps']
  fraction = step / runs[0]['step']
  return {
    'arm': branch.arm,
    'step': step,
    'flops': fraction * _mean(runs, 'flops'),
  }


def _own_scores(
  config: Config, upstream: Upstream, arm: str
) -> list[dict[str, Any]]:
  """The checkpoints that score for an arm in place of the reference model.

  Returns:
    For each phase with such scores: the `arm` whose run has the checkpoint, its
    `step`, and the `flops` of scoring for one seed.
  """
  phases = [one for _, one in config.select.phases(arm)]
  listed = []
  for one in filter(config.select.scores_itself, phases):
    tables = [upstream.own_scores[one, seed] for seed in config.train.seeds]
    [step, *_] = tables[0]['options']['steps'].values()
    other = config.select.branches[one].arm
    flops = _mean(tables, 'flops')
    listed.append({'arm': other, 'step': step['step'], 'flops': flops})
  return listed


def of_experiment(upstream: Upstream) -> dict[str, float]:
  """The FLOPs of the whole experiment, which count shared steps once."""
  flops = {
    'training': sum(
      run['flops'] * (1.0 - run.get('shared_steps', 0) / run['step'])
      for run in upstream.runs.values()
    ),
    'reference': float(upstream.scores['reference']['flops']),
    'scoring': float(upstream.scores['flops'])
    + sum(float(table['flops']) for table in upstream.own_scores.values()),
  }
  return {**flops, 'total': sum(flops.values())}


def _mean(manifests: list[Mapping[str, Any]], key: str) -> float:
  return sum(manifest[key] for manifest in manifests) / len(manifests)
