"""What a page is made of."""

import html.parser
import re
from collections.abc import Iterable


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
  """Asserts that a page loads nothing, and that its links have one target."""
  elements = Elements(page)
  loads = [
    (tag, name, value)
    for tag, name, value in elements.attributes
    if name in ('src', 'href', 'xlink:href', 'data', 'action', 'srcset')
    and not value.startswith('#')
  ]
  assert not loads
  assert not {'link', 'iframe', 'object', 'embed', 'base'} & set(elements.tags)
  assert not re.search(r'@import|url\(\s*["\']?(?!#)', page)
  assert "default-src 'none'" in page
  ids = [value for _, name, value in elements.attributes if name == 'id']
  assert ids and len(ids) == len(set(ids))
