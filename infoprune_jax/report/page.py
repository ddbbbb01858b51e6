"""How both reports are written: an HTML page, and the numbers behind it."""

import json
import os
import posixpath
from typing import Any

from infoprune_jax.report.text import percent, signed
from infoprune_jax.runtime import artifacts, files
from infoprune_jax.runtime.progress import quantity

_TEMPLATES = os.path.join(os.path.dirname(__file__), 'templates')


def write(
  artifact: artifacts.Artifact, name: str, report: dict[str, Any], html: str
) -> dict[str, Any]:
  """Writes `name` (JSON) and `index.html`; returns the checksums by name."""
  path = artifact.path
  return {
    name: files.write_json(
      posixpath.join(path, name), report, artifact.write_file
    ),
    'index.html': files.write_text(
      posixpath.join(path, 'index.html'), html, artifact.write_file
    ),
  }


def render(template: str, report: dict[str, Any], **values: Any) -> str:
  """Renders a template as HTML.

  Everything is escaped: names and texts come from a corpus, which may hold
  markup.

  Args:
    template: The name of a file in templates/.
    report: The numbers, as in the JSON file.
    **values: Figures, colours and bounds that the template also needs.
  """
  import jinja2

  environment = jinja2.Environment(
    loader=jinja2.FileSystemLoader(_TEMPLATES),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
  )
  environment.filters.update(
    count=_count,
    quantity=quantity,
    signed=signed,
    percent=percent,
    fixed=lambda value, digits: f'{value:.{digits}f}',
  )
  config = json.dumps(report['config'], indent=2, ensure_ascii=False)
  return environment.get_template(template).render(
    **report, **values, config_text=config, shade=_shade
  )


def _count(value: int) -> str:
  """With thin spaces between thousands, as 12 345 678."""
  return f'{value:,}'.replace(',', '\u202f')


def _shade(difference: float, largest: float) -> str:
  """A CSS colour: blue where the loss is lower, orange where it is higher."""
  strength = 0.6 * abs(difference) / largest if largest else 0.0
  colour = '0, 114, 178' if difference < 0.0 else '213, 94, 0'
  return f'rgba({colour}, {strength:.2f})'
