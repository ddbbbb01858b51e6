"""The tables of docs/experiment/SCALE.md, which tools/show_experiment.py makes."""

import fractions
import itertools
import pathlib
import statistics
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from configs import experiment

ARMS = ('top_nll', 'soft_compression', 'top_reducible')
# The factors, each with its cells from the least to the most.
FACTORS = {
  'generated text, % of tokens': {
    '0': 'generated_0',
    '25': 'generated_25',
    '36': 'generated_36',
    '50': 'center',
    '70': 'generated_70',
  },
  'equal texts, % of bytes': {
    '0': 'center',
    '10': 'copies_10',
    '30': 'copies_30',
  },
  'noise, % of bytes': {'0': 'center', '5': 'noise_5', '20': 'noise_20'},
  'epochs of full': {
    '1/4': 'epochs_quarter',
    '1/2': 'epochs_half',
    '1': 'center',
    **{str(n): f'epochs_{n}' for n in (2, 4, 8, 16)},
  },
  'FLOPs of the reference model': {
    '1/10': 'reference_small',
    '1/3': 'center',
    '1': 'reference_equal',
  },
}
Line = Mapping[str, Any]


def arm_of(line: Line, name: str) -> Mapping[str, Any]:
  """The numbers of an arm of a cell."""
  return next(arm for arm in line['arms'] if arm['name'] == name)


def shown(interval: Mapping[str, float]) -> str:
  """A difference and its interval."""
  e, low, high = (interval[key] for key in ('estimate', 'low', 'high'))
  return f'{e:+.3f} [{low:+.3f}, {high:+.3f}]'


def gain_shown(arm: Mapping[str, Any], budgets: Sequence[float]) -> str:
  """A gain in total FLOPs: a bound if `full` did not train that much or little."""
  if not arm['gain']:
    return 'unknown'
  total, budget = arm['gain']['total'], arm['gain']['budget']['estimate']
  bound = '≤ ' * (budget <= min(budgets)) + '≥ ' * (budget >= max(budgets))
  e, low, high = (total[key] for key in ('estimate', 'low', 'high'))
  return f'{bound}{e:.2f} [{low:.2f}, {high:.2f}]'


def pays(arm: Mapping[str, Any]) -> str:
  """Where an arm pays, by the rules of the plan."""
  if arm['verdict'] != 'better':
    return arm['verdict']
  gains = arm['gain'] and arm['gain']['total']['low'] > 1.0
  return 'better; pays in total' if gains else 'better'


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
  """A table of Markdown."""
  lines = [header, ['---'] * len(header), *rows]
  return [f'| {" | ".join(cells)} |' for cells in lines]


def arm_row(line: Line, name: str) -> list[str]:
  """An arm: its differences from three others, and its gain."""
  arm = arm_of(line, name)
  against = {
    one['role']: shown(one['decisive'])
    for one in line['comparisons']
    if one['arm'] == name
  }
  reached = [
    one['reached']['step'] or 'never'
    for one in line['comparisons']
    if one['arm'] == name and one['role'] == 'full'
  ]
  wins, position = arm['wins'], line['arms'].index(arm)
  middle = statistics.median(
    source['arms'][position]['difference']['estimate']
    for source in line['sources']
    if source['is_target']
  )
  return [
    f'`{name}`',
    shown(arm['decisive']),
    f'{middle:+.3f}',
    *(against.get(role, '') for role in ('random', 'longer')),
    f'{wins["better"]} of {wins["sources"]}',
    str(*reached),
    gain_shown(arm, line['budgets']),
    pays(arm) if name in (one['arm'] for one in line['comparisons']) else '',
  ]


HEADER = (
  *('arm', 'minus `full`', 'median source', 'minus `random`'),
  *(
    'minus `longer`',
    'sources better',
    'step',
    'gain in total FLOPs',
    'result',
  ),
)


def cells_table(lines: Mapping[str, Line]) -> list[str]:
  """The three arms with a rule, random and longer, in each cell."""
  text = []
  for factor, cells in FACTORS.items():
    rows = [
      [level, *arm_row(lines[cell], name)]
      for level, cell in cells.items()
      if cell in lines
      for name in (*ARMS, 'random', 'longer')
    ]
    if len(rows) <= len(ARMS) + 2:
      continue
    text += ['', f'## {factor[0].upper()}{factor[1:]}', '']
    text += table((factor, *HEADER), rows)
  return text


def crossing(
  levels: Sequence[float], gains: Sequence[float]
) -> tuple[float, bool] | None:
  """Where gains first cross 1, on lines between levels, and whether they rise."""
  points = list(zip(levels, gains, strict=True))
  for (x, gain), (next_x, next_gain) in itertools.pairwise(points):
    if (gain < 1.0) != (next_gain < 1.0):
      part = (1.0 - gain) / (next_gain - gain)
      return x + part * (next_x - x), next_gain > gain
  return None


def break_even(
  levels: Sequence[str], gains: Sequence[Mapping[str, float]]
) -> str:
  """Where a gain crosses 1, and where the ends of its intervals do."""
  places = [float(fractions.Fraction(level)) for level in levels]
  ends = {
    key: crossing(places, [gain[key] for gain in gains])
    for key in ('estimate', 'low', 'high')
  }
  crossed = ends['estimate']
  if crossed is None:
    above = gains[0]['estimate'] >= 1.0
    return f'{"above" if above else "below"} 1 at all levels'
  place, rises = crossed
  first = ends['high' if rises else 'low']
  last = ends['low' if rises else 'high']
  low = f'{first[0]:.3g}' if first else f'< {levels[0]}'
  high = f'{last[0]:.3g}' if last else f'> {levels[-1]}'
  return (
    f'{"above" if rises else "below"} 1 from {place:.3g} on [{low}, {high}]'
  )


def break_even_table(lines: Mapping[str, Line]) -> list[str]:
  """The break-even of each arm in each factor."""
  rows = []
  for factor, cells in FACTORS.items():
    levels = {x: lines[cell] for x, cell in cells.items() if cell in lines}
    if len(levels) < 2:
      continue
    row = [factor]
    for name in ARMS:
      arms = {x: arm_of(line, name) for x, line in levels.items()}
      known = {x: a['gain']['total'] for x, a in arms.items() if a['gain']}
      row.append(break_even([*known], [*known.values()]) if known else '')
    rows.append(row)
  return table(('factor', *(f'`{name}`' for name in ARMS)), rows)


def natural_section(cell: str, line: Line) -> list[str]:
  """A cell of natural text: its arms, by kind of text, and tasks."""
  names = [arm['name'] for arm in line['arms']]
  others = [name for name in names if name != 'full']
  text = ['', f'## `{cell}`', '']
  text += table(HEADER, [arm_row(line, name) for name in others])
  text += ['', *(f'- {sentence}' for sentence in line['found']), '']
  kinds: dict[str, list[Any]] = {}
  for source in line['sources']:
    kinds.setdefault(source['kind'], []).append(source)
  rows = []
  for name in others:
    position = names.index(name)
    row = [f'`{name}`']
    for sources in kinds.values():
      values = [s['arms'][position]['difference']['estimate'] for s in sources]
      mean, median = statistics.mean(values), statistics.median(values)
      row.append(f'{mean:+.3f}, {median:+.3f}, {max(values):+.3f}')
    rows.append(row)
  header = [f'{kind} ({len(sources)})' for kind, sources in kinds.items()]
  text += ['By kind (sources): mean, median and worst source.', '']
  text += table(('arm', *header), rows)
  if cell == 'natural_smollm2':
    text += ['', 'The gains charge the small reference model, and not SmolLM2.']
  if not line['tasks']:
    return text
  groups = [task for task in line['tasks'] if task['task'] == 'all']
  rows = [
    [
      f'`{name}`',
      *(
        f'{task["arms"][position]["mean"]:+.3f} ± '
        f'{task["arms"][position]["stderr"]:.3f}'
        for task in groups
      ),
    ]
    for position, name in enumerate(names)
  ]
  text += ['', 'Questions by category, with standard errors: 0 is chance.', '']
  return text + table(('arm', *(task['group'] for task in groups)), rows)


def summary(differences: Mapping[str, float]) -> str:
  """Mean, median and worst of differences by source."""
  worst = max(differences, key=lambda source: differences[source])
  mean = statistics.mean(differences.values())
  median = statistics.median(differences.values())
  return f'{mean:+.3f}, {median:+.3f}, {differences[worst]:+.3f} ({worst})'


def price_table(lines: Mapping[str, Line]) -> list[str]:
  """The difference by kind of text: mean, median and worst source."""
  rows = []
  for cell, line in lines.items():
    names = [arm['name'] for arm in line['arms']]
    kinds: dict[str, list[Any]] = {}
    for source in line['sources']:
      kinds.setdefault(source['kind'], []).append(source)
    for kind, sources in kinds.items():
      row = [f'`{cell}`', kind, str(len(sources))]
      for name in ARMS:
        by_source = {
          source['source']: source['arms'][names.index(name)]['difference']
          for source in sources
        }
        row.append(summary({k: d['estimate'] for k, d in by_source.items()}))
      rows.append(row)
  header = ('cell', 'kind', 'sources', *(f'`{name}`' for name in ARMS))
  return table(header, rows)


def mix_table(lines: Mapping[str, Line]) -> list[str]:
  """How much of what each arm keeps is generated, noise or copies."""
  rows = []
  for cell, line in lines.items():
    mix = line['mix']['sources']
    kind_of = {source['source']: source['kind'] for source in line['sources']}
    for kind in dict.fromkeys(kind_of.values()):
      of_kind = [one for one in mix if kind_of.get(one['source']) == kind]
      shares = [
        f'{sum(one["arms"][name] for one in of_kind):.1%}'
        for name in ('full', *ARMS)
      ]
      if kind != 'written':
        rows.append([f'`{cell}`', kind, *shares])
  return table(('cell', 'kind', *(f'`{n}`' for n in ('full', *ARMS))), rows)


def page(scale: str, lines: Mapping[str, Line]) -> str:
  """All tables."""
  steps = next(iter(lines.values()))['model']['steps']
  text = [
    f'# Results with models of {scale.upper()}',
    '',
    'Made by `tools/show_experiment.py` from '
    f'[`results/{scale}.jsonl`](results/{scale}.jsonl). '
    'Differences are in bits per byte, the mean over the written sources; below '
    'zero is better. The median source, the sources that are better, the gain and '
    f'the result are beside `full`; the step, of {steps}, is where the loss of `full` '
    'is reached. [The plan](../experiment.md) says more. '
    f'{len(lines)} of {len(experiment.CELLS)} cells ran.',
    *cells_table(lines),
    *('', '## Break-even', ''),
    'Where the gain in total FLOPs crosses 1, on lines between levels; in '
    'brackets, where the ends of its intervals do.',
    '',
    *break_even_table(lines),
  ]
  if 'center' in lines:
    center = lines['center']
    rows = [
      arm_row(center, arm['name'])
      for arm in center['arms']
      if arm['name'] != 'full'
    ]
    text += ['', '## All arms in `center`', '', *table(HEADER, rows)]
    text += ['', *(f'- {sentence}' for sentence in center['found'])]
  for cell in (one for one in lines if one.startswith('natural')):
    text += natural_section(cell, lines[cell])
  lines = {k: line for k, line in lines.items() if not k.startswith('natural')}
  text += ['', '## Of the tokens that an arm keeps', '', *mix_table(lines)]
  text += ['', '## By kind of text: mean, median and worst source', '']
  return '\n'.join([*text, *price_table(lines), ''])
