"""Figures with a line a source."""

import re
import xml.etree.ElementTree as ElementTree

import pytest

from infoprune_jax.report import plots, source_plots

ARMS = tuple(f'arm{a}' for a in range(7))
COLOURS = plots.arm_colours(ARMS)


def arms() -> list[dict]:
  parts = {'estimate': 0.0, 'low': -0.1, 'high': 0.2}
  return [{'name': a, 'difference': {'bits_per_byte': parts}} for a in ARMS]


def sources(count: int) -> list[dict]:
  few = {'low': None, 'high': None}
  return [
    {
      'source': f'source-{k:03d}',
      'arms': [
        {
          'difference': {
            'estimate': -0.01 * k * a,
            **(few if k % 3 else {'low': -1.0, 'high': 1.0}),
          }
        }
        for a in range(len(ARMS))
      ],
    }
    for k in range(count)
  ]


def names_in(svg: str) -> list[str]:
  return re.findall(r'>(source-\d+)<', svg)


def test_four_panels_a_figure_the_compared_arm_first():
  figures = source_plots.forests(arms(), sources(5), 'arm0', 'arm3', COLOURS)
  panels = [re.findall(r'>(arm\d)<', figure) for figure in figures]
  assert panels == [['arm3', 'arm1', 'arm2', 'arm4'], ['arm5', 'arm6']]
  for figure in figures:
    ElementTree.fromstring(figure)
    assert 'all sources' in figure and 'minus those of arm0' in figure
  ids = re.findall(r'\bid="([^"]*)"', ''.join(figures))
  assert len(ids) == len(set(ids))


def test_sources_are_sorted_by_the_compared_arm():
  [figure, _] = source_plots.forests(
    arms(), sources(6), 'arm0', 'arm1', COLOURS
  )
  assert names_in(figure) == [f'source-{k:03d}' for k in (5, 4, 3, 2, 1, 0)]


def test_many_sources_show_both_ends():
  count = source_plots.MAX_LINES + 10
  figure = source_plots.forests(
    arms(), sources(count), 'arm0', 'arm1', COLOURS
  )[0]
  shown = names_in(figure)
  assert len(shown) == source_plots.MAX_LINES
  assert {f'source-{count - 1:03d}', 'source-000'} <= set(shown)
  assert f'source-{count // 2:03d}' not in shown


def test_the_baseline_alone_has_no_forest():
  assert not source_plots.forests(
    arms()[:1], sources(3), 'arm0', 'arm0', COLOURS
  )


@pytest.mark.parametrize(
  'count, lines', [(1, 1), (40, source_plots.MAX_SHIFTS)]
)
def test_shifts_show_the_largest(count, lines):
  mix = [
    {
      'source': f'source-{k:03d}',
      'fraction': 0.1,
      'arms': dict.fromkeys(ARMS, 0.1 + 0.01 * k),
    }
    for k in range(count)
  ]
  svg = source_plots.shifts(mix, COLOURS)
  assert names_in(svg) == [f'source-{k:03d}' for k in range(lines)]
  assert all(colour in svg for colour in COLOURS.values())


def test_names_are_short_and_escaped():
  mix = [
    {'source': '<b>&\n' + 'x' * 60, 'fraction': 1.0, 'arms': {'arm0': 1.0}},
  ]
  svg = source_plots.shifts(mix, {'arm0': '#000000'})
  assert '&lt;b&gt;&amp; xxx' in svg and 'x…' in svg
  ElementTree.fromstring(svg)
