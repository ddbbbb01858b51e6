"""The selection report as an artifact that the report of trained arms reads."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from infoprune_jax.config.experiment import Config
from infoprune_jax.config.validation import UserError
from infoprune_jax.report.selection import group_tables, sweeps
from infoprune_jax.runtime import artifacts, files, manifests
from infoprune_jax.runtime.options import options_of
from infoprune_jax.runtime.workdir import selection_report_dir

FILE = 'selections.json'


def describe(
  config: Config, workdir: str, inputs: Mapping[str, str]
) -> artifacts.Artifact:
  """The report, made from artifacts with these fingerprints."""
  report, branches = options_of(config.report), config.select.branches
  return artifacts.Artifact(
    path=selection_report_dir(workdir),
    kind='selection report',
    job='selection_report',
    options={
      'arms': config.select.arms,
      **({'branches': branches} if branches else {}),
      'seeds': list(config.train.seeds),
      'num_examples': report['num_examples'],
      'kinds': report['kinds'],
    },
    inputs=inputs,
    sections={
      '': 'report',
      'arms': 'select.arms',
      'branches': 'select.branches',
      'seeds': 'train.seeds',
    },
  )


def open_report(
  config: Config, workdir: str, inputs: Mapping[str, str]
) -> manifests.Manifest:
  """The manifest of the selection report in a workdir.

  Raises:
    UserError: it is missing, or made from another config or other artifacts.
  """
  here = describe(config, workdir, inputs)
  manifest = manifests.open_finished(here.path, here.kind, here.job)
  changed = manifests.causes(manifest, here.options, inputs, here.sections)
  if changed:
    raise UserError(
      f'The {here.kind} in {here.path} was made from another config or other '
      f'artifacts: {"; ".join(changed)}. Run --job={here.job} again.'
    )
  return manifest


def read(
  workdir: str, manifest: Mapping[str, Any], arms: Sequence[str]
) -> dict[str, Any]:
  """The content of `selections.json` for those arms that were trained.

  Tables by arm keep their other columns.

  Raises:
    UserError: the file is missing or damaged.
  """
  path = selection_report_dir(workdir)
  file = manifests.verified(path, manifest, FILE)
  report = json.loads(files.read_bytes(file))
  names = [arm['name'] for arm in report['arms']]
  index = [names.index(arm) for arm in arms]
  report['arms'] = [report['arms'][n] for n in index]
  report['overlaps'] = {
    unit: [[rows[a][b] for b in index] for a in index]
    for unit, rows in report['overlaps'].items()
  }
  # Older reports have none.
  report['sweeps'] = sweeps.only(report.get('sweeps', ()), arms)
  report |= group_tables.only(report, arms)
  for part in ('examples', 'decisions'):
    for item in report[part]:
      item['arms'] = [arm for arm in item['arms'] if arm in arms]
    report[part] = [item for item in report[part] if item['arms']]
  return report
