"""The job that checks all artifacts of a workdir, and changes nothing."""

import dataclasses
import fnmatch
import posixpath
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

from infoprune_jax.config.validation import UserError
from infoprune_jax.runtime import distributed, filesystems, manifests
from infoprune_jax.runtime.workdir import DATA
from infoprune_jax.verify import artifacts, documents, keep_sets, runs, tables
from infoprune_jax.verify.artifacts import ArtifactStatus

# Folder below the workdir, the stage that writes it, its kind, its checks.
_KINDS: tuple[
  tuple[str, str, str, Callable[[ArtifactStatus, str], Iterator[str]] | None],
  ...,
] = (
  ('vocabulary', 'tokenize', 'vocabulary', None),
  ('token_store', 'tokenize', 'token store', documents.problems),
  (
    'statistics',
    'statistics',
    'table of statistics',
    tables.statistics_problems,
  ),
  (
    'near_duplicates',
    'near_duplicates',
    'table of near-duplicates',
    tables.near_duplicates_problems,
  ),
  (
    'heldout_copies',
    'near_duplicates',
    'table of near-copies',
    tables.heldout_copies_problems,
  ),
  (
    'duplicated_text',
    'duplicated_text',
    'table of duplicated text',
    tables.duplicated_text_problems,
  ),
  (
    'contamination',
    'decontaminate',
    'table of contamination',
    tables.contamination_problems,
  ),
  ('contamination/ngrams', 'decontaminate', 'n-grams of benchmarks', None),
  ('tables/*', 'join', 'joined table', tables.joined_problems),
  (
    'classifiers/*',
    'classify',
    'table of a classifier',
    tables.classifier_problems,
  ),
  ('classifiers/*/model', 'classify', 'classifier', None),
  ('reference', 'reference', 'reference model', runs.problems),
  ('reference/fold-*', 'reference', 'reference model', runs.problems),
  ('scores', 'score', 'score table', tables.score_problems),
  ('own_scores/*/seed-*', 'own_scores', 'score table', tables.score_problems),
  ('keep_sets/*', 'select', 'keep set', keep_sets.problems),
  ('selection_report', 'selection_report', 'selection report', None),
  ('train/*/seed-*', 'train', 'training run', runs.problems),
  ('evaluate/*/seed-*', 'evaluate', 'evaluation', tables.loss_problems),
  ('tasks/*/seed-*', 'evaluate', 'results of tasks', None),
  ('report', 'report', 'report', None),
  ('labels/*/token_store', 'labels', 'token store', documents.problems),
  (
    'labels/*/statistics',
    'labels',
    'table of statistics',
    tables.statistics_problems,
  ),
  ('labels/*/scores', 'labels', 'score table', tables.score_problems),
  ('labels/*/auc', 'labels', 'figures of labelled pages', None),
  ('export/*/*', 'export', 'export', None),
)
_COMPARED = (
  'statistics',
  'near_duplicates',
  'duplicated_text',
  'decontaminate',
  'join',
  'classify',
  'score',
  'own_scores',
  'select',
  'evaluate',
)  # with the token store
_WAIT = 7 * 24 * 3600  # seconds: process 0 reads every byte of a large corpus


def run(workdir: str, stale: Mapping[str, Sequence[str]]) -> None:
  """Prints a line for each artifact of a workdir.

  Process 0 does it; the other processes of a job wait.

  Args:
    workdir: What to check.
    stale: Why artifacts are not those of the config, by path.

  Raises:
    UserError: there are problems; each has been printed.
  """
  if distributed.index() == 0:
    _run(workdir, stale)
  distributed.barrier('the end of verifying', _WAIT)


def _run(workdir: str, stale: Mapping[str, Sequence[str]]) -> None:
  checked = wrong = 0
  for status, problems in check(workdir, stale):
    checked += 1
    causes = stale.get(status.path, ())
    wrong += bool(problems or causes)
    name = posixpath.relpath(status.path, workdir)
    state = 'ok' if status.manifest else 'begun'
    state = 'WRONG' if problems else 'STALE' if causes else state
    print(f'{state:6} {name}: {status.summary()}', flush=True)
    for problem in (*problems, *causes):
      print(f'       {problem}', flush=True)
  if not checked:
    raise UserError(f'There is no artifact in {workdir}.')
  if wrong:
    raise UserError(
      f'{wrong} of {checked} artifacts in {workdir} are wrong'
      f'{" or stale" if stale else ""}: see above.'
    )


def check(
  workdir: str, stale: Collection[str] = ()
) -> Iterator[tuple[ArtifactStatus, list[str]]]:
  """Yields each artifact of a workdir, with its problems.

  Args:
    workdir: What to check.
    stale: Paths of artifacts that are not compared with their inputs.
  """
  sound = True  # the token store, which others are compared with
  for pattern, job, kind, content in _KINDS:
    for path in filesystems.matching(workdir, pattern):
      if not _is_artifact(path):
        continue
      # Labelled pages have a workdir of their own.
      home = posixpath.dirname(path) if job == 'labels' else workdir
      status, problems = artifacts.open_artifact(path, kind, job)
      if content is runs.problems:
        status = dataclasses.replace(status, note=runs.note(path))
      # A wrong checksum already explains wrong content.
      if status.manifest and not problems:
        if path not in stale:
          problems += _problems(artifacts.input_problems(status, home))
        if job in _COMPARED and not sound:
          status = dataclasses.replace(
            status, note=', not compared with the token store, which is wrong'
          )
        elif content:
          problems += _problems(content(status, home))
      sound = sound and not (problems and pattern == 'token_store')
      yield status, problems


def _is_artifact(folder: str) -> bool:
  """Whether a folder holds a manifest, the beginning of one, or shards."""
  names = filesystems.names_in(folder)
  own = {manifests.MANIFEST, manifests.BEGUN, DATA}
  return bool(own.intersection(names) or fnmatch.filter(names, 'part-*'))


def _problems(checks: Iterator[str]) -> list[str]:
  """All problems; a file that cannot be read ends the checks of an artifact."""
  problems = []
  try:
    problems.extend(checks)  # Keeps those before an error.
  except UserError as error:
    problems.append(str(error))
  return problems
