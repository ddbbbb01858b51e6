"""All numbers of the report, as one plain dict: `report.json`.

Losses of arms are those of the target, on the texts that judge. Sums are
divided last; arms are averaged over seeds.
"""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from infoprune_jax.config.experiment import Config
from infoprune_jax.config.validation import UserError
from infoprune_jax.report import provenance
from infoprune_jax.report.results import (
  comparisons,
  costs,
  gains,
  inputs,
  near_copies,
  statistics,
  tasks,
  wording,
)
from infoprune_jax.report.results.comparisons import Differences, Question
from infoprune_jax.report.results.statistics import HeldoutLosses
from infoprune_jax.report.selection import artifact as selection_artifact, kinds


def gather(config: Config, workdir: str) -> dict[str, Any]:
  """Reads the artifacts of a workdir and computes the report.

  Raises:
    UserError: an artifact is missing, the baseline or an arm of the hypothesis
      was not trained, or the target has too few held-out texts.
  """
  if config.report.baseline not in config.arms:
    raise UserError(
      f'report.baseline is {config.report.baseline!r}, which is not in '
      f'train.arms ({", ".join(config.arms)}). Differences need it: add it to '
      'train.arms, or name another baseline.'
    )
  upstream = inputs.open_upstream(config, workdir)
  selections = selection_artifact.read(
    workdir, upstream.selection_report, config.arms
  )
  every = inputs.heldout_losses(config, workdir, [*config.budget_arms])
  losses = every.of_arms(config.arms)
  question = comparisons.ask(config.report, selections, losses)
  compared = _pairs(config, question, selections['arms'])
  pairs = [(arm, config.report.baseline) for arm in config.arms]
  pairs += [(arm, reference) for arm, _, reference in compared]
  differences = Differences(question, pairs, config.report.bootstrap_samples)
  arms = _arms(config, upstream, selections['arms'], question, differences)
  _add_gains(config, every, question, arms)
  names = comparisons.sources_of(selections, losses)
  kind_of = kinds.of_sources(config.report.kinds, names)
  curves = _curves(config, workdir, upstream, losses, question)
  report = {
    **selections,
    **provenance.gather(config, workdir, upstream),
    'notes': list(config.report.notes),
    'baseline': config.report.baseline,
    'budgets': list(config.train.budgets),
    'measure': question.measure,
    'target': list(question.target.sources) if config.report.target else [],
    'headline': list(question.headline),
    'chosen': question.chosen,
    # The arm that plots and tables put first.
    'compared': (*question.headline, config.report.baseline)[0],
    'heldout': {
      'judged': _size(question.judged),
      'target': _size(question.target),
      'choose': _size(question.choose) if question.choose else None,
    },
    'model': _model(config, upstream),
    'spent': costs.of_experiment(upstream),
    'bootstrap_samples': config.report.bootstrap_samples,
    'arms': arms,
    'comparisons': [
      _comparison(pair, question, differences, arms, kind_of, curves)
      for pair in compared
    ],
    'sources': _sources(config, question, differences, kind_of),
    'tasks': tasks.gather(config, workdir, upstream.tasks),
    'curves': curves,
    'near_copies': near_copies.gather(config, workdir, upstream, question),
  }
  return {**report, **_statements(config, question, report)}


def _pairs(
  config: Config, question: Question, arms: Sequence[Mapping[str, Any]]
) -> list[tuple[str, str, str]]:
  """Arm, role and reference of each comparison; the headline comes first."""
  baseline = config.report.baseline
  names = (*question.headline, *comparisons.candidates(arms, baseline))
  return [
    (name, role, reference)
    for name in dict.fromkeys(names)
    for role, reference in comparisons.references(arms, name, baseline)
  ]


def _arms(
  config: Config,
  upstream: inputs.Upstream,
  selected: Sequence[Mapping[str, Any]],
  question: Question,
  differences: Differences,
) -> list[dict[str, Any]]:
  """Each arm: what it keeps, its cost, its losses, its differences."""
  baseline = config.report.baseline
  losses = statistics.losses_by_seed(question.target)  # each [A, S]
  spent = {arm: costs.of_arm(config, upstream, arm) for arm in config.arms}
  least = max(spent[baseline]['flops']['total'], 1.0)
  for cost in spent.values():
    cost['flops']['ratio'] = cost['flops']['total'] / least
  return [
    {
      **arm,
      **spent[arm['name']],
      **{
        measure: {
          'mean': float(values[a].mean()),
          **statistics.seed_spread(values[a]),
        }
        for measure, values in losses.items()
      },
      'perplexity': _perplexity(losses['nats_per_token'][a].mean()),
      **differences.of(arm['name'], baseline),
    }
    for a, arm in enumerate(selected)
  ]


def _add_gains(
  config: Config,
  every: HeldoutLosses,
  question: Question,
  arms: list[dict[str, Any]],
) -> None:
  """Adds `gain`, see `gains.factors`, to each arm; None if it is not known.

  Args:
    config: The experiment.
    every: The losses of all runs.
    question: With the texts that judge.
    arms: All arms.
  """
  baseline, budgets = config.report.baseline, {}
  base = next(arm['flops'] for arm in arms if arm['name'] == baseline)
  if config.train.budgets:
    budgets = gains.equivalent_budgets(
      gains.same_texts(every, question.target),
      {baseline: 1.0, **config.budget_arms},
      [arm['name'] for arm in arms if arm['name'] != baseline],
      question.measure,
      config.report.bootstrap_samples,
      comparisons.SEED,
    )
  for arm in arms:
    budget = budgets.get(arm['name'])
    arm['gain'] = budget and gains.factors(budget, arm['flops'], base)


def _comparison(
  pair: tuple[str, str, str],
  question: Question,
  differences: Differences,
  arms: Sequence[Mapping[str, Any]],
  kind_of: Mapping[str, str],
  curves: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
  """One arm against one reference, with what it costs elsewhere.

  `flops_ratio` is the arm's total over the reference's. `reached` says when the
  arm reaches the final loss of an arm that keeps everything.
  """
  name, role, reference = pair
  flops = {arm['name']: arm['flops']['total'] for arm in arms}
  return {
    'arm': name,
    'role': role,
    'reference': reference,
    'flops_ratio': flops[name] / max(flops[reference], 1.0),
    **differences.of(name, reference),
    'price': comparisons.price(question, kind_of, name, reference),
    'reached': comparisons.first_step_below(curves, name, reference)
    if role == 'full'
    else None,
  }


def _statements(
  config: Config, question: Question, report: Mapping[str, Any]
) -> dict[str, Any]:
  """The result in sentences.

  Returns:
    `found`: all about the arms of the headline, by line. `cautions`. And
    `terminal`: at most ten lines.
  """
  by_arm: dict[str, list[Mapping[str, Any]]] = {}
  for one in report['comparisons']:
    by_arm.setdefault(one['arm'], []).append(one)
  num_sources, num_seeds = len(question.target.sources), len(report['seeds'])
  key, headline = question.measure, question.headline
  num_others = sum(name not in headline for name in by_arm)
  measured = wording.measure(key, config.report.target, num_sources, num_seeds)
  chosen = wording.choice(headline, question.chosen, num_others + 1)
  first = [f'{measured} {chosen}']
  gains = {
    arm['name']: wording.gain(arm, config.report.baseline, config.train.budgets)
    for arm in report['arms']
  }
  told = [
    [*wording.statements(by_arm[name]), *gains[name]] for name in headline
  ]
  last = [wording.levels(num_sources, num_seeds)] if told else []
  about = next(a for a in report['arms'] if a['name'] == report['compared'])
  return {
    'found': [*first, *itertools.chain(*told), *last],
    'cautions': [
      *near_copies.cautions(report['near_copies']),
      *wording.cautions(
        about, config.report.baseline, num_sources, len(headline)
      ),
      *wording.token_weights(
        {a: config.train.token_weights.get(a, 1.0) for a in config.arms}
      ),
      *wording.own_scores(report['arms']),
    ],
    'terminal': wording.terminal(
      [*first, *itertools.chain(*told[:1]), *last],
      report['notes'],
      [wording.in_short(one) for one in list(by_arm.values())[1:]],
    ),
  }


def _curves(
  config: Config,
  workdir: str,
  upstream: inputs.Upstream,
  losses: HeldoutLosses,
  question: Question,
) -> list[dict[str, Any]]:
  """The held-out loss of each run during training.

  `measured` is the loss of the target in the measure that decides, or None if
  the run did not record it.
  """
  inside = np.isin(losses.sources, question.target.sources)
  target = losses.where(inside[losses.source])
  curves = []
  for arm, seed in upstream.runs:
    if arm not in config.arms:
      continue
    curve = inputs.heldout_curve(workdir, arm, seed)
    measured = comparisons.measured_curve(curve, target, question.measure)
    del curve['nats_per_token_by_source']
    curves.append({'arm': arm, 'seed': seed, **curve, 'measured': measured})
  return curves


def _perplexity(nats_per_token: float) -> float:
  """The perplexity, finite for any loss: an untrained model may have 1,000s."""
  return float(np.exp(min(nats_per_token, 700.0)))


def _size(losses: HeldoutLosses) -> dict[str, int]:
  return {
    'documents': int(losses.num_documents.sum()),
    'texts': len(losses.source),
    'tokens': int(losses.num_tokens.sum()),
    'bytes': int(losses.num_bytes.sum()),
    'sources': len(losses.sources),
  }


def _model(config: Config, upstream: inputs.Upstream) -> dict[str, Any]:
  """The size of every arm's model, and the devices it was trained on."""
  training = config.train.training
  runs = list(upstream.runs.values())
  return {
    'num_params': runs[0]['num_params'],
    'steps': upstream.num_steps(config),
    'tokens_per_step': training.tokens_per_step,
    'devices': sorted({f'{run["devices"]} {run["platform"]}' for run in runs}),
  }


def _sources(
  config: Config,
  question: Question,
  differences: Differences,
  kind_of: Mapping[str, str],
) -> list[dict[str, Any]]:
  """Losses of each held-out source, of all arms, averaged over seeds."""
  judged, baseline = question.judged, config.report.baseline
  nll = judged.by_source(judged.nll_sum.mean(axis=1))  # [A, K]
  tokens = judged.by_source(judged.num_tokens)
  size = judged.by_source(judged.num_bytes)
  documents = judged.by_source(judged.num_documents)
  texts = np.diff(np.append(judged.starts, len(judged.source)))
  return [
    {
      'source': source,
      'kind': kind_of.get(source),
      'is_target': source in question.target.sources,
      'documents': int(documents[k]),
      'texts': int(texts[k]),
      'tokens': int(tokens[k]),
      'bytes': int(size[k]),
      'arms': [
        {
          'nats_per_token': float(nll[a, k] / tokens[k]),
          'perplexity': _perplexity(nll[a, k] / tokens[k]),
          'bits_per_byte': float(nll[a, k] / size[k] / np.log(2.0)),
          'difference': differences.of_source(arm, baseline, k),
        }
        for a, arm in enumerate(judged.arms)
      ],
    }
    for k, source in enumerate(judged.sources)
  ]
