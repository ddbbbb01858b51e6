"""Whether artifacts on disk are those that a config asks for.

An artifact is stale if an option that decides its bytes has changed, or if
something that it is made from is stale or was made again. One function finds
that out, `states`: for every stage, the reports, `verify` and the dry run.
"""

import dataclasses
import posixpath
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, cast

from infoprune_jax.config.validation import UserError
from infoprune_jax.runtime import filesystems, manifests
from infoprune_jax.runtime.artifacts import Artifact
from infoprune_jax.runtime.manifests import Begun, Manifest
from infoprune_jax.runtime.options import Change
from infoprune_jax.runtime.progress import logger

STALE = ('refuse', 'redo')  # what to do about stale artifacts


# What becomes of an artifact when an input of it gets further shards: it is made
# again; it gets them, too; it stays, as it reads the first ones only.
STALE_THEN, GROWS, STAYS = 'stale', 'grows', 'stays'


@dataclasses.dataclass(frozen=True)
class Growth:
  """How --extend adds shards to a finished artifact."""

  may_change: Callable[[Change], bool]  # Whether an option may be another.
  # What is to be added, for the user; '' if nothing.
  pending: Callable[[Artifact, Manifest], str]


@dataclasses.dataclass(frozen=True)
class Planned:
  """An artifact that a config asks for."""

  # `inputs` holds only those that are known without the workdir.
  artifact: Artifact
  # The paths of what it is made from, by the names in its `inputs`.
  made_from: Mapping[str, str] = dataclasses.field(default_factory=dict)
  # An artifact that is stale if and only if this one is, by its path. The
  # options of a corpus decide a vocabulary, whose record has only a digest.
  stale_with: str = ''
  # Of a training run: the steps that the config asks for, None if they are not
  # known yet, and where it asks for them.
  num_steps: int | None = None
  budget_section: str = ''
  # Whether its record may have no other inputs than these.
  inputs_are_known: bool = False
  growth: Growth | None = None  # None if --extend adds no shards
  on_growth: str = STALE_THEN  # of what it is made from

  @property
  def path(self) -> str:
    """The folder of the artifact."""
    return self.artifact.path


@dataclasses.dataclass(frozen=True)
class ArtifactState:
  """What is on disk of an artifact that a config asks for."""

  path: str
  kind: str  # for the user
  record: Begun | None = None  # its manifest, or `begun.json`
  is_finished: bool = False
  # Why it is not that of the config: 'select.arms.top: fraction 0.8 -> 0.7'.
  causes: tuple[str, ...] = ()
  last_step: int = 0  # of a finished run that --extend continues
  growth: str = ''  # the shards that it is to get: 'the corpus grows by ...'
  error: str = ''  # why it cannot be compared: it is damaged


def states(
  planned: Iterable[Planned],
  *,
  extend: bool = False,
  made: Collection[str] = (),
) -> dict[str, ArtifactState]:
  """Compares artifacts with the config, by path.

  Args:
    planned: Artifacts, each after what it is made from.
    extend: Whether finished runs with fewer steps are to go on, and artifacts
      are to grow.
    made: The paths of those that are made next; only these may grow.
  """
  by_path: dict[str, ArtifactState] = {}
  coming: dict[str, tuple[str, ...]] = {}  # what will change, by path
  for one in planned:
    if one.path in by_path:
      continue
    kind = one.artifact.kind
    try:
      manifest = manifests.read_manifest(one.path, one.artifact.job)
      record = manifest or manifests.read_begun(one.path, one.artifact.job)
    except UserError as error:
      by_path[one.path] = ArtifactState(one.path, kind, error=str(error))
      continue
    if record is None:
      by_path[one.path] = ArtifactState(one.path, kind)
      continue
    growing = bool(extend and manifest and one.path in made)
    causes, growth = _causes(one, record, by_path, coming, growing)
    if growing and one.growth and not causes:
      try:
        growth = one.growth.pending(one.artifact, cast(Manifest, manifest))
      except UserError as error:
        by_path[one.path] = ArtifactState(
          one.path, kind, record, True, error=str(error)
        )
        continue
    last_step, steps_cause = _shorter(one, manifest)
    if steps_cause and extend and last_step:
      coming[one.path] = (steps_cause,)
    elif steps_cause:
      causes.append(steps_cause)
    by_path[one.path] = ArtifactState(
      one.path,
      kind,
      record,
      manifest is not None,
      tuple(dict.fromkeys(causes)),
      last_step if extend else 0,
      growth,
    )
  return by_path


def _causes(
  one: Planned,
  record: Begun,
  by_path: Mapping[str, ArtifactState],
  coming: Mapping[str, tuple[str, ...]],
  growing: bool,
) -> tuple[list[str], str]:
  """Why an artifact is stale, if it is, and which shards it lacks."""
  artifact = one.artifact
  causes = manifests.causes(
    record,
    artifact.options,
    artifact.inputs,
    artifact.sections,
    *([one.growth.may_change] if one.growth and growing else []),
  )
  grown = ''
  if one.inputs_are_known:
    others = record['inputs'].keys() - {*one.made_from, *artifact.inputs}
    causes += [f'it was made from {name}, too' for name in sorted(others)]
  if one.stale_with in by_path:
    causes += by_path[one.stale_with].causes
  for name, path in one.made_from.items():
    source = by_path.get(path)
    if source is None or source.record is None:
      continue  # It is to be made: the bytes may come out the same.
    inherited = source.causes + coming.get(path, ())
    if inherited:
      causes += inherited
    elif source.is_finished and name not in record['inputs']:
      causes.append(f'it was made without the {source.kind}')
    elif source.is_finished:
      cause, growth = _since(one, source, record['inputs'][name])
      causes += cause
      grown = grown or growth
  return causes, grown


def _since(
  one: Planned, source: ArtifactState, digest: str
) -> tuple[list[str], str]:
  """Why an artifact is stale, and which shards it lacks, due to one input.

  Args:
    one: The artifact.
    source: The input, finished and not stale.
    digest: The fingerprint of the input that the artifact was made from.
  """
  manifest = cast(Manifest, source.record)
  earlier = manifest.get('generations', [])
  known = [each['fingerprint'] for each in (*earlier, manifest)]
  if digest not in known:
    return [f'the {source.kind} was made again'], ''
  if one.on_growth == STAYS and digest == known[0]:
    return [], ''
  growth = source.growth
  if digest != known[-1]:
    before = earlier[known.index(digest)]['num_shards']
    now = cast(Any, manifest)['num_shards']
    growth = f'the {source.kind} has grown from {before} to {now} shards'
  if one.on_growth == GROWS:
    return [], growth
  return [growth] if growth else [], ''


def _shorter(one: Planned, manifest: Manifest | None) -> tuple[int, str]:
  """The last step of a run that is to be longer, and how its budget changed."""
  if manifest is None or one.num_steps is None:
    return 0, ''
  step = cast(Any, manifest)['step']
  if step == one.num_steps:
    return 0, ''
  cause = f'{one.budget_section}: num_steps {step} -> {one.num_steps}'
  return (step if step < one.num_steps else 0), cause


def upstream(
  planned: Sequence[Planned], needed: Iterable[Planned]
) -> list[Planned]:
  """Those of `planned` that `needed` are made from, and `needed`, in order."""
  paths = {one.path for one in needed}
  for one in reversed(planned):
    if one.path in paths:
      paths |= {*one.made_from.values(), one.stale_with}
  return [one for one in planned if one.path in paths]


def settle(
  planned: Sequence[Planned],
  by_path: Mapping[str, ArtifactState],
  made: Iterable[Planned],
  stale: str,
  workdir: str,
) -> None:
  """Refuses stale artifacts, or deletes them.

  Args:
    planned: Artifacts, each after what it is made from.
    by_path: The states of some of them.
    made: Those that are made next; only these are deleted.
    stale: One of `STALE`.
    workdir: Their workdir, for messages.

  Raises:
    UserError: one is stale, and may not be deleted.
  """
  paths = {one.path for one in made}
  wrong = [
    one for one in planned if one.path in by_path and by_path[one.path].causes
  ]
  others = [one for one in wrong if one.path not in paths]
  if wrong and (others or stale == 'refuse'):
    raise UserError(_refusal(others or wrong, by_path, bool(others), workdir))
  for one in wrong:
    causes = '; '.join(by_path[one.path].causes)
    logger.info('stale: %s is deleted: %s', one.path, causes)
  # What depends on others goes first: if this is interrupted, what is left is
  # still stale, for the same reasons.
  for one in reversed(wrong):
    one.artifact.delete()


def _refusal(
  wrong: Sequence[Planned],
  by_path: Mapping[str, ArtifactState],
  are_upstream: bool,
  workdir: str,
) -> str:
  """The message about stale artifacts: each cause once, with their folders."""
  folders: dict[str, list[str]] = {}
  for one in wrong:
    causes = '; '.join(by_path[one.path].causes)
    folders.setdefault(causes, []).append(posixpath.relpath(one.path, workdir))
  parts = [
    f'{causes} ({", ".join(paths[:3])}'
    + (f' and {len(paths) - 3} more)' if len(paths) > 3 else ')')
    for causes, paths in folders.items()
  ]
  jobs = dict.fromkeys(one.artifact.job for one in wrong)
  how = (
    f'run {" and ".join(f"--job={job}" for job in jobs)} with --stale=redo first'
    if are_upstream
    else 'give --stale=redo'
  )
  extend = ''
  if any('num_steps' in causes for causes in folders):
    extend += ' To continue finished runs to more steps, give --extend.'
  if any('corpus.sources' in causes for causes in folders):
    extend += ' To add documents and keep what is there, give --extend.'
  # Folders may be too many to name, but not arms.
  runs = [posixpath.relpath(one.path, workdir).split('/') for one in wrong]
  arms = sorted({names[1] for names in runs if names[0] == 'train'})
  if arms and any(' grow' in causes for causes in folders):
    parts.append(f'Trained before: {", ".join(arms)}')
  return (
    f'{workdir} holds what another config has made: {". ".join(parts)}. To '
    f'delete it and make it again, {how}.{extend} To keep it, set the options '
    'back, or use another --workdir.'
  )


@dataclasses.dataclass(frozen=True)
class StageState:
  """How far a stage is, for the dry run.

  Kinds are 'finished', 'to do', 'resumes', 'stale' (its artifacts are not those
  of this config) and 'refused' (it cannot run).
  """

  kind: str
  # Where it resumes ('at step 300'), or why it is stale or refused
  # ('select.arms.top: fraction 0.8 -> 0.7').
  reason: str = ''

  def __str__(self) -> str:
    """In words: 'stale because select.arms.top: fraction 0.8 -> 0.7'."""
    because = ' because' if self.kind in ('stale', 'refused') else ''
    return f'{self.kind}{because} {self.reason}'.strip()


def stage_state(
  own: Sequence[Planned], by_path: Mapping[str, ArtifactState]
) -> StageState:
  """The state of a stage.

  Args:
    own: Its artifacts.
    by_path: The states of these and of all that they are made from.
  """
  paths = {one.path for one in own}
  of_own = [by_path[path] for path in paths]
  others = [state for path, state in by_path.items() if path not in paths]
  for state in (*of_own, *others):
    if state.error:
      return StageState('refused', state.error)
  for kind, some in (('stale', of_own), ('refused', others)):
    causes = dict.fromkeys(cause for one in some for cause in one.causes)
    if causes:
      return StageState(kind, '; '.join(causes))
  begun = [one for one in of_own if one.record]
  ended = [
    one
    for one in begun
    if one.is_finished and not one.last_step and not one.growth
  ]
  if own and len(ended) == len(own):
    return StageState('finished')
  places = [f'after {len(ended)} of {len(own)}'] if ended else []
  places += [_place(one) for one in begun if one not in ended][:1]
  if not places:
    return StageState('to do')
  return StageState('resumes', ', '.join(filter(None, places)))


def _place(state: ArtifactState) -> str:
  """How far an artifact is that has begun."""
  if state.growth:
    return f'as {state.growth}'
  folder = posixpath.join(state.path, 'checkpoints')
  steps = [int(n) for n in filesystems.names_in(folder) if n.isdigit()]
  if steps:
    return f'at step {max(steps)}'
  shards = len(filesystems.matching(state.path, f'part-*-of-*{manifests.DONE}'))
  return f'after {shards} shards' if shards else ''
