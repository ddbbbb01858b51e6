"""What holds for every artifact: records, checksums, what it was made from."""

import dataclasses
import json
import posixpath
from collections.abc import Iterator
from typing import Any

from infoprune_jax.config.validation import UserError
from infoprune_jax.runtime import artifacts, checksums, files, filesystems
from infoprune_jax.runtime.options import first_difference
from infoprune_jax.selection import keep_set

_COUNTS = ('num_documents', 'num_examples', 'num_tokens', 'step', 'tokens')


@dataclasses.dataclass(frozen=True)
class Found:
  """An artifact, and its manifest where it is finished and sound."""

  path: str
  kind: str
  job: str
  manifest: dict[str, Any] | None
  num_files: int  # those that the manifest and the markers name
  note: str = ''

  def summary(self) -> str:
    """What it is, in a few words."""
    if self.manifest is None:
      files_checked = f'{self.num_files} files checked'
      return f'{self.kind}, not finished, {files_checked}{self.note}'
    counts = ''.join(
      f', {name.removeprefix("num_")} {self.manifest[name]:,}'
      for name in _COUNTS
      if name in self.manifest
    )
    fingerprint = self.manifest['fingerprint']
    size = f', {self.num_files} files' if self.num_files else ''
    return f'{self.kind} {fingerprint}{size}{counts}{self.note}'

  def repair_hint(self, name: str = artifacts.MANIFEST) -> str:
    """What to do about a file with the wrong content."""
    return checksums.how_to_repair(self.path, name, self.job)

  def remake(self) -> str:
    """What to do where all of it is wrong."""
    return f'Delete {self.path} and run --job={self.job} again.'


def open_artifact(path: str, kind: str, job: str) -> tuple[Found, list[str]]:
  """Reads the manifest, and compares every file with its checksum."""
  problems: list[str] = []
  manifest = None
  try:
    manifest = artifacts.read_manifest(path, job)
  except UserError as error:
    problems.append(str(error))
  found = Found(path, kind, job, manifest, 0)
  try:
    if manifest is not None:
      problems.extend(_record_problems(found))  # Keeps those before an error.
    elif not problems:
      _begun(found)
  except UserError as error:
    problems.append(str(error))
  expected = _expected_files(found, problems)
  for name, facts in expected.items():
    try:
      checksums.verify(path, name, facts, found.repair_hint(name))
    except UserError as error:
      problems.append(str(error))
  return dataclasses.replace(found, num_files=len(expected)), problems


def _record_problems(found: Found) -> Iterator[str]:
  """The fingerprint is that of the content, and begun as it is finished."""
  manifest = found.manifest
  decisive = {
    **{
      name: manifest[name]
      for name in ('kind', 'format_version', 'options', 'inputs')
    },
    'files': {name: f['sha256'] for name, f in manifest['files'].items()},
  }
  expected = artifacts.fingerprint(decisive)
  if manifest['fingerprint'] != expected:
    yield (
      f'{found.path}/{artifacts.MANIFEST} has the fingerprint '
      f'{manifest["fingerprint"]}, its content gives {expected}. '
      f'{found.repair_hint()}'
    )
  begun = _begun(found)
  for section in ('options', 'inputs') if begun else ():
    difference = first_difference(manifest[section], begun[section], section)
    if difference:
      yield (
        f'{found.path} was begun as another than it was finished: its '
        f'manifest, held to {artifacts.BEGUN}, differs: {difference}. '
        f'{found.remake()}'
      )


def _begun(found: Found) -> dict[str, Any] | None:
  """What an artifact was begun as; None where nothing says so."""
  return artifacts.read_begun(found.path, found.job)


def _expected_files(
  found: Found, problems: list[str]
) -> dict[str, dict[str, Any]]:
  """The files that the manifest and the markers of shards name."""
  manifest = found.manifest or {'files': {}}
  # A run's manifest names the hash of its parameters, which are no file.
  expected = {n: f for n, f in manifest['files'].items() if 'bytes' in f}
  markers = filesystems.matching(found.path, f'part-*-of-*{artifacts.DONE}')
  for marker in markers:
    name = posixpath.basename(marker)
    try:
      record = files.read_record(
        f'{found.path}/{name}', found.repair_hint(name)
      )
    except UserError as error:
      problems.append(str(error))
      continue
    for file, facts in record['files'].items():
      if expected.setdefault(file, facts) != facts:
        problems.append(
          f'{found.path}/{name} and the manifest differ about {file}: '
          f'{facts["sha256"][:16]} and {expected[file]["sha256"][:16]}. '
          f'{found.repair_hint(name)}'
        )
  shards = manifest.get('num_shards')
  if markers and shards is not None and len(markers) != shards:
    problems.append(
      f'{found.path} has {len(markers)} markers of shards, its manifest says '
      f'{shards} shards. {found.repair_hint()}'
    )
  return expected


def input_problems(found: Found, workdir: str) -> Iterator[str]:
  """What an artifact was made from is what is in the workdir."""
  inputs = json.loads(json.dumps(found.manifest['inputs']))
  for name, path in _input_paths(found, workdir).items():
    if name not in inputs:
      continue
    try:
      source = artifacts.read_manifest(path, found.job)
    except UserError:  # Its own line says so.
      continue
    if source is None:
      continue
    if inputs[name] != source['fingerprint']:
      yield (
        f'{found.path} was made from {name} {inputs[name]}, but {path} has '
        f'{source["fingerprint"]}. {found.remake()}'
      )


def _input_paths(found: Found, workdir: str) -> dict[str, str]:
  """Where the inputs are that lie in the same workdir."""
  paths = {
    'token_store': artifacts.token_store_dir(workdir),
    'scores': artifacts.scores_dir(workdir),
    'statistics': artifacts.statistics_dir(workdir),
    'near_duplicates': artifacts.near_duplicates_dir(workdir),
    'reference': artifacts.reference_dir(workdir),
    **{
      artifacts.reference_input(fold, 2): artifacts.reference_dir(
        workdir, fold, 2
      )
      for fold in range(2)
    },
  }
  arm, seed = found.path.split('/')[-2:]
  if found.job == 'train':
    paths['keep_set'] = selection_dir(workdir, arm, seed)
  if found.job == 'evaluate':
    paths['run'] = artifacts.run_dir(workdir, arm, seed.removeprefix('seed-'))
  if found.job == 'export':
    for name in found.manifest['inputs']:
      folder, _, selection = name.partition('/')
      if folder == 'keep_set':
        paths[name] = artifacts.keep_set_dir(workdir, selection)
  if found.job in ('report', 'selection_report'):
    return {}  # They are made anew each time.
  return paths


def selection_dir(workdir: str, arm: str, seed: str) -> str:
  """The keep set of a run: drawn for its seed, or the arm's one."""
  drawn = artifacts.keep_set_dir(workdir, f'{arm}-{seed}')
  filesystem, name = filesystems.filesystem_of(drawn)
  if filesystem.exists(f'{name}/{keep_set.FILE}'):
    return drawn
  return artifacts.keep_set_dir(workdir, arm)
