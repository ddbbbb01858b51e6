"""All numbers on selections: totals, tables, overlaps, scores, examples.

They are about the scored split and need no trained model. Only a few numbers
per example are in memory.
"""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from infoprune_jax.config.experiment import Config
from infoprune_jax.config.validation import UserError
from infoprune_jax.report.selection import (
  correlations,
  group_tables,
  inputs,
  kinds,
  overlaps,
  rules_as_text,
  sweeps,
  tables,
  warnings,
)
from infoprune_jax.report.selection.inputs import Selected, Summaries
from infoprune_jax.runtime.workdir import keep_set_dir
from infoprune_jax.selection import shown, summary
from infoprune_jax.selection.examples import Examples, ExampleShards
from infoprune_jax.selection.keep_set import KeepSet
from infoprune_jax.tokens.token_store import TokenStore

EXAMPLES_PER_DECILE = 3


def gather(config: Config, workdir: str, selected: Selected) -> dict[str, Any]:
  """Computes all numbers on selections that pages show, as JSON values.

  Raises:
    UserError: a keep set or a summary is missing, damaged or not of this
      workdir, or a pattern of `report.kinds` or `report.target` matches no
      source.
  """
  store = TokenStore.open(workdir)
  examples = ExampleShards(workdir, store, config.select.tables)
  summaries = inputs.keep_summaries(workdir, selected)
  keep_sets = [
    KeepSet.open(workdir, name, store) for name in selected.keep_sets
  ]
  both = overlaps.in_common(examples, keep_sets)
  _check_summaries(workdir, selected, summaries, both)
  shared = overlaps.of_arms(both, list(selected.keep_sets), selected.selections)
  copies = _copies(examples, selected, keep_sets)
  report = {
    'scored': _scored(examples),
    'folds': len(examples.folds[0]),
    'arms': [
      _arm(config, arm, items, [copies[n] for n in selected.selections_of(arm)])
      for arm, items in summaries.items()
    ],
    'overlaps': shared,
    'sweeps': sweeps.gather(config.select, summaries, shared['tokens']),
    **_tables(config, summaries),
    **correlations.correlations(config, examples),
    **_examples(config, summaries, examples),
    'score_histogram': summary.nll_histogram(examples),
  }
  for a, arm in enumerate(report['arms']):
    arm['thrown_copies'] = copies[''] - arm['kept_copies']
    arm['same_as'] = _same_as(list(summaries), shared['examples'][a][:a])
  for arm in report['arms']:
    arm['warnings'] = warnings.of_arm(config, arm, report)
  report['selection_cautions'] = warnings.of_all_arms(report)
  _add_texts(workdir, report)
  return report


def _tables(config: Config, summaries: Summaries) -> dict[str, Any]:
  mix = tables.mix(summaries)
  sources = sorted(source['source'] for source in mix['sources'])
  kind_of = kinds.of_sources(config.report.kinds, sources)
  kinds.targeted(config.report, sources)  # Refused before anyone trains.
  return {
    'kept': tables.kept(summaries),
    'heat': tables.heat(summaries, kind_of),
    'kinds': tables.by_kind(summaries, mix, kind_of),
    'lengths': tables.fractions(summaries, 'lengths', 'examples'),
    'mix': mix,
    **group_tables.gather(summaries),
  }


def _examples(
  config: Config, summaries: Summaries, examples: Examples
) -> dict[str, Any]:
  return {
    'examples': _extremes(config, summaries),
    'decisions': _decisions(config, summaries),
    'decile_examples': shown.by_decile(
      examples, min(EXAMPLES_PER_DECILE, config.report.num_examples)
    ),
  }


def _check_summaries(
  workdir: str,
  selected: Selected,
  summaries: Summaries,
  both: Mapping[str, np.ndarray],
) -> None:
  """Raises `UserError` if a summary is not that of its keep set."""
  names = list(selected.keep_sets)
  for arm, items in summaries.items():
    for name, item in zip(selected.selections_of(arm), items, strict=True):
      n = names.index(name)
      for unit in overlaps.UNITS:
        kept = int(both[unit][n, n])
        if item['kept'][unit] != kept:
          folder = keep_set_dir(workdir, name)
          raise UserError(
            f'{folder}/summary.json says that {item["kept"][unit]} {unit} are '
            f'kept, but the keep set there keeps {kept}: delete '
            f'{folder}/summary.json and run --job=select again.'
          )


def _scored(examples: Examples) -> dict[str, Any]:
  """The size of the scored split, and its mean NLL per token by two models."""
  sums = dict.fromkeys(('nll_sum', 'unigram_nll_sum'), 0.0)
  for _, part in examples.shards(list(sums)):
    for name in sums:
      sums[name] += float(part[name].to_numpy().sum())
  tokens = int(examples.weight('tokens').sum(dtype=np.int64))
  return {
    'examples': len(examples),
    'tokens': tokens,
    'bytes': int(examples.weight('bytes').sum(dtype=np.int64)),
    'sources': len(examples.sources[0]),
    **{f'mean_{name[:-4]}': sums[name] / max(tokens, 1) for name in sums},
  }


def _copies(
  examples: Examples, selected: Selected, keep_sets: Sequence[KeepSet]
) -> dict[str, int]:
  """The number of examples with a copy: in all (''), and by keep set."""
  copied = summary.copied(examples)
  kept = overlaps.how_many(examples, keep_sets, copied).tolist()
  return {
    '': int(copied.sum(dtype=np.int64)),
    **dict(zip(selected.keep_sets, kept, strict=True)),
  }


def _arm(
  config: Config,
  arm: str,
  items: Sequence[Mapping[str, Any]],
  copies: Sequence[int],
) -> dict[str, Any]:
  """The totals of an arm, averaged over its draws.

  Args:
    config: The experiment.
    arm: Its name.
    items: The summary of each draw.
    copies: How many documents with a copy each draw keeps.
  """
  rules, total = config.select.arms[arm], items[0]['total']
  has_phases = arm in config.select.branches
  kept, unique = (
    {unit: _mean([size[unit] for size in sizes]) for unit in tables.UNITS}
    for sizes in (
      [item['kept'] for item in items],
      [summary.unique(item) for item in items],
    )
  )
  return {
    'name': arm,
    'rules': rules_as_text.describe_arm(config.select, arm),
    'keeps_everything': rules_as_text.keeps_everything(rules)
    and not has_phases,
    'draws': len(items),
    'by_chance': [rule.keep for rule in rules] == ['random'] and not has_phases,
    'kept': kept,  # in an epoch, with repeats
    'thrown': {unit: total[unit] - unique[unit] for unit in tables.UNITS},
    **_repeats(items, unique),
    'kept_copies': _mean(copies),
    'kept_tokens': sum(item['kept']['tokens'] for item in items)
    / max(len(items) * total['tokens'], 1),
    # Tokens of the reference split, if the arm trains on it too.
    'added_tokens': items[0].get('added', {}).get('tokens'),
    'ranked_within_folds': items[0]['ranked_within_folds'],
  }


def _repeats(
  items: Sequence[Mapping[str, Any]], unique: Mapping[str, int]
) -> dict[str, Any]:
  """What an arm that repeats examples has besides.

  `unique`: as `kept`, but each example counts once. `repeats`: the size of the
  examples that an epoch uses 0, 1, 2 ... times, averaged over draws.
  """
  if 'repeats' not in items[0]:
    return {}
  draws = [{row['repeats']: row for row in item['repeats']} for item in items]
  nothing = dict.fromkeys(tables.UNITS, 0)
  return {
    'unique': unique,
    'repeats': [
      {
        'repeats': number,
        **{
          unit: _mean([draw.get(number, nothing)[unit] for draw in draws])
          for unit in tables.UNITS
        },
      }
      for number in sorted(set().union(*draws))
    ],
  }


def _same_as(arms: Sequence[str], overlap: Sequence[float]) -> str | None:
  """The first earlier arm that keeps the same examples."""
  return next((arms[b] for b, both in enumerate(overlap) if both == 1.0), None)


def _mean(counts: Sequence[int]) -> int:
  """The mean, rounded to a whole number."""
  return round(sum(counts) / len(counts))


def _extremes(config: Config, summaries: Summaries) -> list[dict[str, Any]]:
  """The examples at both ends of each score.

  Arms with the same examples, such as top and bottom by one score, are listed
  once, together.
  """
  listed: list[dict[str, Any]] = []
  for arm, items in summaries.items():
    # If an arm has a keep set per seed, the first one is shown.
    item = {
      'score': _score(config, arm),
      **{
        end: items[0][end][: config.report.num_examples]
        for end in ('most', 'least')
      },
    }
    if item['most'] or item['least']:
      _list_once(listed, arm, item)
  return listed


def _decisions(config: Config, summaries: Summaries) -> list[dict[str, Any]]:
  """Examples that each arm keeps and throws away: random, and near its bounds.

  Arms with the same examples are listed once, together.
  """
  count = config.report.num_examples
  listed: list[dict[str, Any]] = []
  for arm, items in summaries.items():
    if not items[0]['drawn']['thrown']:
      continue
    sides = ('kept', 'thrown')
    item = {
      'score': _score(config, arm),
      'near': [
        {**edge, **{side: edge[side][:count] for side in sides}}
        for edge in items[0]['near']
      ],
      'drawn': {side: items[0]['drawn'][side][:count] for side in sides},
    }
    _list_once(listed, arm, item)
  return listed


def _score(config: Config, arm: str) -> str | None:
  """The last expression that an arm ranks by."""
  read = [rule.score for rule in config.select.arms[arm] if rule.needs_score]
  return read[-1] if read else None


def _list_once(
  listed: list[dict[str, Any]], arm: str, item: dict[str, Any]
) -> None:
  """Adds an item, or adds the arm to an equal item."""
  for other in listed:
    if {**other, 'arms': None} == {**item, 'arms': None}:
      other['arms'].append(arm)
      return
  listed.append({'arms': [arm], **item})


def _add_texts(workdir: str, report: Mapping[str, Any]) -> None:
  """Adds to each example the start of its text, and whether it is cut."""
  rows = [*itertools.chain(*report['decile_examples'])]
  for item in report['examples']:
    rows += [*item['most'], *item['least']]
  for item in report['decisions']:
    for sides in (*item['near'], item['drawn']):
      rows += [*sides['kept'], *sides['thrown']]
  texts = inputs.texts_of(
    workdir, [(row['shard'], row['doc_index']) for row in rows]
  )
  for row in rows:
    text = texts[row['shard'], row['doc_index']]
    row['text'] = text[: inputs.MAX_TEXT_CHARS]
    row['cut'] = len(text) > inputs.MAX_TEXT_CHARS
