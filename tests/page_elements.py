"""What a page is made of."""

import html.parser


class Elements(html.parser.HTMLParser):
  """Tags, attributes and text of a page."""

  def __init__(self):
    super().__init__()
    self.tags, self.attributes, self.text = [], [], []

  def handle_starttag(self, tag, attrs):
    self.tags.append(tag)
    self.attributes += [(tag, name, value or '') for name, value in attrs]

  def handle_data(self, data):
    self.text.append(data)
