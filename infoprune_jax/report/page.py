"""The report: one HTML page that stands alone, and the numbers behind it."""

import json
import os
import posixpath
from collections.abc import Sequence
from typing import Any

from infoprune_jax import artifacts, files
from infoprune_jax.config import Config, to_plain
from infoprune_jax.progress import logger, quantity
from infoprune_jax.report import findings, inputs, plots
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
  logger.info('report: on the held-out texts kept for it\n%s', table(found))
  for sentence in (*found['found'], *found['cautions']):
    logger.info('report: %s', sentence)
  logger.info('report: wrote %s', posixpath.join(path, 'index.html'))


def table(found: dict[str, Any]) -> str:
  """The final table as aligned text.

  Args:
    found: As returned by `findings.gather`.
  """
  rows = [
    (
      'arm',
      'kept',
      'epochs',
      'nats/token',
      'perplexity',
      'bits/byte',
      f'minus {found["baseline"]}',
      '95 % interval',
      'by seed',
      'FLOPs',
    )
  ]
  for arm in found['arms']:
    difference = arm['difference']['bits_per_byte']
    rows.append(
      (
        arm['name'] + (' *' if arm['name'] == found['chosen'] else ''),
        f'{100 * arm["kept_tokens"]:.1f} %',
        f'{arm["epochs"]:.2f}',
        f'{arm["nats_per_token"]["mean"]:.4f}',
        f'{arm["perplexity"]:.2f}',
        f'{arm["bits_per_byte"]["mean"]:.4f}',
        signed(difference['estimate']),
        f'{signed(difference["low"])} to {signed(difference["high"])}',
        ' '.join(f'{value:.4f}' for value in arm['bits_per_byte']['values']),
        f'{quantity(arm["flops"]["total"])} (x{arm["flops"]["ratio"]:.2f})',
      )
    )
  return _aligned(rows) + '\n* chosen on the other half of the held-out texts'


def _aligned(rows: Sequence[Sequence[str]]) -> str:
  """Columns of text: the first to the left, the others to the right."""
  widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
  return '\n'.join(
    '  '.join(
      cell.rjust(width) if i else cell.ljust(width)
      for i, (cell, width) in enumerate(zip(row, widths, strict=True))
    )
    for row in rows
  )


def render(found: dict[str, Any]) -> str:
  """The page as HTML.

  Everything is escaped: names and texts come out of a corpus, which may hold
  markup.

  Args:
    found: As returned by `findings.gather`.
  """
  import jinja2
  import markupsafe

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
    (abs(a['difference']) for s in found['sources'] for a in s['arms']),
    default=0.0,
  )
  svg = {
    'differences': plots.differences(found['arms'], found['baseline'], colours),
    'curves': plots.curves(found['curves'], found['seeds'], colours),
    'scores': plots.scores(
      found['score_histogram'], found['kept']['deciles'], colours
    ),
  }
  return environment.get_template(_TEMPLATE).render(
    **found,
    colours=colours,
    max_text_chars=inputs.MAX_TEXT_CHARS,
    seed_marks=plots.seed_marks(found['seeds']),
    figures={name: markupsafe.Markup(s) for name, s in svg.items()},
    shade=lambda difference: _shade(difference, largest),
    config_text=json.dumps(found['config'], indent=2, ensure_ascii=False),
  )


def _count(value: int) -> str:
  """With thin spaces between thousands, as 12 345 678."""
  return f'{value:,}'.replace(',', '\u202f')


def _shade(difference: float, largest: float) -> str:
  """A CSS colour: blue where the loss is lower, orange where it is higher."""
  strength = 0.6 * abs(difference) / largest if largest else 0.0
  colour = '0, 114, 178' if difference < 0.0 else '213, 94, 0'
  return f'rgba({colour}, {strength:.2f})'
