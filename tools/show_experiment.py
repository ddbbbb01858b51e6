r"""Makes the tables and the map of docs/experiment.md from the table of results.

Command: python tools/show_experiment.py [--scale=0.5m]

Reads docs/experiment/results/SCALE.jsonl, and writes docs/experiment/SCALE.md
and docs/experiment/SCALE.svg. Cells that did not run yet are left out.
"""

import argparse
import json
import pathlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import experiment_tables
from experiment_tables import ARMS, FACTORS, Line, arm_of

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from configs import experiment  # noqa: E402
from infoprune_jax.report import plots  # noqa: E402

FOLDER = ROOT / 'docs/experiment'


def draw_map(scale: str, lines: Mapping[str, Line]) -> plots.Figure:
  """Differences at equal steps and gains in total FLOPs, by factor."""
  factors = {
    factor: cells
    for factor, cells in FACTORS.items()
    if sum(cell in lines for cell in cells.values()) > 1
  }
  styles = plots.arm_styles(ARMS)

  def paint(figure: Any) -> None:
    grid = figure.subplots(len(factors), 2, squeeze=False)
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
  (FOLDER / f'{scale}.md').write_text(experiment_tables.page(scale, lines))
  if len(lines) > 1:
    svg = draw_map(scale, lines).svg
    # Readers with a dark theme see dark lines, too.
    paper = f'<rect width="100%" height="100%" fill="{plots.PAPER}"/>'
    svg = svg.replace('</title>', f'</title>\n {paper}', 1)
    (FOLDER / f'{scale}.svg').write_text(svg)


if __name__ == '__main__':
  main()
