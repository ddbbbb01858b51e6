"""What the report on selections shows, as one plain dict: `selections.json`."""

import json
from collections.abc import Mapping
from typing import Any

from infoprune_jax.config.experiment import Config
from infoprune_jax.config.validation import UserError
from infoprune_jax.report import provenance, selections
from infoprune_jax.report.selection_inputs import Selected
from infoprune_jax.runtime import artifacts, files, manifests
from infoprune_jax.runtime.options import first_difference, options_of
from infoprune_jax.runtime.workdir import selection_report_dir

FILE = 'selections.json'


def gather(config: Config, workdir: str, selected: Selected) -> dict[str, Any]:
  """Computes the report.

  Raises:
    UserError: an artifact is missing, damaged or another's.
  """
  return {
    **provenance.gather(config, workdir, selected),
    **selections.gather(config, workdir, selected),
  }


def artifact(
  config: Config, workdir: str, selected: Selected
) -> artifacts.Artifact:
  """The report as an artifact, and what it is made from."""
  report = options_of(config.report)
  return artifacts.Artifact(
    path=selection_report_dir(workdir),
    kind='selection report',
    job='selection_report',
    options={
      'arms': {arm: config.select.arms[arm] for arm in config.arms},
      'seeds': list(config.train.seeds),
      'num_examples': report['num_examples'],
      'kinds': report['kinds'],
    },
    inputs=selected.fingerprints,
  )


def open_report(
  config: Config, workdir: str, selected: Selected
) -> manifests.Manifest:
  """The manifest of the report in a workdir.

  Raises:
    UserError: it is not there, or of another config or other artifacts.
  """
  here = artifact(config, workdir, selected)
  manifest = manifests.open_finished(here.path, here.kind, here.job)
  for section in ('options', 'inputs'):
    difference = first_difference(
      manifest[section], getattr(here, section), section
    )
    if difference:
      raise UserError(
        f'The {here.kind} in {here.path} is of another config or of other '
        f'artifacts: {difference}. Run --job={here.job} again: it is made anew.'
      )
  return manifest


def read(workdir: str, manifest: Mapping[str, Any]) -> dict[str, Any]:
  """What `gather` found, as the stage wrote it.

  Raises:
    UserError: it is missing or damaged.
  """
  path = selection_report_dir(workdir)
  file = manifests.verified(path, manifest, FILE)
  return json.loads(files.read_bytes(file))
