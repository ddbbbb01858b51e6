"""The selection report: a page and `selections.json`, before training."""

import posixpath
from typing import Any

from infoprune_jax.config.experiment import Config
from infoprune_jax.report import page, plots as shared_plots, provenance
from infoprune_jax.report.selection import (
  artifact as report_artifact,
  findings,
  inputs,
  plots,
  tables,
)
from infoprune_jax.report.text import aligned, percent, signed
from infoprune_jax.runtime import files
from infoprune_jax.runtime.progress import logger
from infoprune_jax.runtime.workdir import selection_report_dir


def run(config: Config, workdir: str) -> None:
  """Writes `selections.json` and `index.html`, always anew.

  Raises:
    UserError: an artifact is missing, damaged or not of this workdir.
  """
  path = selection_report_dir(workdir)
  with files.lock(path):
    selected = inputs.open_selected(config, workdir)
    report = {
      **provenance.gather(config, workdir, selected),
      **findings.gather(config, workdir, selected),
    }
    artifact = report_artifact.describe(config, workdir, selected).take_over()
    artifact.finish(
      page.write(artifact, report_artifact.FILE, report, render(report))
    )
  logger.info('selection_report: kept by each arm\n%s', text(report))
  logger.info('selection_report: wrote %s', posixpath.join(path, 'index.html'))


def render(report: dict[str, Any]) -> str:
  """The page as HTML, with everything escaped.

  Args:
    report: As in `selections.json`.
  """
  colours = shared_plots.arm_colours([arm['name'] for arm in report['arms']])
  return page.render(
    'selection_page.html.jinja',
    report,
    **constants(report),
    colours=colours,
    figures=figures(report, colours),
  )


def constants(report: dict[str, Any]) -> dict[str, Any]:
  """What the templates of selections need besides the report.

  The bounds that captions name, the scale of a table's colours, and by arm the
  columns of its summary.
  """
  return {
    'overview': tables.overview(report),
    'kinds_shift': max(
      (
        abs(points - kind['fraction'])
        for kind in report['kinds']
        for points in kind['mix'].values()
      ),
      default=0.0,
    ),
    'max_text_chars': inputs.MAX_TEXT_CHARS,
    'max_shifts': plots.MAX_SHIFTS,
    'max_heat': tables.MAX_HEAT,
  }


def figures(report: dict[str, Any], colours: dict[str, str]) -> dict[str, Any]:
  """The figures by name, without those that would compare nothing."""
  import markupsafe

  sources = report['mix']['sources']
  svg = {
    'scores': plots.scores(
      report['score_histogram'], report['kept']['deciles'], colours
    )
  }
  if len(sources) > 1:
    svg['shifts'] = plots.shifts(sources, colours)
  return {name: markupsafe.Markup(drawn) for name, drawn in svg.items()}


def text(report: dict[str, Any]) -> str:
  """What each arm keeps, as tables for the terminal, and the warnings.

  Args:
    report: As returned by `findings.gather`.
  """
  header = ('arm', 'tokens', 'documents', 'shorter half', 'longer half')
  rows: list[tuple[str, ...]] = [
    (*header, 'total variation', 'loses most', 'gains most')
  ]
  for arm, row in tables.overview(report).items():
    fractions = (
      row['tokens'],
      row['examples'],
      *row['halves'],
      row['total_variation'],
    )
    rows.append(
      (
        arm,
        *(
          '' if fraction is None else percent(fraction)
          for fraction in fractions
        ),
        *(
          f'{" ".join(name.split())} {signed(100 * shift, 1)}' if name else ''
          for name, shift in (row['loses'], row['gains'])
        ),
      )
    )
  blocks = [aligned(rows)]
  if len(rows) > 2:
    names = [arm['name'] for arm in report['arms']]
    shared = [
      (name, *(f'{100 * value:.0f}' for value in row))
      for name, row in zip(names, report['overlaps']['tokens'], strict=True)
    ]
    blocks += ['Overlap of two arms, % of tokens:']
    blocks += [aligned([('', *names), *shared])]
  blocks += report['selection_cautions']
  for arm in report['arms']:
    blocks += [f'{arm["name"]}: {warning}' for warning in arm['warnings']]
  return '\n'.join(blocks)
