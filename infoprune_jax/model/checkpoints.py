"""Checkpoints, by Orbax: the only place that knows it.

Parameters and optimizer state are separate items, so that scoring reads the
parameters alone. It stands beside the model, below both `train`, which writes,
and `score` and `evaluate`, which read.
"""

import hashlib
import os
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from infoprune_jax import files
from infoprune_jax.config import UserError


def _directory(run: str) -> str:
  path = f'{run}/checkpoints'
  return os.path.abspath(path) if files.is_local(path) else path


class Checkpoints:
  """Saves and restores the state of one training run."""

  def __init__(self, run: str, max_to_keep: int):
    """Opens the checkpoints in the folder of a run.

    Args:
      run: The run's folder.
      max_to_keep: Older ones are deleted.
    """
    self._manager = ocp.CheckpointManager(
      _directory(run),
      options=ocp.CheckpointManagerOptions(
        max_to_keep=max_to_keep, cleanup_tmp_directories=True
      ),
    )

  def latest_step(self) -> int | None:
    """The newest complete checkpoint's step, or None."""
    return self._manager.latest_step()

  def save(self, step: int, items: Mapping[str, Any]) -> None:
    """Starts to write trees of arrays, by item name; a step is written once."""
    if step in self._manager.all_steps():
      return
    self._manager.save(
      step,
      args=ocp.args.Composite(
        **{name: ocp.args.StandardSave(tree) for name, tree in items.items()}
      ),
    )

  def restore(self, step: int, items: Mapping[str, Any]) -> dict[str, Any]:
    """Reads items back.

    Args:
      step: Which checkpoint.
      items: By name, a tree of `jax.ShapeDtypeStruct` with shardings, which
        may be those of another mesh than the one that saved.
    """
    restored = self._manager.restore(
      step,
      args=ocp.args.Composite(
        **{name: ocp.args.StandardRestore(t) for name, t in items.items()}
      ),
    )
    return {name: restored[name] for name in items}

  def close(self) -> None:
    """Waits until everything is written."""
    self._manager.wait_until_finished()
    self._manager.close()


def load_params(run: str, step: int, abstract: Any) -> Any:
  """The parameters alone of a run's checkpoint, onto `abstract`'s shardings.

  Raises:
    UserError: there is no such checkpoint.
  """
  checkpoints = Checkpoints(run, max_to_keep=1000)
  try:
    if step not in checkpoints._manager.all_steps():
      raise UserError(
        f'{_directory(run)} has no checkpoint of step {step}, which the '
        f'manifest of {run} names (there are: '
        f'{sorted(checkpoints._manager.all_steps())}).'
      )
    return checkpoints.restore(step, {'params': abstract})['params']
  finally:
    checkpoints.close()


def params_hash(params: Any) -> str:
  """A digest of the names, shapes, dtypes and values of a tree of arrays."""
  digest = hashlib.sha256()
  for path, leaf in jax.tree_util.tree_leaves_with_path(params):
    value = np.asarray(leaf)
    name = jax.tree_util.keystr(path)
    digest.update(f'{name} {value.shape} {value.dtype}\n'.encode())
    digest.update(np.ascontiguousarray(value).tobytes())
  return digest.hexdigest()[:16]
