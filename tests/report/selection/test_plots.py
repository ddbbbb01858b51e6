"""Figures of what arms keep."""

import re
import xml.etree.ElementTree as ElementTree

import pytest

from infoprune_jax.report import plots as shared_plots
from infoprune_jax.report.selection import plots

ARMS = tuple(f'arm{a}' for a in range(7))
STYLES = shared_plots.arm_styles(ARMS)


def names_in(svg: str) -> list[str]:
  return re.findall(r'>(source-\d+)<', svg)


@pytest.mark.parametrize('count, lines', [(1, 1), (40, plots.MAX_SHIFTS)])
def test_shifts_show_the_largest(count, lines):
  mix = [
    {
      'source': f'source-{k:03d}',
      'fraction': 0.1,
      'arms': dict.fromkeys(ARMS, 0.1 + 0.01 * k),
    }
    for k in range(count)
  ]
  svg = plots.shifts(mix, STYLES).svg
  assert names_in(svg) == [f'source-{k:03d}' for k in range(lines)]
  assert all(style.colour in svg for style in STYLES.values())


def test_names_are_short_and_escaped():
  mix = [
    {'source': '<b>&\n' + 'x' * 60, 'fraction': 1.0, 'arms': {'arm0': 1.0}},
  ]
  svg = plots.shifts(mix, shared_plots.arm_styles(['arm0'])).svg
  assert '&lt;b&gt;&amp; xxx' in svg and 'x…' in svg
  ElementTree.fromstring(svg)
