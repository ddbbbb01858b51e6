"""The figures of the report that have a line a source."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from infoprune_jax.report import plots

PANELS = 4  # arms side by side
MAX_LINES = 80  # sources of a forest: the lowest and the highest differences
MAX_SHIFTS = 25  # sources whose fraction moves most
_LINE = 0.165  # inches
_MAX_NAME = 26  # characters


def forests(
  arms: Sequence[dict[str, Any]],
  sources: Sequence[dict[str, Any]],
  baseline: str,
  compared: str,
  colours: dict[str, str],
) -> list[str]:
  """Arm minus baseline in bits per byte for each source, and over all at the end.

  Sources stand in the order of the compared arm's differences, everywhere.

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
  colours: dict[str, str],
) -> str:
  lines = len(sources)

  def draw(figure: Any) -> None:
    grid = figure.subplots(
      1, len(panels), sharex=True, sharey=True, squeeze=False
    )
    for axes, (arm, a) in zip(grid[0], panels, strict=True):
      found = [source['arms'][a]['difference'] for source in sources]
      _draw_panel(axes, arm, found, colours[arm['name']])
    axes.set_yticks(
      [*range(lines), lines + 0.5],
      [*(_short(source['source']) for source in sources), 'all sources'],
    )
    axes.set_ylim(lines + 1.3, -0.8)
    axes.locator_params(axis='x', nbins=5)
    figure.supxlabel(f'bits per byte, minus those of {baseline}', fontsize=9)

  width = 1.7 + min(2.4 * len(panels) + 1.2, 9.6)
  return plots.svg(name, draw, (width, 0.9 + _LINE * (lines + 2)))


def _draw_panel(
  axes: Any,
  arm: dict[str, Any],
  found: Sequence[dict[str, float | None]],
  colour: str,
) -> None:
  """One arm: a line a source, downwards from zero, and all texts at the end."""
  told = [
    y for y, difference in enumerate(found) if difference['low'] is not None
  ]
  axes.axvline(0.0, color='#555555', linewidth=0.8)
  axes.hlines(
    told,
    [found[y]['low'] for y in told],
    [found[y]['high'] for y in told],
    color=colour,
    linewidth=1.1,
  )
  estimates = [difference['estimate'] for difference in found]
  axes.plot(estimates, range(len(found)), '.', color=colour, markersize=5)
  over_all, end = arm['difference']['bits_per_byte'], len(found) + 0.5
  axes.axhspan(end - 0.6, end + 0.6, color='#f2f2f2', zorder=0)
  axes.hlines(
    end, over_all['low'], over_all['high'], color=colour, linewidth=2.6
  )
  axes.plot(over_all['estimate'], end, 'D', color=colour, markersize=5)
  axes.set_title(arm['name'], loc='left', fontsize=9)
  axes.tick_params(axis='both', labelsize=7.5)
  axes.tick_params(axis='y', length=0)


def shifts(sources: Sequence[dict[str, Any]], colours: dict[str, str]) -> str:
  """How far each arm moves the fraction of tokens of a source, in points.

  Args:
    sources: As `selections.mix` gives them, the largest moves first.
    colours: By arm.
  """
  shown = sources[:MAX_SHIFTS]

  def draw(figure: Any) -> None:
    axes = figure.subplots()
    axes.axvline(0.0, color='#555555', linewidth=0.8)
    # Arms of one line stand a little apart, so that none hides another.
    spread = np.linspace(-0.26, 0.26, len(colours)) if len(colours) > 1 else [0]
    for offset, (arm, colour) in zip(spread, colours.items(), strict=True):
      total_variation = [100 * (s['arms'][arm] - s['fraction']) for s in shown]
      at = np.arange(len(shown)) + offset
      axes.plot(total_variation, at, 'o', color=colour, markersize=3.6)
    axes.set_yticks(
      range(len(shown)), [_short(source['source']) for source in shown]
    )
    axes.set_ylim(len(shown) - 0.4, -0.6)
    axes.tick_params(axis='both', labelsize=8)
    axes.tick_params(axis='y', length=0)
    axes.set_xlabel(
      'fraction of tokens, minus the fraction in all that was scored, points'
    )

  height = 0.8 + 1.25 * _LINE * max(len(shown), 2)
  return plots.svg('shifts', draw, (8.6, height))


def _short(name: str) -> str:
  """On one line, and not too long for the margin."""
  name = ' '.join(name.split())
  return name if len(name) <= _MAX_NAME else name[: _MAX_NAME - 1] + '…'
