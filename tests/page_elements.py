"""What a page is made of."""

import html.parser
import pathlib
import re
from collections.abc import Iterable

BESIDE = re.compile(r'(figures|tables)/\w+\.(svg|pdf|csv)')


class Elements(html.parser.HTMLParser):
  """Tags, attributes and text of a page."""

  def __init__(self, page: str):
    super().__init__()
    self.tags, self.attributes, self.text = [], [], []
    self.feed(page)

  def handle_starttag(self, tag, attrs):
    self.tags.append(tag)
    self.attributes += [(tag, name, value or '') for name, value in attrs]

  def handle_data(self, data):
    self.text.append(data)


def check_escaped(page: str, hostile: Iterable[str]) -> None:
  """Asserts that texts and names run nothing."""
  elements = Elements(page)
  assert elements.tags.count('script') == 1  # Our own.
  assert 'img' not in elements.tags
  shown = ''.join(elements.text)
  for text in hostile:
    assert text not in page
    assert text in shown  # Yet whole, white space and all.
  assert not [a for a in elements.attributes if a[1].startswith('on')]


def check_stands_alone(page: str) -> None:
  """Asserts that a page loads nothing, and that its ids differ.

  Links lead to the page itself and to the files beside it.
  """
  elements = Elements(page)
  loads = [
    (tag, name, value)
    for tag, name, value in elements.attributes
    if name in ('src', 'href', 'xlink:href', 'data', 'action', 'srcset')
    and not value.startswith('#')
    and not (tag == 'a' and BESIDE.fullmatch(value))
  ]
  assert not loads
  assert not {'link', 'iframe', 'object', 'embed', 'base'} & set(elements.tags)
  assert not re.search(r'@import|url\(\s*["\']?(?!#)', page)
  assert "default-src 'none'" in page
  ids = [value for _, name, value in elements.attributes if name == 'id']
  assert ids and len(ids) == len(set(ids))


def check_structure(page: str) -> None:
  """Asserts what readers need who do not see the page."""
  elements = Elements(page)
  for landmark in ('header', 'nav', 'main', 'footer', 'h1'):
    assert elements.tags.count(landmark) == 1, landmark
  contents = re.search(r'<nav.*?</nav>', page, re.DOTALL)
  assert contents
  assert re.findall(r'href="#([^"]*)">([^<]*)<', contents[0]) == re.findall(
    r'<h2 id="([^"]*)">([^<]*)</h2>', page
  )
  assert elements.tags.count('h2') > 4
  tables = elements.tags.count('table')
  assert tables > 5
  assert len(re.findall(r'<table[^>]*>\s*<caption>', page)) == tables
  heads = re.findall(r'<th\b[^>]*>', page)
  assert heads and all(re.search(r'\sscope="\w+"', head) for head in heads)
  rows = re.findall(r'<tr[^>]*>\s*<(\w+)', page)
  assert len(rows) > tables and set(rows) == {'th', 'td'}
  bodies = re.findall(r'<tbody>.*?</tbody>', page, re.DOTALL)
  for row in re.findall(r'<tr[^>]*>\s*<[^>]*>', ''.join(bodies)):
    assert 'scope="row"' in row
  figures = re.findall(r'<svg[^>]*>\s*<\w+', page)
  assert figures and len(figures) == elements.tags.count('svg')
  for figure in figures:
    assert 'role="img"' in figure and figure.endswith('<title')


def check_files_beside(page: str, folder: str) -> None:
  """Asserts that each figure and table of a page lies beside it, and no other."""
  linked = {
    value
    for tag, name, value in Elements(page).attributes
    if tag == 'a' and name == 'href' and not value.startswith('#')
  }
  there = {
    str(path.relative_to(folder))
    for kind in ('figures', 'tables')
    for path in pathlib.Path(folder, kind).iterdir()
  }
  assert linked == {name for name in there if not name.endswith('.tex')}
  assert any(name.endswith('.tex') for name in there)
  assert all(pathlib.Path(folder, name).stat().st_size for name in there)
