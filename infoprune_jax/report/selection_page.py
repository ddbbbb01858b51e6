"""The report on selections: what each arm keeps, before anything is trained."""

import json
import posixpath
from typing import Any

from infoprune_jax.config.experiment import Config
from infoprune_jax.report import (
  plots,
  rendering,
  selection_findings,
  selection_inputs,
  selection_tables,
  source_plots,
)
from infoprune_jax.report.terminal import selections_text
from infoprune_jax.runtime import files
from infoprune_jax.runtime.progress import logger
from infoprune_jax.runtime.workdir import selection_report_dir

_TEMPLATE = 'selection_page.html.jinja'


def run(config: Config, workdir: str) -> None:
  """Writes `selections.json` and `index.html`, always anew.

  Raises:
    UserError: what it is made from is missing, damaged or another's.
  """
  path = selection_report_dir(workdir)
  with files.lock(path):
    selected = selection_inputs.open_selected(config, workdir)
    found = selection_findings.gather(config, workdir, selected)
    artifact = selection_findings.artifact(config, workdir, selected)
    artifact = artifact.take_over()
    writer, name = artifact.write_file, selection_findings.FILE
    page = posixpath.join(path, 'index.html')
    written = {
      name: files.write_json(posixpath.join(path, name), found, writer),
      'index.html': files.write_text(page, render(found), writer),
    }
    artifact.finish(written)
  logger.info(
    'selection_report: what is kept, before training\n%s',
    selections_text(found),
  )
  logger.info('selection_report: wrote %s', posixpath.join(path, 'index.html'))


def render(found: dict[str, Any]) -> str:
  """The page as HTML, with everything escaped.

  Args:
    found: As returned by `selection_findings.gather`.
  """
  colours = plots.arm_colours([arm['name'] for arm in found['arms']])
  return rendering.render(
    _TEMPLATE,
    **found,
    **constants(found),
    colours=colours,
    figures=figures(found, colours),
    config_text=json.dumps(found['config'], indent=2, ensure_ascii=False),
  )


def constants(found: dict[str, Any]) -> dict[str, float]:
  """The bounds that captions name, and the scale of a table's colours."""
  return {
    'kinds_shift': max(
      (
        abs(points - row['fraction'])
        for row in found['kinds']
        for points in row['mix'].values()
      ),
      default=0.0,
    ),
    'max_text_chars': selection_inputs.MAX_TEXT_CHARS,
    'max_shifts': source_plots.MAX_SHIFTS,
    'max_heat': selection_tables.MAX_HEAT,
  }


def figures(found: dict[str, Any], colours: dict[str, str]) -> dict[str, Any]:
  """The figures on selections by name, but for those that compare nothing."""
  import markupsafe

  sources = found['mix']['sources']
  svg = {
    'scores': plots.scores(
      found['score_histogram'], found['kept']['deciles'], colours
    )
  }
  if len(sources) > 1:
    svg['shifts'] = source_plots.shifts(sources, colours)
  return {name: markupsafe.Markup(drawn) for name, drawn in svg.items()}
