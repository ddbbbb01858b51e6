"""The report: one HTML page that needs no other file, and `report.json`."""

import posixpath
from typing import Any

from infoprune_jax.config.experiment import Config
from infoprune_jax.report import page, plots as shared_plots
from infoprune_jax.report.results import findings, plots, statistics, wording
from infoprune_jax.report.selection import page as selection_page
from infoprune_jax.report.text import aligned, interval
from infoprune_jax.runtime import artifacts, files
from infoprune_jax.runtime.progress import logger, quantity
from infoprune_jax.runtime.workdir import report_dir


def run(config: Config, workdir: str) -> None:
  """Writes `report.json` and `index.html`, always anew: it takes seconds.

  Raises:
    UserError: an artifact is missing, damaged or not of this workdir.
  """
  path = report_dir(workdir)
  with files.lock(path):
    report = findings.gather(config, workdir)
    artifact = artifacts.Artifact(
      path=path,
      kind='report',
      job='report',
      options={
        'report': config.report,
        'arms': list(config.arms),
        'seeds': list(config.train.seeds),
      },
      inputs=report['fingerprints'],
    ).take_over()
    written = page.write(artifact, 'report.json', report, render(report))
    artifact.finish(written, chosen=report['chosen'])
  logger.info('report: losses on the report half\n%s', text(report))
  logger.info('report: wrote %s', posixpath.join(path, 'index.html'))


def render(report: dict[str, Any]) -> str:
  """The page as HTML, with everything escaped.

  Args:
    report: As returned by `findings.gather`.
  """
  colours = shared_plots.arm_colours([arm['name'] for arm in report['arms']])
  return page.render(
    'results_page.html.jinja',
    report,
    **selection_page.constants(report),
    colours=colours,
    seed_marks=shared_plots.seed_marks(report['seeds']),
    max_lines=plots.MAX_LINES,
    min_seeds=statistics.MIN_SEEDS_FOR_INTERVAL,
    min_texts=statistics.MIN_TEXTS_FOR_INTERVAL,
    verdict=wording.verdict,
    figures=_figures(report, colours),
    largest=max(
      abs(arm['difference']['estimate'])
      for source in report['sources']
      for arm in source['arms']
    ),
  )


def _figures(report: dict[str, Any], colours: dict[str, str]) -> dict[str, Any]:
  """The figures by name, without those that would compare nothing."""
  import markupsafe

  arms, baseline = report['arms'], report['baseline']
  svg = {'curves': plots.curves(report['curves'], report['seeds'], colours)}
  if len(arms) > 1:
    svg['differences'] = plots.differences(arms, baseline, colours)
  forests = plots.forests(
    arms, report['sources'], baseline, report['compared'], colours
  )
  return {
    **selection_page.figures(report, colours),
    **{name: markupsafe.Markup(drawn) for name, drawn in svg.items()},
    'forests': [markupsafe.Markup(drawn) for drawn in forests],
  }


def text(report: dict[str, Any]) -> str:
  """The losses as a table for the terminal, and the sentences of the page.

  Args:
    report: As returned by `findings.gather`.
  """
  rows = [
    (
      *('arm', 'kept', 'epochs', 'nats/token', 'perplexity', 'bits/byte'),
      f'minus {report["baseline"]} [95 %]',
      *('verdict', 'sources better', 'worse', 'by seed', 'FLOPs'),
    )
  ]
  for arm in report['arms']:
    difference, wins = arm['difference']['bits_per_byte'], arm['wins']
    rows.append(
      (
        arm['name'] + (' *' if arm['name'] == report['chosen'] else ''),
        f'{100 * arm["kept_tokens"]:.1f} %',
        f'{arm["epochs"]:.2f}',
        f'{arm["nats_per_token"]["mean"]:.4f}',
        f'{arm["perplexity"]:.2f}',
        f'{arm["bits_per_byte"]["mean"]:.4f}',
        interval(difference),
        wording.verdict(difference),
        f'{wins["better"]} of {wins["sources"]}',
        f'{wins["worse"]} of {wins["sources"]}',
        ' '.join(f'{value:.4f}' for value in arm['bits_per_byte']['values']),
        f'{quantity(arm["flops"]["total"])} (x{arm["flops"]["ratio"]:.2f})',
      )
    )
  lines = ['* chosen on the other half of the held-out texts']
  lines += [*report['found'], *report['cautions']]
  if report['equal_flops']:
    lines.append(report['equal_flops']['found'])
  return '\n'.join([aligned(rows), *lines])
