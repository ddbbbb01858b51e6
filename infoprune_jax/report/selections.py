"""What arms keep and throw away: totals, tables, overlap, scores, examples.

All of it is about the scored split; nothing here needs a trained model, and
nothing holds more of an example in memory than a few numbers.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from infoprune_jax.config.experiment import Config
from infoprune_jax.config.validation import UserError
from infoprune_jax.report import (
  correlations,
  kinds,
  overlaps,
  selection_inputs,
  selection_tables as tables,
  selection_wording,
  wording,
)
from infoprune_jax.report.selection_inputs import Selected, Summaries
from infoprune_jax.runtime.workdir import keep_set_dir
from infoprune_jax.selection import shown, summary
from infoprune_jax.selection.examples import Examples, ExampleShards
from infoprune_jax.selection.keep_set import KeepSet
from infoprune_jax.tokens.token_store import TokenStore

EXAMPLES_PER_DECILE = 3


def gather(config: Config, workdir: str, selected: Selected) -> dict[str, Any]:
  """What pages say of selections, as JSON values.

  Raises:
    UserError: a keep set or a summary is missing, damaged or another's, or a
      pattern of `report.kinds` matches no source.
  """
  store = TokenStore.open(workdir)
  examples = ExampleShards(workdir, store.documents_per_shard)
  summaries = selection_inputs.keep_summaries(workdir, selected)
  keep_sets = [
    KeepSet.open(workdir, name, store) for name in selected.keep_sets
  ]
  both = overlaps.in_common(examples, keep_sets)
  _check_summaries(workdir, selected, summaries, both)
  sources = tables.mix(summaries)
  kind_of = kinds.of_sources(
    config.report.kinds, sorted(row['source'] for row in sources['sources'])
  )
  shared = overlaps.of_arms(both, list(selected.keep_sets), selected.selections)
  found = {
    'scored': _scored(examples),
    'folds': len(examples.folds[0]),
    'arms': _arms(
      config,
      selected,
      summaries,
      shared['examples'],
      _copies(examples, selected, keep_sets),
    ),
    'kept': tables.kept(summaries),
    'heat': tables.heat(summaries, kind_of),
    'kinds': tables.by_kind(summaries, sources, kind_of),
    'overlaps': shared,
    **correlations.correlations(config, examples),
    'lengths': tables.fractions(summaries, 'lengths', 'examples'),
    'mix': sources,
    'examples': _extremes(config, summaries),
    'decisions': _decisions(config, summaries),
    'decile_examples': shown.by_decile(
      examples, min(EXAMPLES_PER_DECILE, config.report.num_examples)
    ),
    'score_histogram': summary.nll_histogram(examples),
  }
  for arm in found['arms']:
    arm['said'] = selection_wording.said(arm['name'], found)
    arm['warnings'] = selection_wording.warnings(config, arm['name'], found)
  found['selection_cautions'] = selection_wording.cautions(found)
  _add_texts(workdir, found)
  return found


def _check_summaries(
  workdir: str,
  selected: Selected,
  summaries: Summaries,
  both: Mapping[str, np.ndarray],
) -> None:
  """Raises `UserError` where a summary is not that of its keep set."""
  for n, name in enumerate(selected.keep_sets):
    of_arm = next(
      arm for (arm, _), s in selected.selections.items() if s == name
    )
    place = selected.selections_of(of_arm).index(name)
    said = summaries[of_arm][place]['kept']
    for unit in overlaps.UNITS:
      kept = int(both[unit][n, n])
      if said[unit] != kept:
        folder = keep_set_dir(workdir, name)
        raise UserError(
          f'{folder}/summary.json says that {said[unit]} {unit} are kept, the '
          f'keep set there keeps {kept}: delete {folder}/summary.json and run '
          '--job=select again.'
        )


def _scored(examples: Examples) -> dict[str, Any]:
  """What there is to choose from, and the mean of what two scores say of it."""
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
  """How many examples have a copy: in all (''), and kept, by keep set."""
  copied = summary.copied(examples)
  kept = overlaps.how_many(examples, keep_sets, copied).tolist()
  return {
    '': int(copied.sum(dtype=np.int64)),
    **dict(zip(selected.keep_sets, kept, strict=True)),
  }


def _arms(
  config: Config,
  selected: Selected,
  summaries: Summaries,
  shared: Sequence[Sequence[float]],
  copies: Mapping[str, int],
) -> list[dict[str, Any]]:
  """What each arm keeps in all, over its draws, in the config's order.

  Args:
    config: The experiment.
    selected: Its keep sets.
    summaries: By arm.
    shared: The overlaps of arms by examples.
    copies: As `_copies` gives them.
  """
  same_as = {
    arm: next((config.arms[b] for b in range(a) if shared[a][b] == 1.0), None)
    for a, arm in enumerate(config.arms)
  }
  arms = []
  for arm, items in summaries.items():
    rules = config.select.arms[arm]
    total = items[0]['total']
    kept = {
      unit: _mean(item['kept'][unit] for item in items) for unit in tables.UNITS
    }
    kept_copies = _mean(copies[name] for name in selected.selections_of(arm))
    arms.append(
      {
        'name': arm,
        'rules': wording.rules_in_words(rules),
        'keeps_everything': wording.keeps_everything(rules),
        'draws': len(items),
        'by_chance': [rule.keep for rule in rules] == ['random'],
        'same_as': same_as[arm],
        'kept': kept,
        'thrown': {unit: total[unit] - kept[unit] for unit in tables.UNITS},
        'kept_copies': kept_copies,
        'thrown_copies': copies[''] - kept_copies,
        'kept_tokens': sum(item['kept']['tokens'] for item in items)
        / max(len(items) * total['tokens'], 1),
        # Only where the reference split is trained on too: tokens of it.
        'added_tokens': items[0].get('added', {}).get('tokens'),
        'ranked_within_folds': items[0]['ranked_within_folds'],
      }
    )
  return arms


def _mean(counts: Iterator[int]) -> int:
  """To the next whole number."""
  values = list(counts)
  return round(sum(values) / len(values))


def _extremes(config: Config, summaries: Summaries) -> list[dict[str, Any]]:
  """The examples at both ends of each score.

  Arms that rank alike, such as top and bottom by one score, are listed once.
  """
  found: list[dict[str, Any]] = []
  for arm, items in summaries.items():
    # Where an arm has a keep set a seed, the first speaks for all.
    item = {
      'score': _score(config, arm),
      **{
        end: items[0][end][: config.report.num_examples]
        for end in ('most', 'least')
      },
    }
    if item['most'] or item['least']:
      _list_once(found, arm, item)
  return found


def _decisions(config: Config, summaries: Summaries) -> list[dict[str, Any]]:
  """Examples of what each arm keeps and throws away, by chance and near by.

  Arms that show the same, as those that keep the same, are listed once.
  """
  count = config.report.num_examples
  found: list[dict[str, Any]] = []
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
    _list_once(found, arm, item)
  return found


def _score(config: Config, arm: str) -> str | None:
  """The last expression that an arm ranks by."""
  read = [rule.score for rule in config.select.arms[arm] if rule.needs_score]
  return read[-1] if read else None


def _list_once(
  found: list[dict[str, Any]], arm: str, item: dict[str, Any]
) -> None:
  """Adds an item, or the arm to those of one that is the same."""
  for other in found:
    if {**other, 'arms': None} == {**item, 'arms': None}:
      other['arms'].append(arm)
      return
  found.append({'arms': [arm], **item})


def _add_texts(workdir: str, found: Mapping[str, Any]) -> None:
  """Gives each example the beginning of its text, and whether it goes on."""
  rows = list(_examples(found))
  texts = selection_inputs.texts_of(
    workdir, [(row['shard'], row['doc_index']) for row in rows]
  )
  most = selection_inputs.MAX_TEXT_CHARS
  for row in rows:
    text = texts[row['shard'], row['doc_index']]
    row['text'], row['cut'] = text[:most], len(text) > most


def _examples(found: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
  """Every example that pages show."""
  yield from itertools.chain(*found['decile_examples'])
  lists: list[Sequence[dict[str, Any]]] = []
  for item in found['examples']:
    lists += [item['most'], item['least']]
  for item in found['decisions']:
    for sides in (*item['near'], item['drawn']):
      lists += [sides['kept'], sides['thrown']]
  yield from itertools.chain(*lists)
