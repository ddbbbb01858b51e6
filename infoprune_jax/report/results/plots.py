"""The figures of trained arms."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from infoprune_jax.report import plots

PANELS = 4  # arms side by side
MAX_LINES = 80  # sources of a forest: the lowest and the highest differences
_LINE = 0.165  # inches


def differences(
  arms: Sequence[dict[str, Any]], baseline: str, colours: Mapping[str, str]
) -> str:
  """Arm minus baseline in bits per byte: interval, mean, and each seed.

  Args:
    arms: As in `findings.gather`.
    baseline: The arm at zero.
    colours: By arm.
  """
  shown = [arm for arm in arms if arm['name'] != baseline]

  def draw(figure: Any) -> None:
    axes = figure.subplots()
    plots.zero_line(axes)
    for y, arm in enumerate(shown):
      _draw_difference(axes, y, arm, colours[arm['name']])
    axes.set_yticks(range(len(shown)), [arm['name'] for arm in shown])
    axes.set_ylim(len(shown) - 0.5, -0.5)
    axes.grid(axis='y', visible=False)
    axes.tick_params(axis='y', length=0)
    axes.set_xlabel(
      f'bits per byte, minus those of {baseline}   '
      '(left of zero: better than the baseline)'
    )

  return plots.svg('differences', draw, (8.6, 0.8 + 0.42 * len(shown)))


def _draw_difference(
  axes: Any, y: int, arm: dict[str, Any], colour: str
) -> None:
  """One arm: its interval and mean, and below them each seed."""
  over_all = arm['difference']['bits_per_byte']
  axes.plot(
    [over_all['low'], over_all['high']],
    [y, y],
    color=colour,
    linewidth=2.0,
    solid_capstyle='butt',
  )
  axes.plot(over_all['estimate'], y, 'o', color=colour, markersize=6)
  for s, value in enumerate(arm['difference_by_seed']['values']):
    axes.plot(
      value,
      y + 0.25,
      plots.MARKERS[s % len(plots.MARKERS)][1],
      markerfacecolor='white',
      markeredgecolor=colour,
      markersize=4.5,
    )


def curves(
  runs: Sequence[dict[str, Any]],
  seeds: Sequence[int],
  colours: Mapping[str, str],
) -> str:
  """Held-out bits per byte against training tokens: all of it, and the end.

  Args:
    runs: `{'arm', 'seed', 'tokens', 'bits_per_byte'}` of each run.
    seeds: In the config's order, which gives each its dash.
    colours: By arm.
  """
  # One arm may train for longer: the shortest run sets where the end starts.
  last = min((run['tokens'][-1] for run in runs if run['tokens']), default=0)

  def draw(figure: Any) -> None:
    whole, end = figure.subplots(1, 2)
    for run in runs:
      tokens = np.asarray(run['tokens'], float)
      bits = np.asarray(run['bits_per_byte'], float)
      dash = plots.DASHES[seeds.index(run['seed']) % len(plots.DASHES)][1]
      for axes, start in ((whole, 0), (end, last / 2)):
        axes.plot(
          tokens[tokens >= start],
          bits[tokens >= start],
          color=colours[run['arm']],
          linestyle=dash,
          linewidth=1.2,
          marker='.',
          markersize=3,
        )
    for axes, title in ((whole, 'whole run'), (end, 'second half, enlarged')):
      axes.set_title(title, loc='left', fontsize=9)
      axes.set_xlabel('training tokens')
      axes.xaxis.set_major_formatter(plots.tokens_formatter())
    whole.set_ylabel('held-out bits per byte')

  return plots.svg('curves', draw, (8.6, 3.3))


def forests(
  arms: Sequence[dict[str, Any]],
  sources: Sequence[dict[str, Any]],
  baseline: str,
  compared: str,
  colours: Mapping[str, str],
) -> list[str]:
  """Arm minus baseline in bits per byte, for each source and for all together.

  All panels list the sources in the order of the compared arm's differences.

  Args:
    arms: As in `findings.gather`.
    sources: As in `findings.gather`.
    baseline: The arm at zero, which has no panel.
    compared: The arm whose panel comes first.
    colours: By arm.

  Returns:
    Figures of up to `PANELS` arms each.
  """
  shown = [a for a, arm in enumerate(arms) if arm['name'] != baseline]
  shown.sort(key=lambda a: arms[a]['name'] != compared)
  if not shown:
    return []
  order = sorted(
    sources, key=lambda s: s['arms'][shown[0]]['difference']['estimate']
  )
  if len(order) > MAX_LINES:
    order = order[: MAX_LINES // 2] + order[-MAX_LINES // 2 :]
  return [
    _forest(
      f'forest{first}',
      [(arms[a], a) for a in shown[first : first + PANELS]],
      order,
      baseline,
      colours,
    )
    for first in range(0, len(shown), PANELS)
  ]


def _forest(
  name: str,
  panels: Sequence[tuple[dict[str, Any], int]],
  sources: Sequence[dict[str, Any]],
  baseline: str,
  colours: Mapping[str, str],
) -> str:
  lines = len(sources)

  def draw(figure: Any) -> None:
    grid = figure.subplots(
      1, len(panels), sharex=True, sharey=True, squeeze=False
    )
    for axes, (arm, a) in zip(grid[0], panels, strict=True):
      differences = [source['arms'][a]['difference'] for source in sources]
      _draw_panel(axes, arm, differences, colours[arm['name']])
    axes.set_yticks(
      [*range(lines), lines + 0.5],
      [
        *(plots.short_name(source['source']) for source in sources),
        'all sources',
      ],
    )
    axes.set_ylim(lines + 1.3, -0.8)
    axes.locator_params(axis='x', nbins=5)
    figure.supxlabel(f'bits per byte, minus those of {baseline}', fontsize=9)

  width = 1.7 + min(2.4 * len(panels) + 1.2, 9.6)
  return plots.svg(name, draw, (width, 0.9 + _LINE * (lines + 2)))


def _draw_panel(
  axes: Any,
  arm: dict[str, Any],
  differences: Sequence[dict[str, float | None]],
  colour: str,
) -> None:
  """One arm: a line for each source, from the top, and all texts at the end."""
  known = [y for y, d in enumerate(differences) if d['low'] is not None]
  low, high = ([differences[y][k] for y in known] for k in ('low', 'high'))
  plots.zero_line(axes)
  axes.hlines(known, low, high, color=colour, linewidth=1.1)
  estimates = [difference['estimate'] for difference in differences]
  axes.plot(estimates, range(len(estimates)), '.', color=colour, markersize=5)
  over_all, end = arm['difference']['bits_per_byte'], len(estimates) + 0.5
  axes.axhspan(end - 0.6, end + 0.6, color='#f2f2f2', zorder=0)
  axes.hlines(
    end, over_all['low'], over_all['high'], color=colour, linewidth=2.6
  )
  axes.plot(over_all['estimate'], end, 'D', color=colour, markersize=5)
  axes.set_title(arm['name'], loc='left', fontsize=9)
  axes.tick_params(axis='both', labelsize=7.5)
  axes.tick_params(axis='y', length=0)
