"""The report: one HTML page that stands alone, and the numbers behind it."""

import json
import posixpath
from typing import Any

from infoprune_jax.config.experiment import Config
from infoprune_jax.report import (
  findings,
  plots,
  rendering,
  selection_page,
  source_plots,
  statistics,
)
from infoprune_jax.report.terminal import text
from infoprune_jax.runtime import artifacts, files
from infoprune_jax.runtime.progress import logger
from infoprune_jax.runtime.workdir import report_dir

_TEMPLATE = 'page.html.jinja'


def run(config: Config, workdir: str) -> None:
  """Writes `report.json` and `index.html`, always anew: it takes seconds."""
  path = report_dir(workdir)
  with files.lock(path):
    _write(config, workdir, path)


def _write(config: Config, workdir: str, path: str) -> None:
  found = findings.gather(config, workdir)
  artifact = artifacts.Artifact(
    path=path,
    kind='report',
    job='report',
    options={
      'report': config.report,
      'arms': list(config.arms),
      'seeds': list(config.train.seeds),
    },
    inputs=found['fingerprints'],
  ).take_over()
  written = {
    'report.json': files.write_json(
      posixpath.join(path, 'report.json'), found, artifact.write_file
    ),
    'index.html': files.write_text(
      posixpath.join(path, 'index.html'), render(found), artifact.write_file
    ),
  }
  artifact.finish(written, chosen=found['chosen'])
  logger.info('report: on the held-out texts kept for it\n%s', text(found))
  logger.info('report: wrote %s', posixpath.join(path, 'index.html'))


def render(found: dict[str, Any]) -> str:
  """The page as HTML, with everything escaped.

  Args:
    found: As returned by `findings.gather`.
  """
  colours = plots.arm_colours([arm['name'] for arm in found['arms']])
  largest = max(
    abs(arm['difference']['estimate'])
    for source in found['sources']
    for arm in source['arms']
  )
  return rendering.render(
    _TEMPLATE,
    **found,
    **selection_page.constants(found),
    colours=colours,
    seed_marks=plots.seed_marks(found['seeds']),
    max_lines=source_plots.MAX_LINES,
    min_texts=statistics.MIN_TEXTS_FOR_INTERVAL,
    figures=_figures(found, colours),
    largest=largest,
    config_text=json.dumps(found['config'], indent=2, ensure_ascii=False),
  )


def _figures(found: dict[str, Any], colours: dict[str, str]) -> dict[str, Any]:
  """The figures by name; those that would compare nothing are left out."""
  import markupsafe

  arms = found['arms']
  svg = {'curves': plots.curves(found['curves'], found['seeds'], colours)}
  if len(arms) > 1:
    svg['differences'] = plots.differences(arms, found['baseline'], colours)
  forests = source_plots.forests(
    arms, found['sources'], found['baseline'], found['compared'], colours
  )
  return {
    **selection_page.figures(found, colours),
    **{name: markupsafe.Markup(drawn) for name, drawn in svg.items()},
    'forests': [markupsafe.Markup(drawn) for drawn in forests],
  }
