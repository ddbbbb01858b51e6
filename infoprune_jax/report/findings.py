"""Everything that the page shows, as one plain dict: `report.json`.

Losses are on the report half of the held-out texts, except where a key says
`choose`. Sums come first and are divided last; arms are averaged over seeds.
"""

import importlib.metadata
import platform
import posixpath
from collections.abc import Mapping
from typing import Any

import numpy as np

import infoprune_jax
from infoprune_jax.config import Config, UserError, to_plain
from infoprune_jax.report import inputs, statistics, wording
from infoprune_jax.report.statistics import HeldoutLosses
from infoprune_jax.selection import rules

_BOOTSTRAP_SEED = 0  # any: fixed, so that a page written again is the same
_PACKAGES = (
  'jax',
  'jaxlib',
  'flax',
  'optax',
  'orbax-checkpoint',
  'grain',
  'numpy',
  'pyarrow',
  'duckdb',
  'sentencepiece',
  'matplotlib',
  'jinja2',
)


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
  summaries = inputs.keep_summaries(workdir, upstream)
  arms = _arms(config, upstream, summaries, choose, report)
  return {
    'name': posixpath.basename(workdir.rstrip('/')),
    'baseline': config.report.baseline,
    'seeds': list(config.train.seeds),
    **_found(config, arms, report),
    'halves': {'choose': _size(choose), 'report': _size(report)},
    'corpus': _corpus(upstream.store),
    'reference': {
      key: upstream.reference[key]
      for key in ('num_params', 'step', 'tokens', 'flops')
    },
    'scoring': {
      key: upstream.scores[key]
      for key in ('num_examples', 'num_tokens', 'flops')
    },
    'model': _model(config, upstream),
    'bootstrap_samples': config.report.bootstrap_samples,
    'arms': arms,
    'sources': _sources(report, config.report.baseline),
    'curves': [
      {'arm': arm, 'seed': seed, **inputs.heldout_curve(workdir, arm, seed)}
      for arm, seed in upstream.runs
    ],
    'score_histogram': inputs.score_histogram(workdir),
    'kept': _kept(summaries),
    'examples': _examples(config, workdir, summaries),
    'config': to_plain(config),
    'versions': _versions(),
    'fingerprints': upstream.fingerprints,
  }


def _arms(
  config: Config,
  upstream: inputs.Upstream,
  summaries: Mapping[str, list[dict[str, Any]]],
  choose: HeldoutLosses,
  report: HeldoutLosses,
) -> list[dict[str, Any]]:
  """One entry an arm, in the config's order."""
  baseline = config.arms.index(config.report.baseline)
  losses = statistics.losses_by_seed(report)  # each [A, S]
  choose_losses = statistics.losses_by_seed(choose)['bits_per_byte'].mean(1)
  intervals = statistics.difference_intervals(
    report, baseline, config.report.bootstrap_samples, _BOOTSTRAP_SEED
  )
  flops = [_flops(config, upstream, arm) for arm in config.arms]
  arms = []
  for a, arm in enumerate(config.arms):
    applied = config.select.arms[arm]
    by_seed = {m: losses[m][a] for m in statistics.MEASURES}
    difference = by_seed['bits_per_byte'] - losses['bits_per_byte'][baseline]
    runs = [upstream.runs[arm, seed] for seed in config.train.seeds]
    arms.append(
      {
        'name': arm,
        'rules': wording.rules_in_words(applied),
        'keeps_everything': wording.keeps_everything(applied),
        'kept_tokens': _share(summaries[arm], 'kept', 'total'),
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


def _share(summaries: list[Mapping[str, Any]], kept: str, total: str) -> float:
  """Kept tokens over all, across the keep sets of an arm."""
  return sum(s[kept]['tokens'] for s in summaries) / max(
    sum(s[total]['tokens'] for s in summaries), 1
  )


def _flops(
  config: Config, upstream: inputs.Upstream, arm: str
) -> dict[str, float]:
  """What an arm costs: one run of it, and the scores that its rules read."""
  runs = [upstream.runs[arm, seed] for seed in config.train.seeds]
  # Only rules that rank by the reference model's NLL need it.
  pays = any(
    rules.reads_reference(rule.score) for rule in config.select.arms[arm]
  )
  parts = {
    'training': _mean(runs, 'flops'),
    'reference': float(upstream.reference['flops']) if pays else 0.0,
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
  }


def _size(losses: HeldoutLosses) -> dict[str, int]:
  return {
    'documents': int(losses.num_documents.sum()),
    'texts': len(losses.source),
    'tokens': int(losses.num_tokens.sum()),
    'bytes': int(losses.num_bytes.sum()),
    'sources': len(losses.sources),
  }


def _corpus(store: Mapping[str, Any]) -> dict[str, Any]:
  return {
    key: store[key]
    for key in (
      'num_documents',
      'num_tokens',
      'num_bytes',
      'splits',
      'vocab_size',
      'bad_rows',
    )
  }


def _model(config: Config, upstream: inputs.Upstream) -> dict[str, Any]:
  """The budget and size that every arm shares."""
  training = config.train.training
  runs = list(upstream.runs.values())
  return {
    'num_params': runs[0]['num_params'],
    'steps': training.num_steps,
    'tokens_per_step': training.batch_size * training.row_length,
    'tokens': sorted({run['tokens'] for run in runs}),
    'flops': _mean(runs, 'flops'),
  }


def _sources(report: HeldoutLosses, baseline: str) -> list[dict[str, Any]]:
  """Losses of each held-out source, of all arms, averaged over seeds."""
  nll = report.by_source(report.nll_sum.mean(axis=1))  # [A, K]
  tokens = report.by_source(report.num_tokens)
  size = report.by_source(report.num_bytes)
  documents = report.by_source(report.num_documents)
  bits = nll / size / np.log(2.0)
  difference = bits - bits[report.arms.index(baseline)]
  return [
    {
      'source': source,
      'documents': int(documents[k]),
      'tokens': int(tokens[k]),
      'bytes': int(size[k]),
      'arms': [
        {
          'nats_per_token': float(nll[a, k] / tokens[k]),
          'perplexity': _perplexity(nll[a, k] / tokens[k]),
          'bits_per_byte': float(bits[a, k]),
          'difference': float(difference[a, k]),
        }
        for a in range(len(report.arms))
      ],
    }
    for k, source in enumerate(report.sources)
  ]


def _kept(
  summaries: Mapping[str, list[dict[str, Any]]],
) -> dict[str, Any]:
  """Shares of tokens kept, by score decile and by source, for each arm."""
  any_summary = next(iter(summaries.values()))[0]
  tokens = {item['source']: item['tokens'] for item in any_summary['sources']}
  shares: dict[str, dict[str, float]] = {}
  for arm, items in summaries.items():
    kept = dict.fromkeys(tokens, 0)
    for summary in items:
      for item in summary['sources']:
        kept[item['source']] += item['kept_tokens']
    shares[arm] = {
      source: kept[source] / max(tokens[source] * len(items), 1)
      for source in tokens
    }
  return {
    'deciles': [
      {
        'low': decile['low'],
        'high': decile['high'],
        'arms': {
          arm: _decile_share(items, d) for arm, items in summaries.items()
        },
      }
      for d, decile in enumerate(any_summary['deciles'])
    ],
    'sources': [
      {
        'source': source,
        'tokens': tokens[source],
        'arms': {arm: shares[arm][source] for arm in summaries},
      }
      for source in sorted(tokens)
    ],
  }


def _decile_share(summaries: list[dict[str, Any]], decile: int) -> float:
  items = [summary['deciles'][decile] for summary in summaries]
  return sum(item['kept_tokens'] for item in items) / max(
    sum(item['tokens'] for item in items), 1
  )


def _examples(
  config: Config,
  workdir: str,
  summaries: Mapping[str, list[dict[str, Any]]],
) -> list[dict[str, Any]]:
  """The beginnings of the examples at both ends of each score.

  Arms that rank alike, such as top and bottom by one score, are listed once.
  """
  shown: list[dict[str, Any]] = []
  for arm, items in summaries.items():
    # Where an arm has a keep set a seed, the first speaks for all.
    ends = {
      end: items[0].get(end, [])[: config.report.num_examples]
      for end in ('most', 'least')
    }
    if not (ends['most'] or ends['least']):
      continue
    read = [rule.score for rule in config.select.arms[arm] if rule.needs_score]
    alike = [s for s in shown if s['score'] == read[-1] and s['ends'] == ends]
    if alike:
      alike[0]['arms'].append(arm)
    else:
      shown.append({'arms': [arm], 'score': read[-1], 'ends': ends})
  return [
    {
      'arms': item['arms'],
      'score': item['score'],
      **{
        end: _with_texts(workdir, examples)
        for end, examples in item['ends'].items()
      },
    }
    for item in shown
  ]


def _with_texts(
  workdir: str, examples: list[dict[str, Any]]
) -> list[dict[str, Any]]:
  """Adds the beginning of each example's text, and whether it goes on."""
  texts = inputs.texts_of(
    workdir, [(example['shard'], example['row']) for example in examples]
  )
  most = inputs.MAX_TEXT_CHARS
  return [
    {**example, 'text': text[:most], 'cut': len(text) > most}
    for example, text in zip(examples, texts, strict=True)
  ]


def _versions() -> dict[str, str]:
  """Of the machine that wrote the report."""
  versions = {
    'infoprune_jax': infoprune_jax.__version__,
    'python': platform.python_version(),
  }
  for package in _PACKAGES:
    try:
      versions[package] = importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
      versions[package] = 'not installed'
  return versions
