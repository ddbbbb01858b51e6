"""The selection report: a page and `selections.json`, before training."""

import posixpath
from typing import Any

from infoprune_jax.config.experiment import Config
from infoprune_jax.report import page, plots as shared_plots, provenance
from infoprune_jax.report.plots import Figure
from infoprune_jax.report.selection import (
  artifact as report_artifact,
  findings,
  inputs,
  plots,
  sweeps,
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
    artifact = report_artifact.describe(
      config, workdir, selected.fingerprints
    ).take_over()
    drawn = figures(report)
    html = page.render(
      'selection_page.html.jinja', report, drawn, **constants(report)
    )
    artifact.finish(
      page.write(artifact, report_artifact.FILE, report, html, drawn)
    )
  logger.info(
    'selection_report: wrote %s. Fractions that each arm keeps:\n%s',
    posixpath.join(path, 'index.html'),
    text(report),
  )


def constants(report: dict[str, Any]) -> dict[str, Any]:
  """The values that the templates of selections need besides the report.

  They are the bounds that captions name, the scale of a table's colours, and
  the columns of each arm's summary.
  """
  return {
    'arm_names': [arm['name'] for arm in report['arms']],
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


def figures(report: dict[str, Any]) -> list[Figure]:
  """The figures of selections, without one that would compare nothing."""
  styles = shared_plots.arm_styles([arm['name'] for arm in report['arms']])
  sources = report['mix']['sources']
  drawn = [
    plots.scores(report['score_histogram'], report['kept']['deciles'], styles)
  ]
  if len(sources) > 1:
    drawn.append(plots.shifts(sources, styles))
  return drawn


def text(report: dict[str, Any]) -> str:
  """Tables for the terminal of what each arm keeps, and the warnings.

  Args:
    report: As returned by `findings.gather`.
  """
  overview = tables.overview(report)
  header = ('arm', 'tokens', 'documents', 'shorter half', 'longer half')
  rows: list[tuple[str, ...]] = [
    (*header, 'total variation', 'loses most', 'gains most')
  ]
  for arm, row in overview.items():
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
  blocks += sweeps.text(report['sweeps'], overview)
  blocks += report['selection_cautions']
  for arm in report['arms']:
    blocks += [f'{arm["name"]}: {warning}' for warning in arm['warnings']]
  return '\n'.join(blocks)
