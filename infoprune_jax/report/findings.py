"""Everything that the page shows, as one plain dict: `report.json`.

Losses are on the report half of the held-out texts, except where a key says
`choose`. Sums come first and are divided last; arms are averaged over seeds.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from infoprune_jax.config.experiment import Config
from infoprune_jax.config.validation import UserError
from infoprune_jax.report import (
  inputs,
  provenance,
  selection_findings,
  statistics,
  wording,
)
from infoprune_jax.report.statistics import HeldoutLosses
from infoprune_jax.selection import expressions

_BOOTSTRAP_SEED = 0  # any: fixed, so that a page written again is the same


def gather(config: Config, workdir: str) -> dict[str, Any]:
  """Reads the artifacts of a workdir and computes the report.

  Raises:
    UserError: an artifact is missing, or the baseline was not trained.
  """
  if config.report.baseline not in config.arms:
    raise UserError(
      f'report.baseline is {config.report.baseline!r}, which train.arms leaves '
      f'out: differences need it. Trained are {", ".join(config.arms)}.'
    )
  upstream = inputs.open_upstream(config, workdir)
  choose, report = statistics.halves(inputs.heldout_losses(config, workdir))
  selections = selection_findings.read(workdir, upstream.selection_report)
  sources = _sources(config, report)
  arms = _arms(config, upstream, selections['arms'], choose, report)
  for a, arm in enumerate(arms):
    arm['wins'] = _wins(sources, a)
  return {
    **selections,
    **provenance.gather(config, workdir, upstream),
    'baseline': config.report.baseline,
    **_found(config, arms, report),
    'halves': {'choose': _size(choose), 'report': _size(report)},
    'model': _model(config, upstream),
    'bootstrap_samples': config.report.bootstrap_samples,
    'arms': arms,
    'sources': sources,
    'curves': [
      {'arm': arm, 'seed': seed, **inputs.heldout_curve(workdir, arm, seed)}
      for arm, seed in upstream.runs
    ],
  }


def _arms(
  config: Config,
  upstream: inputs.Upstream,
  selected: list[dict[str, Any]],
  choose: HeldoutLosses,
  report: HeldoutLosses,
) -> list[dict[str, Any]]:
  """What was selected, and what became of it: an entry an arm, in order."""
  baseline = config.arms.index(config.report.baseline)
  losses = statistics.losses_by_seed(report)  # each [A, S]
  choose_losses = statistics.losses_by_seed(choose)['bits_per_byte'].mean(1)
  intervals = statistics.difference_intervals(
    report, baseline, config.report.bootstrap_samples, _BOOTSTRAP_SEED
  )
  flops = [_flops(config, upstream, arm) for arm in config.arms]
  arms = []
  for a, arm in enumerate(config.arms):
    by_seed = {m: losses[m][a] for m in statistics.MEASURES}
    difference = by_seed['bits_per_byte'] - losses['bits_per_byte'][baseline]
    runs = [upstream.runs[arm, seed] for seed in config.train.seeds]
    arms.append(
      {
        **selected[a],
        'step': runs[0]['step'],
        'tokens': round(_mean(runs, 'tokens')),
        'epochs': _mean(runs, 'epochs'),
        **{
          measure: {
            'mean': float(values.mean()),
            **statistics.seed_spread(values),
          }
          for measure, values in by_seed.items()
        },
        'perplexity': _perplexity(by_seed['nats_per_token'].mean()),
        'choose_bits_per_byte': float(choose_losses[a]),
        'difference': {
          measure: {key: float(values[a]) for key, values in parts.items()}
          for measure, parts in intervals.items()
        },
        'difference_by_seed': statistics.seed_spread(difference),
        'flops': {
          **flops[a],
          'ratio': flops[a]['total'] / max(flops[baseline]['total'], 1.0),
        },
      }
    )
  return arms


def _mean(manifests: list[Mapping[str, Any]], key: str) -> float:
  return sum(manifest[key] for manifest in manifests) / len(manifests)


def _perplexity(nats_per_token: float) -> float:
  """Finite for any loss: an untrained model's is in the thousands."""
  return float(np.exp(min(nats_per_token, 700.0)))


def _flops(
  config: Config, upstream: inputs.Upstream, arm: str
) -> dict[str, float]:
  """What an arm costs: one run of it, and the scores that its rules read."""
  runs = [upstream.runs[arm, seed] for seed in config.train.seeds]
  # Only rules that rank by the reference model's NLL need it.
  pays = any(
    expressions.reads_reference(rule.score) for rule in config.select.arms[arm]
  )
  parts = {
    'training': _mean(runs, 'flops'),
    'reference': float(upstream.scores['reference']['flops']) if pays else 0.0,
    'scoring': float(upstream.scores['flops']) if pays else 0.0,
  }
  return {**parts, 'total': sum(parts.values())}


def _found(
  config: Config, arms: list[dict[str, Any]], report: HeldoutLosses
) -> dict[str, Any]:
  """Which arm was chosen, on the choose half, and what to say of it."""
  baseline = config.report.baseline
  ranked = sorted(arms, key=lambda arm: arm['choose_bits_per_byte'])
  # An arm that only equals the baseline has not beaten it.
  best = ranked[0]['choose_bits_per_byte']
  equal = [a['name'] for a in ranked if a['choose_bits_per_byte'] == best]
  chosen = baseline if baseline in equal else equal[0]
  others = [arm for arm in ranked if arm['name'] != baseline]
  compared = ranked[0]
  if chosen == baseline and others:
    compared = others[0]
  return {
    'chosen': chosen,
    'compared': compared['name'],
    'found': wording.found(arms, chosen, compared['name'], baseline),
    'cautions': wording.cautions(compared, baseline, len(report.sources)),
    'equal_flops': _equal_flops(config, arms, compared, report),
  }


def _equal_flops(
  config: Config,
  arms: list[dict[str, Any]],
  compared: dict[str, Any],
  report: HeldoutLosses,
) -> dict[str, Any] | None:
  """The compared arm against one of as many FLOPs in total that needs no score.

  None without such an arm, or where the compared one reads no score either.
  """
  longer = [arm['name'] for arm in arms if arm['added_tokens'] is not None]
  if not longer or not compared['flops']['reference']:
    return None
  intervals = statistics.difference_intervals(
    report,
    config.arms.index(longer[0]),
    config.report.bootstrap_samples,
    _BOOTSTRAP_SEED,
  )['bits_per_byte']
  at = config.arms.index(compared['name'])
  difference = {key: float(values[at]) for key, values in intervals.items()}
  return {
    'arm': longer[0],
    'difference': difference,
    'found': wording.at_equal_flops(compared['name'], longer[0], difference),
  }


def _size(losses: HeldoutLosses) -> dict[str, int]:
  return {
    'documents': int(losses.num_documents.sum()),
    'texts': len(losses.source),
    'tokens': int(losses.num_tokens.sum()),
    'bytes': int(losses.num_bytes.sum()),
    'sources': len(losses.sources),
  }


def _model(config: Config, upstream: inputs.Upstream) -> dict[str, Any]:
  """The size that every arm has, and where it was trained."""
  training = config.train.training
  runs = list(upstream.runs.values())
  return {
    'num_params': runs[0]['num_params'],
    'steps': upstream.num_steps(config),
    'tokens_per_step': training.tokens_per_step,
    'devices': sorted({f'{run["devices"]} {run["platform"]}' for run in runs}),
  }


def _sources(config: Config, report: HeldoutLosses) -> list[dict[str, Any]]:
  """Losses of each held-out source, of all arms, averaged over seeds."""
  nll = report.by_source(report.nll_sum.mean(axis=1))  # [A, K]
  tokens = report.by_source(report.num_tokens)
  size = report.by_source(report.num_bytes)
  documents = report.by_source(report.num_documents)
  texts = np.diff(np.append(report.starts, len(report.source)))
  intervals = statistics.source_intervals(
    report,
    report.arms.index(config.report.baseline),
    config.report.bootstrap_samples,
    _BOOTSTRAP_SEED,
  )
  return [
    {
      'source': source,
      'documents': int(documents[k]),
      'texts': int(texts[k]),
      'tokens': int(tokens[k]),
      'bytes': int(size[k]),
      'arms': [
        {
          'nats_per_token': float(nll[a, k] / tokens[k]),
          'perplexity': _perplexity(nll[a, k] / tokens[k]),
          'bits_per_byte': float(nll[a, k] / size[k] / np.log(2.0)),
          'difference': {
            key: None if np.isnan(values[a, k]) else float(values[a, k])
            for key, values in intervals.items()
          },
        }
        for a in range(len(report.arms))
      ],
    }
    for k, source in enumerate(report.sources)
  ]


def _wins(sources: list[dict[str, Any]], arm: int) -> dict[str, int]:
  """On how many sources an arm's loss is below, and above, the baseline's."""
  found = [source['arms'][arm]['difference'] for source in sources]
  told = [d for d in found if d['low'] is not None]
  return {
    'sources': len(found),
    'better': sum(d['estimate'] < 0.0 for d in found),
    'worse': sum(d['estimate'] > 0.0 for d in found),
    'surely_better': sum(d['high'] < 0.0 for d in told),
    'surely_worse': sum(d['low'] > 0.0 for d in told),
  }
