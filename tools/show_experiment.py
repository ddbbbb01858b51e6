r"""Makes the tables and the map of docs/experiment.md from the table of results.

Command: python tools/show_experiment.py [--scale=0.5m]

Reads docs/experiment/results/SCALE.jsonl, and writes docs/experiment/SCALE.md
and docs/experiment/SCALE.svg. Cells that did not run yet are left out.
"""

import argparse
import json
import pathlib
import statistics
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from configs import experiment  # noqa: E402
from infoprune_jax.report import plots  # noqa: E402

FOLDER = ROOT / 'docs/experiment'
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
    gain_shown(arm, line['budgets']),
    pays(arm) if name in (one['arm'] for one in line['comparisons']) else '',
  ]


HEADER = (
  *('arm', 'minus `full`', 'median source', 'minus `random`'),
  *('minus `longer`', 'sources better', 'gain in total FLOPs', 'result'),
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
  text = [
    f'# Results with models of {scale.upper()}',
    '',
    'Made by `tools/show_experiment.py` from '
    f'[`results/{scale}.jsonl`](results/{scale}.jsonl). '
    'Differences are in bits per byte, the mean over the written sources; below '
    'zero is better. The median source, the sources that are better, the gain and '
    'the result are beside `full`. [The plan](../experiment.md) says more. '
    f'{len(lines)} of {len(experiment.CELLS)} cells ran.',
    *cells_table(lines),
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
  text += ['', '## Of the tokens that an arm keeps', '', *mix_table(lines)]
  text += ['', '## By kind of text: mean, median and worst source', '']
  return '\n'.join([*text, *price_table(lines), ''])


def draw_map(scale: str, lines: Mapping[str, Line]) -> plots.Figure:
  """Differences at equal steps and gains in total FLOPs, by factor."""
  factors = {
    factor: cells
    for factor, cells in FACTORS.items()
    if sum(cell in lines for cell in cells.values()) > 1
  }
  styles = plots.arm_styles(ARMS)

  def paint(figure: Any) -> None:
    grid = figure.subplots(len(factors), 2, squeeze=False, sharey='col')
    for row, (factor, cells) in zip(grid, factors.items(), strict=True):
      levels = {x: cell for x, cell in cells.items() if cell in lines}
      for name, style in styles.items():
        arms = [arm_of(lines[cell], name) for cell in levels.values()]
        offset = 0.12 * (ARMS.index(name) - 1)
        draw_arm(row[0], [arm['decisive'] for arm in arms], offset, style)
        gains = [(arm['gain'] or {}).get('total') for arm in arms]
        draw_arm(row[1], gains, offset, style)
      for axes, level in zip(row, (0.0, 1.0), strict=True):
        axes.axhline(level, color=plots.AXIS, linewidth=0.8)
        axes.set_xticks(range(len(levels)), levels)
        axes.set_xlabel(factor, fontsize=7)
        axes.tick_params(labelsize=7)
    grid[0][0].set_title('bits per byte minus full', fontsize=8)
    grid[0][1].set_title('gain in total FLOPs', fontsize=8)
    plots.legend(figure, styles)

  title = 'Where three rules are better than training on everything'
  return plots.draw(f'map-{scale}', title, paint, 0.6 + 1.25 * len(factors))


def draw_arm(
  axes: Any,
  intervals: Sequence[Mapping[str, float] | None],
  offset: float,
  style: plots.Style,
) -> None:
  """Estimates with their intervals, of the levels that have one."""
  known = [(x + offset, i) for x, i in enumerate(intervals) if i]
  if not known:
    return
  xs = [x for x, _ in known]
  estimates = [i['estimate'] for _, i in known]
  errors = [
    [max(0.0, i['estimate'] - i['low']) for _, i in known],
    [max(0.0, i['high'] - i['estimate']) for _, i in known],
  ]
  axes.errorbar(
    *(xs, estimates, errors),
    color=style.colour,
    linestyle=style.dash,
    marker=style.marker,
    markersize=3.5,
    linewidth=1.0,
  )


def read(scale: str) -> dict[str, Line]:
  """The lines of a scale by cell, in the order of the config."""
  text = (FOLDER / f'results/{scale}.jsonl').read_text()
  lines = {line['cell']: line for line in map(json.loads, text.splitlines())}
  return {cell: lines[cell] for cell in experiment.CELLS if cell in lines}


def main() -> None:
  """Writes both files."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('--scale', default='0.5m', choices=experiment.SCALES)
  scale = parser.parse_args().scale
  if not (FOLDER / f'results/{scale}.jsonl').is_file():
    parser.error(
      f'no cell of --scale={scale} ran: run tools/run_experiment.py first'
    )
  lines = read(scale)
  (FOLDER / f'{scale}.md').write_text(page(scale, lines))
  if len(lines) > 1:
    svg = draw_map(scale, lines).svg
    # Readers with a dark theme see dark lines, too.
    paper = f'<rect width="100%" height="100%" fill="{plots.PAPER}"/>'
    svg = svg.replace('</title>', f'</title>\n {paper}', 1)
    (FOLDER / f'{scale}.svg').write_text(svg)


if __name__ == '__main__':
  main()
