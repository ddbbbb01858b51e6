"""Checkpoints, written by Orbax, which only this module uses.

Parameters and optimizer state are separate items, so that scoring reads only
the parameters. `train` writes checkpoints; `score` and `evaluate` read them.

Before a checkpoint gets its final name, the checksums of its files are written
into it. They are compared before any file is read back. Orbax deletes one
checkpoint at a time, after `deletions` has marked it.
"""

import contextlib
import glob
import posixpath
from collections.abc import Collection, Iterator, Mapping
from typing import Any, cast

import jax
import orbax.checkpoint as ocp
from etils.epath.gpath import PosixGPath

from infoprune_jax.config.validation import UserError
from infoprune_jax.model import deletions, digests, parameter_file
from infoprune_jax.runtime import distributed, files, filesystems, manifests
from infoprune_jax.runtime.progress import logger

RECORD = 'checksums.json'
# Orbax writes the time into this file while it renames the checkpoint.
_TIMED = '_CHECKPOINT_METADATA'
# Each copy of an array writes one shard of it, unless shards would be smaller.
_MIN_SHARE = 1 << 20  # bytes
# Orbax reads the wall clock, which an administrator may set. The watchdog ends
# a save that hangs.
_NEVER = 100 * 365 * 24 * 3600  # seconds


def _directory(run: str) -> str:
  return filesystems.canonical(f'{run}/checkpoints')


class RunManifest(manifests.Manifest):
  """A finished training run."""

  step: int  # of the last checkpoint
  params_hash: str
  metrics: files.FileFacts  # of metrics.jsonl
  num_params: int
  vocabulary: str  # its hash
  vocab_size: int
  tokens: int
  flops: float


class _Folder(PosixGPath):
  """A folder for Orbax, which would take '[' in its name for a pattern."""

  def is_dir(self) -> bool:
    """Asks twice: an old listing of an object store lacks new folders."""
    is_folder = super().is_dir()
    if not is_folder and not filesystems.is_local(str(self)):
      is_folder = super().is_dir()
    return is_folder

  def glob(self, pattern: str) -> Iterator['_Folder']:
    """The matches of the pattern; the folder's own name is not a pattern."""
    literal = type(self)(glob.escape(str(self)))
    return super(_Folder, literal).glob(pattern)


def _handlers() -> Any:
  """Orbax's handlers, with `_MIN_SHARE`."""
  arrays = ocp.type_handlers.ArrayHandler(
    min_slice_bytes_for_replica_parallel=_MIN_SHARE
  )
  registry = ocp.handlers.DefaultCheckpointHandlerRegistry()
  registry.add(
    None,
    ocp.args.PyTreeSave,
    ocp.PyTreeCheckpointHandler(
      type_handler_registry=ocp.type_handlers.create_type_handler_registry(
        (jax.Array, arrays)
      )
    ),
  )
  registry.add(None, ocp.args.StandardRestore)
  return registry


class Checkpoints:
  """Saves and restores the state of one training run."""

  def __init__(
    self,
    run: str,
    max_to_keep: int,
    keep_every: int = 0,
    writer: files.Writer = files.write_file,
    keep_step: int = 0,
    keep_steps: Collection[int] = (),
  ):
    """Opens the checkpoints in the folder of a run.

    Args:
      run: The run's folder.
      max_to_keep: The number of newest checkpoints to keep.
      keep_every: Also keep multiples of this many steps; 0 for none.
      writer: See `files.write_text`. If it raises, the checkpoint does not get
        its final name.
      keep_step: Also keep this step, until the attribute is set to 0.
      keep_steps: Also keep these steps.
    """
    self._run, self._writer, self.keep_step = run, writer, keep_step
    self._max_to_keep, self._keep_every = max_to_keep, keep_every
    self._keep_steps = keep_steps
    self._saving: tuple[int, Mapping[str, Any]] = (0, {})
    self._manager = ocp.CheckpointManager(
      _Folder(_directory(run)),
      handler_registry=_handlers(),
      options=ocp.CheckpointManagerOptions(
        cleanup_tmp_directories=True,
        async_options=ocp.options.AsyncOptions(
          timeout_secs=_NEVER,
          # The alternative also waits by the wall clock.
          create_directories_asynchronously=False,
          post_finalization_callback=self._write_record,
        ),
      ),
    )

  def save(
    self,
    step: int,
    items: Mapping[str, Any],
    facts: Mapping[str, Any] | None = None,
  ) -> None:
    """Starts to write a checkpoint; a step is written once.

    Args:
      step: The step of the checkpoint.
      items: Trees of arrays, by item name.
      facts: A JSON object to store with the items.
    """
    if step in self._manager.all_steps():
      return
    self.wait()
    self._saving = step, facts or {}
    self._manager.save(
      step,
      args=ocp.args.Composite(
        **{name: ocp.args.PyTreeSave(tree) for name, tree in items.items()}
      ),
    )

  def _write_record(self) -> None:
    """Adds checksums to a checkpoint that lacks only its final name."""
    if distributed.index():
      return
    step, facts = self._saving
    root = _directory(self._run)
    being_named = filesystems.matching(root, f'{step}.*')
    filesystem, folder = filesystems.filesystem_of(
      being_named[0] if being_named else f'{root}/{step}'
    )
    written = {}
    for path in sorted(filesystem.find(folder)):
      if posixpath.basename(path) == _TIMED:
        continue
      local = filesystems.local_copy(filesystem.unstrip_protocol(path))
      written[posixpath.relpath(path, folder)] = files.facts_of(local)
    record = filesystem.unstrip_protocol(f'{folder}/{RECORD}')
    files.write_record(record, {'facts': facts, 'files': written}, self._writer)

  def restore(self, step: int, items: Mapping[str, Any]) -> dict[str, Any]:
    """Reads items back, as trees by name.

    Args:
      step: The step of an undamaged checkpoint.
      items: By name, a tree of `jax.ShapeDtypeStruct` with shardings, also of
        another mesh than that of the save.
    """
    return _restore(self._manager, step, items)

  def wait(self) -> None:
    """Waits until everything is written, and deletes old checkpoints.

    Raises:
      UserError: writing took too long by the machine's clock.
    """
    try:
      self._manager.wait_until_finished()
    except TimeoutError as error:
      raise UserError(
        f'The checkpoint of step {self._saving[0]} in {_directory(self._run)} '
        f'was not written in time ({error}): check whether the clock of this '
        'machine jumped, and run it again; it continues from the checkpoint '
        'before.'
      ) from None
    directory = _directory(self._run)
    for step in sorted(self._manager.all_steps())[: -self._max_to_keep]:
      is_multiple = self._keep_every and step % self._keep_every == 0
      if is_multiple or step in (self.keep_step, *self._keep_steps):
        continue
      if distributed.index() == 0:
        deletions.mark(directory, str(step))
      self._manager.delete(step)
      if distributed.index() == 0:
        deletions.finish(directory, str(step))

  def close(self) -> None:
    """Waits until everything is written, and closes."""
    self.wait()
    self._manager.close()


def _verify(
  run: str, step: int, items: Collection[str], job: str
) -> dict[str, Any]:
  """Compares the files of items with their checksums; returns the facts."""
  folder = f'{_directory(run)}/{step}'
  repair_hint = (
    f'Delete {folder} and {run}/{manifests.MANIFEST} and run --job={job} '
    'again: it continues from the checkpoint before, or from the start.'
  )
  record = files.read_record(f'{folder}/{RECORD}', repair_hint)
  if record is None:
    raise UserError(f'{folder}/{RECORD} is missing. {repair_hint}')
  for name, facts in record['files'].items():
    item = name.partition('/')[0]
    if item in items or item == name:  # Files of Orbax are at the top.
      manifests.verify(folder, name, facts, repair_hint)
  return record['facts']


def _restore(
  manager: ocp.CheckpointManager, step: int, items: Mapping[str, Any]
) -> dict[str, Any]:
  restored = manager.restore(
    step,
    args=ocp.args.Composite(
      **{name: ocp.args.StandardRestore(tree) for name, tree in items.items()}
    ),
  )
  return {name: restored[name] for name in items}


def steps(run: str) -> list[int]:
  """The steps of the checkpoints of a run, ascending.

  Checkpoints that are being written or deleted are left out.
  """
  names = {*filesystems.names_in(_directory(run))} - {*leftovers(run)}
  return sorted(
    int(name)
    for name in names
    if name.isdigit() and _is_complete(f'{_directory(run)}/{name}')
  )


def _is_complete(folder: str) -> bool:
  """Whether Orbax finished a checkpoint; names do not show it in a store."""
  return filesystems.is_local(folder) or ocp.utils.is_checkpoint_finalized(
    folder
  )


def leftovers(run: str) -> list[str]:
  """The names of checkpoints whose deletion was interrupted."""
  return deletions.marked(_directory(run))


def delete_leftovers(run: str) -> None:
  """Finishes interrupted deletions of checkpoints."""
  for name in leftovers(run):
    logger.info('%s/%s: deleted what a stopped job left', _directory(run), name)
    deletions.finish(_directory(run), name)


def check_step(run: str, step: int) -> None:
  """Raises `UserError` unless a run has a checkpoint of this step."""
  if step not in (there := steps(run)):
    raise UserError(
      f'{_directory(run)} has no checkpoint of step {step}; it has: '
      f'{there}. training.checkpoint_every and training.max_checkpoints decide '
      'which checkpoints are kept.'
    )


def newest_sound(
  run: str, items: Collection[str], job: str
) -> tuple[int, dict[str, Any]]:
  """The newest undamaged checkpoint.

  Damaged checkpoints are renamed, with an error in the log.

  Args:
    run: The run's folder.
    items: Names of the items to read.
    job: The stage that trains, for the message.

  Returns:
    The step, 0 for none, and the facts that were saved with the checkpoint.
  """
  for step in reversed(steps(run)):
    try:
      return step, _verify(run, step, items, job)
    except UserError as error:
      aside = f'{_directory(run)}/damaged-{step}'
      logger.error(
        'The checkpoint of step %d is damaged. It is renamed to %s, and the one '
        'before is used: %s',
        step,
        aside,
        str(error).partition(' Delete ')[0],
      )
      filesystem, root = filesystems.filesystem_of(_directory(run))
      if filesystem.exists(f'{root}/damaged-{step}'):
        filesystem.rm(f'{root}/damaged-{step}', recursive=True)
      filesystem.mv(f'{root}/{step}', f'{root}/damaged-{step}', recursive=True)
  return 0, {}


def read(
  run: str, step: int, items: Mapping[str, Any], job: str
) -> tuple[dict[str, Any], dict[str, Any]]:
  """Reads items of a checkpoint of any run, 'params' among them.

  Args:
    run: The run's folder; another process may be training it.
    step: The step of a kept checkpoint.
    items: As for `Checkpoints.restore`.
    job: The stage that trains it.

  Returns:
    The items, and the facts that were saved with them.

  Raises:
    UserError: the checkpoint is missing or damaged, or has other shapes.
  """
  check_step(run, step)
  # A reader must not touch files that a trainer may be writing.
  options = ocp.CheckpointManagerOptions(create=False)
  manager = ocp.CheckpointManager(_Folder(_directory(run)), options=options)
  with contextlib.closing(manager):
    facts = distributed.on_first(
      'the checksums of a checkpoint', lambda: _verify(run, step, items, job)
    )
    folder = _Folder(f'{_directory(run)}/{step}/params')
    _check_shapes(folder, items['params'])
    return _restore(manager, step, items), facts


def load_params(run: str, step: int, abstract: Any) -> Any:
  """Reads only the parameters of a finished run.

  Args:
    run: The run's folder.
    step: The step of a kept checkpoint.
    abstract: A tree of `jax.ShapeDtypeStruct` with the shardings to read to.

  Raises:
    UserError: the checkpoint is missing or damaged, or its parameters have
      other values than in the manifest of the run, or other shapes.
  """
  manifest = cast(
    RunManifest, manifests.open_finished(run, 'training run', 'train')
  )
  params = read(run, step, {'params': abstract}, manifest['job'])[0]['params']
  if step != manifest['step']:  # The manifest has only the hash of the last.
    return params
  digest = digests.params_hash(params)
  if digest != manifest['params_hash']:
    raise UserError(
      f'The parameters of step {step} in {_directory(run)} have the hash '
      f'{digest}, but the manifest of {run} says {manifest["params_hash"]}. Delete '
      f'{run} and run --job={manifest["job"]} again.'
    )
  return params


def _check_shapes(path: _Folder, abstract: Any) -> None:
  """Raises `UserError` unless a checkpoint holds arrays of these shapes."""
  there = ocp.PyTreeCheckpointHandler().metadata(path).tree
  shapes = parameter_file.names_of(there)
  parameter_file.check_shapes(
    str(path),
    {name: tuple(leaf.shape) for name, leaf in shapes.items()},
    abstract,
  )
