"""The report: one HTML page that needs no other file, and `report.json`."""

import posixpath
from collections.abc import Mapping, Sequence
from typing import Any

from infoprune_jax.config.experiment import Config
from infoprune_jax.report import page, plots as shared_plots
from infoprune_jax.report.plots import Figure
from infoprune_jax.report.results import (
  findings,
  near_copies,
  plots,
  statistics,
  tasks,
  wording,
)
from infoprune_jax.report.selection import page as selection_page
from infoprune_jax.runtime import artifacts, files
from infoprune_jax.runtime.progress import logger
from infoprune_jax.runtime.workdir import report_dir


def run(config: Config, workdir: str) -> None:
  """Writes `report.json` and `index.html`, always anew: it takes seconds.

  Raises:
    UserError: an artifact is missing, damaged or not of this workdir.
  """
  path = report_dir(workdir)
  with files.lock(path):
    report = findings.gather(config, workdir)
    artifact = describe(config, workdir, report['fingerprints']).take_over()
    drawn = _figures(report)
    html = _render(report, drawn)
    written = page.write(artifact, 'report.json', report, html, drawn)
    artifact.finish(written, chosen=report['chosen'])
  logger.info('report: the result\n%s', '\n'.join(report['terminal']))
  if report['tasks']:
    names = [arm['name'] for arm in report['arms']]
    logger.info('report: tasks\n%s', tasks.text(report['tasks'], names))
  copies = report['near_copies']
  if copies and copies['with_near_copy']:
    logger.info(
      'report: losses without texts that have near-copies in other text\n%s',
      near_copies.text(copies, report['measure']),
    )
  logger.info('report: wrote %s', posixpath.join(path, 'index.html'))


def describe(
  config: Config, workdir: str, inputs: Mapping[str, str]
) -> artifacts.Artifact:
  """The report, made from artifacts with these fingerprints."""
  return artifacts.Artifact(
    path=report_dir(workdir),
    kind='report',
    job='report',
    options={
      'report': config.report,
      'arms': list(config.arms),
      'seeds': list(config.train.seeds),
    },
    inputs=inputs,
    sections={'': '', 'arms': 'train.arms', 'seeds': 'train.seeds'},
  )


def _render(report: dict[str, Any], figures: Sequence[Figure]) -> str:
  """The page as HTML."""
  return page.render(
    'results_page.html.jinja',
    report,
    figures,
    **selection_page.constants(report),
    markers=[name for name, _ in shared_plots.MARKERS],
    max_lines=plots.MAX_LINES,
    min_seeds=statistics.MIN_SEEDS_FOR_INTERVAL,
    min_texts=statistics.MIN_TEXTS_FOR_INTERVAL,
    verdict=wording.verdict,
    largest=max(
      abs(arm['difference']['estimate'])
      for source in report['sources']
      for arm in source['arms']
    ),
  )


def _figures(report: dict[str, Any]) -> list[Figure]:
  """The figures, without those that would compare nothing."""
  arms, baseline = report['arms'], report['baseline']
  styles = shared_plots.arm_styles([arm['name'] for arm in arms])
  drawn = [
    *selection_page.figures(report),
    *plots.curves(report['curves'], styles),
    *plots.forests(
      arms, report['sources'], baseline, report['compared'], styles
    ),
  ]
  if len(arms) > 1:
    drawn.append(plots.differences(arms, baseline, styles))
  if report['sweeps']:
    drawn.append(
      plots.sweeps(arms, report['sweeps'], report['measure'], styles)
    )
  return drawn
