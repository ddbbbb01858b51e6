"""The report: one HTML page that stands alone, and the numbers behind it."""

import json
import os
import posixpath
from typing import Any

from infoprune_jax import artifacts, files
from infoprune_jax.config import Config, to_plain
from infoprune_jax.progress import logger, quantity
from infoprune_jax.report import (
  findings,
  inputs,
  plots,
  source_plots,
  statistics,
)
from infoprune_jax.report.terminal import text
from infoprune_jax.report.wording import signed

_TEMPLATE = 'page.html.jinja'


def run(config: Config, workdir: str) -> None:
  """Writes `report.json` and `index.html`, always anew: it takes seconds."""
  path = artifacts.report_dir(workdir)
  with files.lock(path):
    _write(config, workdir, path)


def _write(config: Config, workdir: str, path: str) -> None:
  found = findings.gather(config, workdir)
  written = {
    'report.json': files.write_json(posixpath.join(path, 'report.json'), found),
    'index.html': files.write_text(
      posixpath.join(path, 'index.html'), render(found)
    ),
  }
  artifacts.Artifact(
    path=path,
    kind='report',
    job='report',
    options={
      'report': to_plain(config.report),
      'arms': list(config.arms),
      'seeds': list(config.train.seeds),
    },
    inputs=found['fingerprints'],
  ).finish(written, chosen=found['chosen'])
  logger.info('report: on the held-out texts kept for it\n%s', text(found))
  logger.info('report: wrote %s', posixpath.join(path, 'index.html'))


def render(found: dict[str, Any]) -> str:
  """The page as HTML.

  Everything is escaped: names and texts come out of a corpus, which may hold
  markup.

  Args:
    found: As returned by `findings.gather`.
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
  colours = plots.arm_colours([arm['name'] for arm in found['arms']])
  largest = max(
    abs(arm['difference']['estimate'])
    for source in found['sources']
    for arm in source['arms']
  )
  return environment.get_template(_TEMPLATE).render(
    **found,
    colours=colours,
    max_text_chars=inputs.MAX_TEXT_CHARS,
    seed_marks=plots.seed_marks(found['seeds']),
    max_lines=source_plots.MAX_LINES,
    max_shifts=source_plots.MAX_SHIFTS,
    min_texts=statistics.MIN_TEXTS_FOR_INTERVAL,
    figures=_figures(found, colours),
    largest=largest,
    shade=_shade,
    config_text=json.dumps(found['config'], indent=2, ensure_ascii=False),
  )


def _figures(found: dict[str, Any], colours: dict[str, str]) -> dict[str, Any]:
  """The figures by name; those that would compare nothing are left out."""
  import markupsafe

  arms, sources = found['arms'], found['mix']['sources']
  svg = {
    'curves': plots.curves(found['curves'], found['seeds'], colours),
    'scores': plots.scores(
      found['score_histogram'], found['kept']['deciles'], colours
    ),
  }
  if len(arms) > 1:
    svg['differences'] = plots.differences(arms, found['baseline'], colours)
  if len(sources) > 1:
    svg['shifts'] = source_plots.shifts(sources, colours)
  forests = source_plots.forests(
    arms, found['sources'], found['baseline'], found['compared'], colours
  )
  return {
    **{name: markupsafe.Markup(drawn) for name, drawn in svg.items()},
    'forests': [markupsafe.Markup(drawn) for drawn in forests],
  }


def _count(value: int) -> str:
  """With thin spaces between thousands, as 12 345 678."""
  return f'{value:,}'.replace(',', '\u202f')


def _shade(difference: float, largest: float) -> str:
  """A CSS colour: blue where the loss is lower, orange where it is higher."""
  strength = 0.6 * abs(difference) / largest if largest else 0.0
  colour = '0, 114, 178' if difference < 0.0 else '213, 94, 0'
  return f'rgba({colour}, {strength:.2f})'
