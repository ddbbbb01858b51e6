"""Keep sets that the select stage writes into a workdir, read again."""

import pathlib

import numpy as np

from infoprune_jax.config import experiment as config_lib
from infoprune_jax.runtime.workdir import keep_set_dir
from infoprune_jax.selection import select
from infoprune_jax.selection.keep_set import KeepSet, read_summary
from infoprune_jax.tokens.token_store import TokenStore


def run(edits, workdir: str, **arms) -> config_lib.Config:
  edits = edits.copy_and_resolve_references()
  edits.select.arms.update(arms)
  resolved = config_lib.from_mapping(edits)
  select.run(resolved, workdir)
  return resolved


def opened(workdir: str, name: str) -> KeepSet:
  return KeepSet.open(workdir, name, TokenStore.open(workdir))


def mask(kept: KeepSet) -> np.ndarray:
  """Whether each document is kept, [documents] bool."""
  index = np.arange(sum(kept.documents_per_shard))
  return kept.of_documents(index).astype(bool)


def shown(workdir: str, name: str) -> dict:
  return read_summary(keep_set_dir(workdir, name))


def times(workdir: str, below: str = 'keep_sets') -> dict[str, int]:
  return {
    str(path): path.stat().st_mtime_ns
    for path in (pathlib.Path(workdir) / below).rglob('*')
    if path.is_file() and path.name != '.lock'
  }
