"""All numbers of the report, as one plain dict: `report.json`.

Losses are on the report half of the held-out texts, except where a key says
`choose`. Sums are divided last; arms are averaged over seeds.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from infoprune_jax.config.experiment import Config
from infoprune_jax.config.validation import UserError
from infoprune_jax.report import provenance
from infoprune_jax.report.results import inputs, statistics, wording
from infoprune_jax.report.results.statistics import HeldoutLosses
from infoprune_jax.report.selection import artifact as selection_artifact
from infoprune_jax.selection import expressions

_BOOTSTRAP_SEED = 0  # Fixed, so that a page written again is the same.


def gather(config: Config, workdir: str) -> dict[str, Any]:
  """Reads the artifacts of a workdir and computes the report.

  Raises:
    UserError: an artifact is missing, or the baseline was not trained.
  """
  if config.report.baseline not in config.arms:
    raise UserError(
      f'report.baseline is {config.report.baseline!r}, which is not in '
      f'train.arms ({", ".join(config.arms)}). Differences need it: add it to '
      'train.arms, or name another baseline.'
    )
  upstream = inputs.open_upstream(config, workdir)
  choose, report = statistics.halves(inputs.heldout_losses(config, workdir))
  selections = selection_artifact.read(workdir, upstream.selection_report)
  sources = _sources(config, report)
  arms = [
    {**selected, **_costs(config, upstream, selected['name']), **losses}
    for selected, losses in zip(
      selections['arms'], _losses(config, choose, report), strict=True
    )
  ]
  flops = {arm['name']: arm['flops']['total'] for arm in arms}
  for a, arm in enumerate(arms):
    arm['flops']['ratio'] = arm['flops']['total'] / max(
      flops[config.report.baseline], 1.0
    )
    arm['wins'] = _wins(sources, a)
  return {
    **selections,
    **provenance.gather(config, workdir, upstream),
    'baseline': config.report.baseline,
    **_choice(config, arms, report),
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


def _losses(
  config: Config, choose: HeldoutLosses, report: HeldoutLosses
) -> list[dict[str, Any]]:
  """The losses of each arm, and its differences to the baseline."""
  baseline = config.arms.index(config.report.baseline)
  losses = statistics.losses_by_seed(report)  # each [A, S]
  choose_losses = statistics.losses_by_seed(choose)['bits_per_byte'].mean(1)
  intervals = statistics.difference_intervals(
    report, baseline, config.report.bootstrap_samples, _BOOTSTRAP_SEED
  )
  bits = losses['bits_per_byte']
  return [
    {
      **{
        measure: {
          'mean': float(values[a].mean()),
          **statistics.seed_spread(values[a]),
        }
        for measure, values in losses.items()
      },
      'perplexity': _perplexity(losses['nats_per_token'][a].mean()),
      'choose_bits_per_byte': float(choose_losses[a]),
      'difference': {
        measure: {key: float(values[a]) for key, values in parts.items()}
        for measure, parts in intervals.items()
      },
      'difference_by_seed': statistics.seed_spread(bits[a] - bits[baseline]),
    }
    for a in range(len(config.arms))
  ]


def _costs(
  config: Config, upstream: inputs.Upstream, arm: str
) -> dict[str, Any]:
  """What one run of an arm costs, with the scores that its rules read."""
  runs = [upstream.runs[arm, seed] for seed in config.train.seeds]
  # Only rules that rank by the reference model's NLL need it.
  pays = any(
    expressions.reads_reference(rule.score) for rule in config.select.arms[arm]
  )
  scores = upstream.scores
  flops = {
    'training': _mean(runs, 'flops'),
    'reference': float(scores['reference']['flops']) if pays else 0.0,
    'scoring': float(scores['flops']) if pays else 0.0,
  }
  return {
    'step': runs[0]['step'],
    'tokens': round(_mean(runs, 'tokens')),
    'epochs': _mean(runs, 'epochs'),
    'flops': {**flops, 'total': sum(flops.values())},
  }


def _mean(manifests: list[Mapping[str, Any]], key: str) -> float:
  return sum(manifest[key] for manifest in manifests) / len(manifests)


def _perplexity(nats_per_token: float) -> float:
  """Finite for any loss: that of an untrained model may be in the thousands."""
  return float(np.exp(min(nats_per_token, 700.0)))


def _choice(
  config: Config, arms: list[dict[str, Any]], report: HeldoutLosses
) -> dict[str, Any]:
  """The arm chosen on the choose half, and the sentences about it."""
  baseline = config.report.baseline
  # An arm that only equals the baseline is not better: the baseline is first.
  ranked = sorted(
    arms,
    key=lambda arm: (arm['choose_bits_per_byte'], arm['name'] != baseline),
  )
  chosen = compared = ranked[0]
  if chosen['name'] == baseline and len(ranked) > 1:
    compared = ranked[1]
  names = chosen['name'], compared['name']
  return {
    'chosen': chosen['name'],
    'compared': compared['name'],
    'found': wording.comparison(arms, *names, baseline),
    'cautions': wording.cautions(compared, baseline, len(report.sources)),
    'equal_flops': _equal_flops(config, arms, compared, report),
  }


def _equal_flops(
  config: Config,
  arms: list[dict[str, Any]],
  compared: dict[str, Any],
  report: HeldoutLosses,
) -> dict[str, Any] | None:
  """The compared arm against one of equal total FLOPs that needs no score.

  None without such an arm, or if the compared arm does not read the NLL either.
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
    'found': wording.equal_flops(compared['name'], longer[0], difference),
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
  """The size of every arm's model, and the devices it was trained on."""
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
  """On how many sources an arm is better, and worse, than the baseline."""
  differences = [source['arms'][arm]['difference'] for source in sources]
  bounded = [d for d in differences if d['low'] is not None]
  return {
    'sources': len(differences),
    'better': sum(d['estimate'] < 0.0 for d in differences),
    'worse': sum(d['estimate'] > 0.0 for d in differences),
    'surely_better': sum(d['high'] < 0.0 for d in bounded),
    'surely_worse': sum(d['low'] > 0.0 for d in bounded),
  }
