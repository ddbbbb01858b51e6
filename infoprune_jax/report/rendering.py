"""What pages have in common: templates, and how they show numbers."""

import os
from typing import Any

from infoprune_jax.report.wording import signed
from infoprune_jax.runtime.progress import quantity


def render(template: str, **values: Any) -> str:
  """A template of this folder as HTML.

  Everything is escaped: names and texts come out of a corpus, which may hold
  markup.

  Args:
    template: Its name.
    **values: What it shows.
  """
  import jinja2

  environment = jinja2.Environment(
    loader=jinja2.FileSystemLoader(os.path.dirname(__file__)),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
  )
  environment.filters.update(
    count=_count,
    quantity=quantity,
    signed=signed,
    fixed=lambda value, digits: f'{value:.{digits}f}',
    percent=lambda value: f'{100 * value:.0f}',
  )
  return environment.get_template(template).render(**values, shade=_shade)


def _count(value: int) -> str:
  """With thin spaces between thousands, as 12 345 678."""
  return f'{value:,}'.replace(',', '\u202f')


def _shade(difference: float, largest: float) -> str:
  """A CSS colour: blue where the loss is lower, orange where it is higher."""
  strength = 0.6 * abs(difference) / largest if largest else 0.0
  colour = '0, 114, 178' if difference < 0.0 else '213, 94, 0'
  return f'rgba({colour}, {strength:.2f})'
