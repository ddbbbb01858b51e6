"""Checkpoints, by Orbax: the only place that knows it.

Parameters and optimizer state are separate items, so that scoring reads the
parameters alone. It stands beside the model, below both `train`, which writes,
and `score` and `evaluate`, which read.

Before a checkpoint gets its final name, the checksums of its files are written
into it; before any of it is read back, they are compared. Orbax is asked to
delete one at a time, after `deletions` has marked it.
"""

import glob
import hashlib
import posixpath
from collections.abc import Collection, Iterator, Mapping
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from etils.epath.gpath import PosixGPath

from infoprune_jax.config.validation import UserError
from infoprune_jax.model import deletions, parameter_file
from infoprune_jax.runtime import distributed, files, filesystems, manifests
from infoprune_jax.runtime.progress import logger

RECORD = 'checksums.json'
# Orbax puts the time into it while it gives the checkpoint its name.
_TIMED = '_CHECKPOINT_METADATA'
# Copies of an array write a shard each, unless shards would be of less.
_MIN_SHARE = 1 << 20  # bytes
# Orbax takes the time from the wall clock, which an administrator may set. A
# save that hangs is for the watchdog.
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
  """A folder for Orbax, which takes '[' in its name for a pattern otherwise."""

  def glob(self, pattern: str) -> Iterator['_Folder']:
    """What matches the pattern, in a folder whose name is none."""
    literal = type(self)(glob.escape(str(self)))
    return super(_Folder, literal).glob(pattern)


def _handlers() -> Any:
  """Orbax's own, but for `_MIN_SHARE`."""
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
  ):
    """Opens the checkpoints in the folder of a run.

    Args:
      run: The run's folder.
      max_to_keep: Older ones are deleted.
      keep_every: But never those of a multiple of so many steps; 0 for none.
      writer: See `files.write_text`. Where it refuses, a checkpoint does not
        get its name.
    """
    self._run, self._writer = run, writer
    self._max_to_keep, self._keep_every = max_to_keep, keep_every
    self._saving: tuple[int, Mapping[str, Any]] = (0, {})
    self._manager = ocp.CheckpointManager(
      _Folder(_directory(run)),
      handler_registry=_handlers(),
      options=ocp.CheckpointManagerOptions(
        cleanup_tmp_directories=True,
        async_options=ocp.options.AsyncOptions(
          timeout_secs=_NEVER,
          # What makes them beside waits by the wall clock, too.
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
      step: Its number.
      items: Trees of arrays, by item name.
      facts: A JSON object to keep with them.
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
    """Adds checksums to a checkpoint that has all but its final name."""
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
    """Reads items back.

    Args:
      step: Which checkpoint, a sound one.
      items: By name, a tree of `jax.ShapeDtypeStruct` with shardings, which
        may be those of another mesh than the one that saved.

    Returns:
      The trees by name.
    """
    return _restore(self._manager, step, items)

  def wait(self) -> None:
    """Waits until everything is written, and deletes what is too old.

    Raises:
      UserError: writing took too long by the machine's clock.
    """
    try:
      self._manager.wait_until_finished()
    except TimeoutError as error:
      raise UserError(
        f'The checkpoint of step {self._saving[0]} in {_directory(self._run)} '
        f'was not written in time ({error}): look whether this '
        "machine's clock jumped, and run it again; it goes on from the "
        'checkpoint before.'
      ) from None
    directory = _directory(self._run)
    for step in sorted(self._manager.all_steps())[: -self._max_to_keep]:
      if self._keep_every and step % self._keep_every == 0:
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
    'again: it goes on from the checkpoint before, or from the start.'
  )
  record = files.read_record(f'{folder}/{RECORD}', repair_hint)
  if record is None:
    raise UserError(f'{folder}/{RECORD} is missing. {repair_hint}')
  for name, facts in record['files'].items():
    item = name.partition('/')[0]
    if item in items or item == name:  # Of Orbax itself, at the top.
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
  """The steps of which a run has a checkpoint, ascending.

  Not those of one that is being written or deleted.
  """
  names = {*filesystems.names_in(_directory(run))} - {*leftovers(run)}
  return sorted(
    int(name)
    for name in names
    if name.isdigit() and _is_complete(f'{_directory(run)}/{name}')
  )


def _is_complete(folder: str) -> bool:
  """Whether Orbax finished it: an object store has no name to show that."""
  return filesystems.is_local(folder) or ocp.utils.is_checkpoint_finalized(
    folder
  )


def leftovers(run: str) -> list[str]:
  """What a kill left of checkpoints that were being deleted, by name."""
  return deletions.marked(_directory(run))


def delete_leftovers(run: str) -> None:
  """Deletes what a kill left of checkpoints that were being deleted."""
  for name in leftovers(run):
    logger.info('The rest of %s/%s is deleted', _directory(run), name)
    deletions.finish(_directory(run), name)


def check_step(run: str, step: int) -> None:
  """Raises `UserError` unless a run has a checkpoint of this step."""
  if step not in (there := steps(run)):
    raise UserError(
      f'{_directory(run)} has no checkpoint of step {step}; there are: '
      f'{there}. training.checkpoint_every and training.max_checkpoints say '
      'which are kept.'
    )


def newest_sound(
  run: str, items: Collection[str], job: str
) -> tuple[int, dict[str, Any]]:
  """The newest checkpoint whose files are as they were written.

  What is damaged is put aside, with an error in the log.

  Args:
    run: The run's folder.
    items: Names of what will be read of it.
    job: The stage that trains, for the message.

  Returns:
    Its step, 0 for none, and the facts that were saved with it.
  """
  for step in reversed(steps(run)):
    try:
      return step, _verify(run, step, items, job)
    except UserError as error:
      aside = f'{_directory(run)}/damaged-{step}'
      logger.error(
        'The checkpoint of step %d is put aside, as %s, and the one before it '
        'is used: %s',
        step,
        aside,
        str(error).partition(' Delete ')[0],
      )
      filesystem, root = filesystems.filesystem_of(_directory(run))
      if filesystem.exists(f'{root}/damaged-{step}'):
        filesystem.rm(f'{root}/damaged-{step}', recursive=True)
      filesystem.mv(f'{root}/{step}', f'{root}/damaged-{step}', recursive=True)
  return 0, {}


def load_params(run: str, step: int, abstract: Any) -> Any:
  """The parameters alone of a finished run, onto `abstract`'s shardings.

  Args:
    run: Its folder.
    step: One that it has kept.
    abstract: A tree of `jax.ShapeDtypeStruct` with shardings.

  Raises:
    UserError: there is no such checkpoint, or it is damaged, or holds other
      parameters than the manifest of the run says, or of other shapes.
  """
  manifest = cast(
    RunManifest, manifests.open_finished(run, 'training run', 'train')
  )
  check_step(run, step)
  # A reader leaves alone what a trainer may be writing there.
  options = ocp.CheckpointManagerOptions(create=False)
  manager = ocp.CheckpointManager(_Folder(_directory(run)), options=options)
  try:
    distributed.on_first(
      'the checksums of a checkpoint',
      lambda: _verify(run, step, {'params'}, manifest['job']),
    )
    _check_shapes(_Folder(f'{_directory(run)}/{step}/params'), abstract)
    params = _restore(manager, step, {'params': abstract})['params']
  finally:
    manager.close()
  if step != manifest['step']:  # The manifest says no more of the others.
    return params
  digest = params_hash(params)
  if digest != manifest['params_hash']:
    raise UserError(
      f'The parameters of step {step} in {_directory(run)} have the hash '
      f'{digest}, the manifest of {run} says {manifest["params_hash"]}. Delete '
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


def params_hash(params: Any) -> str:
  """A digest of the names, shapes, dtypes and values of a tree of arrays.

  The same on any mesh: each device adds up what it holds, and nothing is
  gathered.
  """
  digest = hashlib.sha256()
  for path, leaf in jax.tree_util.tree_leaves_with_path(params):
    name = jax.tree_util.keystr(path)
    digest.update(f'{name} {leaf.shape} {leaf.dtype}\n'.encode())
    digest.update(np.asarray(_sums(leaf)).tobytes())
  return digest.hexdigest()[:16]


@jax.jit
def _sums(x: jax.Array) -> jax.Array:
  """Two sums over mixed bits and places, [2] uint32: in any order the same."""
  width = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}[x.dtype.itemsize]
  bits = jax.lax.bitcast_convert_type(x, width).astype(jnp.uint32)
  place = jnp.zeros(x.shape, jnp.uint32)
  for axis, size in enumerate(x.shape):
    along = jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis)
    place = place * jnp.uint32(size) + along
  return jnp.stack(
    [
      jnp.sum(_mix(bits ^ _mix(place + jnp.uint32(seed))), dtype=jnp.uint32)
      for seed in (1, 2**31)
    ]
  )


def _mix(x: jax.Array) -> jax.Array:
  """Spreads each bit of an uint32 over all (MurmurHash3's finalizer)."""
  for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
    x = (x ^ (x >> shift)) * jnp.uint32(factor)
  return x ^ (x >> 16)
