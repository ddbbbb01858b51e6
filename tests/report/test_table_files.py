"""The tables of a page as files."""

import csv
import html
import io

import hypothesis.strategies as st
import pytest
from hypothesis import given

from infoprune_jax.report import table_files

PAGE = """
<table id="table-losses"><caption>Losses <a href="tables/x.csv">CSV</a></caption>
<thead><tr><td></td><th scope="colgroup" colspan="2">held&nbsp;out</th></tr>
<tr><th data-latex>arm</th><th data-latex>bits per<br>byte</th><th>epochs</th></tr></thead>
<tbody><tr><th data-value="top_nll" data-rules="a, &quot;b&quot;">top_nll
<span class="tag">chosen</span><span class="rule">a, b</span></th>
<td data-value="-0.123456789" data-low="-0.2" data-high="0.30000000000000004"><b>\u22120.123</b>
<span class="minor">[\u22120.200, +0.300]</span></td><td data-value="">\u2014</td></tr>
<tr><th>50 % & more</th><td>0</td><td>2</td></tr></tbody></table>
<p>Words.</p>
<table id="table-other"><thead><tr><th>a</th></tr></thead><tbody></tbody></table>
"""


def test_csv_has_unrounded_numbers_and_bounds():
  losses, other = table_files.of_page(PAGE)
  assert losses.name == 'losses' and other.name == 'other'
  header, top, more = csv.reader(io.StringIO(table_files.as_csv(losses)))
  bits = 'held\xa0out bits per byte'
  assert header == [
    *('arm', 'arm rules', bits, f'{bits} low', f'{bits} high'),
    'held\xa0out epochs',
  ]
  assert top == ['top_nll', 'a, "b"', '-0.123456789', '-0.2', '0.3', '']
  assert more == ['50 % & more', '', '0', '', '', '2']
  assert table_files.as_csv(other) == 'a\r\n'


def test_latex_has_the_marked_columns_as_shown():
  losses, other = table_files.of_page(PAGE)
  assert table_files.as_latex(losses).splitlines()[1:] == [
    r'\begin{tabular}{lr}',
    r'\toprule',
    r'arm & bits per byte \\',
    r'\midrule',
    r'top\_nll & $-$0.123 {[}$-$0.200, +0.300{]} \\',
    r'50 \% \& more & 0 \\',
    r'\bottomrule',
    r'\end{tabular}',
  ]
  assert not other.latex_columns


@given(
  st.lists(
    st.lists(st.text(st.characters(codec='utf-8')), min_size=2, max_size=2)
  )
)
def test_csv_gives_every_value_back(values):
  body = ''.join(
    '<tr>'
    + ''.join(f'<td data-value="{html.escape(v)}">x</td>' for v in row)
    + '</tr>'
    for row in values
  )
  page = (
    '<table id="table-x"><thead><tr><th>a</th><th>b</th></tr></thead>'
    f'<tbody>{body}</tbody></table>'
  )
  [table] = table_files.of_page(page)
  _, *rows = csv.reader(io.StringIO(table_files.as_csv(table), newline=''))
  for row, expected in zip(rows, values, strict=True):
    for value, cell in zip(row, expected, strict=True):
      assert value == cell or float(value) == pytest.approx(float(cell), 1e-11)
