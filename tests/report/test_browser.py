"""Both pages in headless Chromium: narrow, dark, and on paper."""

import pathlib
import re

import chromium
import pytest

from infoprune_jax.report.results import page as results_page
from infoprune_jax.runtime.workdir import report_dir, selection_report_dir

pytestmark = pytest.mark.skipif(
  not chromium.binary(),
  reason='needs Chromium: apt-get install chromium, or make test-browser',
)
PAPER = 1031  # pixels between the margins of A4, landscape

# Elements that are wider than their parent, by tag and class.
TOO_WIDE = """
[...document.querySelectorAll('body *')].filter(element => {
  if (element.closest('svg, script') || !element.getClientRects().length)
    return false;
  const scroller = element.closest('.scroll');
  if (scroller && element !== scroller) return false;
  const outer = element.parentElement.getBoundingClientRect();
  const inner = element.getBoundingClientRect();
  return inner.right > outer.right + 1 || inner.left < outer.left - 1 ||
    (element !== scroller && element.scrollWidth > element.clientWidth + 1 &&
     getComputedStyle(element).display !== 'inline');
}).map(element => element.tagName + '.' + element.className)
"""
# Texts of figures that stick out, and the smallest letters in pixels.
FIGURES = """
(() => {
  const cut = [], sizes = [];
  for (const svg of document.querySelectorAll('svg')) {
    const outer = svg.getBoundingClientRect();
    if (!outer.width) continue;
    for (const text of svg.querySelectorAll('text')) {
      const inner = text.getBoundingClientRect();
      if (inner.left < outer.left - 1 || inner.right > outer.right + 1 ||
          inner.top < outer.top - 1 || inner.bottom > outer.bottom + 1)
        cut.push(text.textContent);
      sizes.push(parseFloat(getComputedStyle(text).fontSize) *
                 outer.width / svg.viewBox.baseVal.width);
    }
  }
  return {cut, smallest: Math.min(...sizes), texts: sizes.length};
})()
"""
# Texts with less contrast to their background than 4.5.
FAINT = """
(() => {
  const parse = colour => {
    const [r, g, b, a = 1] = colour.match(/[0-9.]+/g).map(Number);
    return [r, g, b, a];
  };
  const over = (top, below) => [0, 1, 2].map(
    i => top[3] * top[i] + (1 - top[3]) * below[i]).concat(1);
  const behind = element => {
    if (!element) return [255, 255, 255, 1];
    const own = parse(getComputedStyle(element).backgroundColor);
    return own[3] === 1 ? own : over(own, behind(element.parentElement));
  };
  const luminance = colour => {
    const [r, g, b] = colour.slice(0, 3).map(c => c / 255).map(
      c => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const faint = [];
  let seen = 0;
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement;
    if (!walker.currentNode.data.trim() || !element.getClientRects().length ||
        element.closest('script, style, title, defs'))
      continue;
    const style = getComputedStyle(element), ground = behind(element);
    const ink = over(
      parse(element.closest('svg') ? style.fill : style.color), ground);
    const [low, high] = [luminance(ink), luminance(ground)].sort(
      (a, b) => a - b);
    seen += 1;
    if ((high + 0.05) / (low + 0.05) < 4.5)
      faint.push([element.tagName, walker.currentNode.data.trim(),
                  ink.join(), ground.join()].join(' '));
  }
  return {faint, seen, paper: luminance(behind(document.body))};
})()
"""
OPEN = """
for (const details of document.querySelectorAll('details')) details.open = true
"""


@pytest.fixture(scope='module')
def paths(make_workdir) -> dict[str, pathlib.Path]:
  config, workdir = make_workdir(
    num_sources=12, seeds=(0, 1, 2), everything=True, kinds=True
  )
  results_page.run(config, workdir)
  return {
    'selection': pathlib.Path(selection_report_dir(workdir), 'index.html'),
    'results': pathlib.Path(report_dir(workdir), 'index.html'),
  }


@pytest.fixture(scope='module')
def browser(tmp_path_factory):
  with chromium.page(tmp_path_factory.mktemp('chromium')) as page:
    yield page


@pytest.fixture(params=['selection', 'results'])
def opened(request, browser, paths):
  """Opens a page for given conditions."""

  def open_page(*conditions) -> chromium.Page:
    browser.emulate(*conditions)
    browser.open(paths[request.param])
    return browser

  return open_page


@pytest.mark.parametrize('width', [320, 420, 1280])
def test_nothing_but_tables_is_wider_than_its_place(opened, width):
  page = opened(width)
  for opens in (False, True):  # As it opens, and with all details.
    if opens:
      page.run(OPEN)
    assert page.run('document.documentElement.scrollWidth') <= width
    assert page.run(TOO_WIDE) == []
    tables = page.run(
      "[...document.querySelectorAll('.scroll')].map(box => "
      '[box.scrollWidth > box.clientWidth + 1, '
      "getComputedStyle(box.parentNode, '::after').content])"
    )
    assert len(tables) > 10
    for scrolls, hint in tables:
      assert scrolls == ('sideways' in hint)
    assert width == 1280 or any(scrolls for scrolls, _ in tables)


@pytest.mark.parametrize('width', [420, 1280])
def test_figures_are_whole_and_legible(opened, width):
  page = opened(width)
  page.run(OPEN)
  figures = page.run(FIGURES)
  assert figures['texts'] > 20 and figures['cut'] == []
  assert figures['smallest'] > 9
  titles = "[...document.querySelectorAll('svg')].map(svg => svg.ariaLabelledByElements[0].textContent)"
  assert len(set(page.run(titles))) == page.run(
    'document.querySelectorAll("svg").length'
  )


@pytest.mark.parametrize('scheme', ['light', 'dark'])
def test_text_stands_out(opened, scheme):
  page = opened(900, scheme)
  page.run(OPEN)
  texts = page.run(FAINT)
  assert texts['seen'] > 500 and texts['faint'] == []
  assert (texts['paper'] < 0.05) == (scheme == 'dark')


def test_paper_has_whole_tables_and_all_details(opened):
  page = opened(PAPER, 'dark', 'print')
  page.run("dispatchEvent(new Event('beforeprint'))")
  assert page.run('document.documentElement.scrollWidth') <= PAPER
  closed = 'document.querySelectorAll("details:not([open])").length'
  assert page.run(closed) == 0
  cut = page.run(
    "[...document.querySelectorAll('.scroll, pre')].filter(box => "
    "getComputedStyle(box).overflow !== 'visible').length"
  )
  assert cut == 0
  assert page.run(FAINT)['paper'] > 0.9  # Paper is white.


def test_pdf_has_all_details(opened):
  page = opened(1280)
  whole = len(re.findall(rb'/Type\s*/Page\b', page.pdf()))
  assert page.run('document.querySelectorAll("details[open]").length') == 0
  page.run(
    "for (const details of document.querySelectorAll('details')) "
    'details.remove()'
  )
  assert whole > len(re.findall(rb'/Type\s*/Page\b', page.pdf())) > 1


def test_a_header_sorts_its_table(opened):
  page = opened(1280)
  order = (
    "[...document.querySelector('#table-arms').tBodies[0].rows].map("
    'row => Number(row.cells[1].dataset.value))'
  )
  for expected in (sorted, lambda values: sorted(values, reverse=True)):
    page.run("document.querySelectorAll('#table-arms th')[1].click()")
    values = page.run(order)
    assert values == expected(values) and len(set(values)) > 2
