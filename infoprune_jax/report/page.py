"""How both reports are written: an HTML page, and the files beside it."""

import json
import os
import posixpath
import re
from collections.abc import Mapping, Sequence
from typing import Any

from infoprune_jax.report import table_files
from infoprune_jax.report.plots import Figure
from infoprune_jax.report.text import percent, signed
from infoprune_jax.runtime import artifacts, files, filesystems
from infoprune_jax.runtime.progress import quantity

_TEMPLATES = os.path.join(os.path.dirname(__file__), 'templates')


def write(
  artifact: artifacts.Artifact,
  name: str,
  report: dict[str, Any],
  html: str,
  figures: Sequence[Figure],
) -> dict[str, files.FileFacts]:
  """Writes a report, the page last.

  Args:
    artifact: Where to.
    name: Of the JSON file.
    report: Its numbers.
    html: The page, `index.html`. Its tables become `tables/*.csv`, and those
      that are marked for it `tables/*.tex`.
    figures: Become `figures/*.svg` and `figures/*.pdf`.

  Returns:
    The checksums by name.
  """
  texts: dict[str, str | bytes] = {}
  for figure in figures:
    texts[f'figures/{figure.name}.svg'] = figure.svg
    texts[f'figures/{figure.name}.pdf'] = figure.pdf
  for table in table_files.of_page(html):
    texts[f'tables/{table.name}.csv'] = table_files.as_csv(table)
    if table.latex_columns:
      texts[f'tables/{table.name}.tex'] = table_files.as_latex(table)
  texts[name] = json.dumps(report, indent=1, allow_nan=False) + '\n'
  texts['index.html'] = html
  written = {file: _write(artifact, file, text) for file, text in texts.items()}
  _remove_others(artifact.path, written)
  return written


def _remove_others(path: str, written: Mapping[str, Any]) -> None:
  """Deletes the figures and tables of an earlier report, of other arms."""
  for folder in ('figures', 'tables'):
    there = posixpath.join(path, folder)
    filesystem, root = filesystems.filesystem_of(there)
    for file in map(posixpath.basename, filesystem.find(root)):
      if f'{folder}/{file}' not in written:
        files.remove(posixpath.join(there, file))


def _write(
  artifact: artifacts.Artifact, name: str, content: str | bytes
) -> files.FileFacts:
  data = content.encode() if isinstance(content, str) else content
  path = posixpath.join(artifact.path, name)
  return artifact.write_file(path, lambda file: file.write(data))


def render(
  template: str,
  report: dict[str, Any],
  figures: Sequence[Figure],
  **values: Any,
) -> str:
  """Renders a template as HTML.

  Everything is escaped but the figures, which are our own SVG: names and texts
  come from a corpus, which may hold markup.

  Args:
    template: The name of a file in templates/.
    report: The numbers, as in the JSON file.
    figures: Those that the template shows, by name.
    **values: Bounds and functions that the template also needs.
  """
  import jinja2
  import markupsafe

  environment = jinja2.Environment(
    loader=jinja2.FileSystemLoader(_TEMPLATES),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
  )
  environment.filters.update(
    count=_count,
    headings=_headings,
    quantity=quantity,
    signed=signed,
    percent=percent,
    fixed=lambda value, digits: f'{value:.{digits}f}',
  )
  config = json.dumps(report['config'], indent=2, ensure_ascii=False)
  drawn = {figure.name: markupsafe.Markup(figure.inline) for figure in figures}
  return environment.get_template(template).render(
    **report, **values, figures=drawn, config_text=config, shade=_shade
  )


def _headings(body: str) -> list[tuple[str, str]]:
  """The id and the title of each section, for the list of contents."""
  return re.findall(r'<h2 id="([^"]*)">([^<]*)</h2>', body)


def _count(value: int) -> str:
  """A number with thin spaces between thousands: 12 345 678."""
  return f'{value:,}'.replace(',', '\u202f')


def _shade(difference: float, largest: float) -> str:
  """A CSS colour: blue where the loss is lower, orange where it is higher."""
  strength = 0.6 * abs(difference) / largest if largest else 0.0
  colour = '0, 114, 178' if difference < 0.0 else '213, 94, 0'
  return f'rgba({colour}, {strength:.2f})'
