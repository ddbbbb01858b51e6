"""The selection report as an artifact that the report of trained arms reads."""

import json
from collections.abc import Mapping
from typing import Any

from infoprune_jax.config.experiment import Config
from infoprune_jax.config.validation import UserError
from infoprune_jax.report.selection.inputs import Selected
from infoprune_jax.runtime import artifacts, files, manifests
from infoprune_jax.runtime.options import first_difference, options_of
from infoprune_jax.runtime.workdir import selection_report_dir

FILE = 'selections.json'


def describe(
  config: Config, workdir: str, selected: Selected
) -> artifacts.Artifact:
  """The artifact: its folder, its options and its inputs."""
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
  """The manifest of the selection report in a workdir.

  Raises:
    UserError: it is missing, or made from another config or other artifacts.
  """
  here = describe(config, workdir, selected)
  manifest = manifests.open_finished(here.path, here.kind, here.job)
  for section in ('options', 'inputs'):
    difference = first_difference(
      manifest[section], getattr(here, section), section
    )
    if difference:
      raise UserError(
        f'The {here.kind} in {here.path} was made from another config or other '
        f'artifacts: {difference}. Run --job={here.job} again.'
      )
  return manifest


def read(workdir: str, manifest: Mapping[str, Any]) -> dict[str, Any]:
  """The content of `selections.json`.

  Raises:
    UserError: the file is missing or damaged.
  """
  path = selection_report_dir(workdir)
  file = manifests.verified(path, manifest, FILE)
  return json.loads(files.read_bytes(file))
