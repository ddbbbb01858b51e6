"""Figures as SVG and PDF, alone and on a page."""

import pathlib
import re
import xml.etree.ElementTree as ElementTree

import pytest

from infoprune_jax.report import plots
from infoprune_jax.report.results import plots as results_plots
from infoprune_jax.report.selection import plots as selection_plots

TEMPLATES = pathlib.Path(plots.__file__).parent / 'templates'
ARMS = ('full', 'random', '_top')


def figures(seeds=(0, 1)) -> dict[str, plots.Figure]:
  styles = plots.arm_styles(ARMS)
  arms = [
    {
      'name': arm,
      'decisive': {'estimate': 0.0, 'low': -0.1, 'high': 0.2},
      'difference_by_seed': {'values': [0.1 * seed for seed in seeds]},
    }
    for arm in ARMS
  ]
  runs = [
    {'arm': arm, 'seed': s, 'tokens': [0, 5, 10], 'bits_per_byte': [4, 3, 2]}
    for arm in ARMS
    for s in seeds
  ]
  histogram = {'edges': [1.0, 2.0, 3.0], 'tokens': [5, 7]}
  deciles = [
    {'low': 0.3 * d, 'high': 0.3 * d + 0.3, 'arms': dict.fromkeys(ARMS, 0.5)}
    for d in range(10)
  ]
  drawn = [
    results_plots.differences(arms, 'random', styles),
    *results_plots.curves(runs, styles),
    selection_plots.scores(histogram, deciles, styles),
  ]
  return {figure.name: figure for figure in drawn}


@pytest.fixture(scope='module')
def drawn():
  return figures()


def test_svg_stands_alone_and_has_a_title(drawn):
  for figure in drawn.values():
    root = ElementTree.fromstring(figure.svg)
    assert root.tag.endswith('svg') and root.get('role') == 'img'
    title = root[0]
    assert title.tag.endswith('title') and title.text == figure.title
    assert root.get('aria-labelledby') == title.get('id')
    assert '<metadata' not in figure.svg and 'var(' not in figure.svg
    assert float(root.get('width', '').removesuffix('pt')) == pytest.approx(
      72 * plots.WIDTH
    )


def test_inline_svg_has_only_colours_of_the_theme(drawn):
  style = (TEMPLATES / 'style.css.jinja').read_text()
  for figure in drawn.values():
    assert figure.inline.startswith('<svg')
    assert not re.search(r'(fill|stroke): (#|black|white)', figure.inline)
    for name in re.findall(r'var\((--[^)]*)\)', figure.inline):
      assert f'{name}:' in style


def test_pdf_has_fonts_and_no_date(drawn):
  for figure in drawn.values():
    assert figure.pdf.startswith(b'%PDF')
    assert b'/TrueType' in figure.pdf or b'/CIDFontType2' in figure.pdf
    assert b'/CreationDate' not in figure.pdf


def test_ids_are_unique_on_the_page_and_references_resolve(drawn):
  page = ''.join(figure.inline for figure in drawn.values())
  ids = re.findall(r'\bid="([^"]*)"', page)
  assert len(ids) == len(set(ids))
  references = re.findall(r'(?:url\(|href=")#([^)"]*)', page)
  assert references and set(references) <= set(ids)


def test_is_the_same_again(drawn):
  assert figures() == drawn


def test_every_arm_is_told_apart_by_form():
  names = [f'arm{a}' for a in range(20)]
  styles = list(plots.arm_styles(names).values())
  assert len({(style.dash, style.marker) for style in styles}) == 20
  assert len({style.colour for style in styles[:10]}) == 10


def test_every_arm_and_seed_is_drawn(drawn):
  for arm, style in plots.arm_styles(ARMS).items():
    # Two seeds, and the legend.
    pattern = rf'fill: none; stroke[^"]*{style.colour}'
    lines = re.findall(pattern, drawn['curves'].svg)
    assert len(lines) == 3
    assert f'>{arm}<' in drawn['curves'].svg
    assert (style.colour in drawn['differences'].svg) == (arm != 'random')
    assert style.colour in drawn['scores'].svg
  assert '>_top<' in drawn['differences'].svg
  assert '>random<' not in drawn['differences'].svg


def test_names_are_no_formulas_and_escaped():
  styles = plots.arm_styles(('a$b', '$a$', '<b>&'))
  deciles = [{'low': 0.0, 'high': 1.0, 'arms': dict.fromkeys(styles, 1.0)}]
  histogram = {'edges': [0.0, 1.0], 'tokens': [1]}
  svg = selection_plots.scores(histogram, deciles, styles).svg
  assert '>a$b<' in svg and '>$a$<' in svg
  assert '&lt;b&gt;&amp;' in svg


def test_titles_are_escaped():
  drawn = plots.draw('x', '<b>&', lambda figure: None, 1.0)
  assert '>&lt;b&gt;&amp;</title>' in drawn.svg


def test_a_curve_may_be_empty():
  runs = [{'arm': 'full', 'seed': 0, 'tokens': [], 'bits_per_byte': []}]
  styles = plots.arm_styles(['full'])
  for figure in results_plots.curves(runs, styles):
    ElementTree.fromstring(figure.svg)
