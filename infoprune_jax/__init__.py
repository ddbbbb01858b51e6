"""Measure the information in each example, prune the least, pretrain."""

import importlib
from typing import Any

__version__ = '0.1.0'

# What users call from Python, by module: imported when it is first used.
_MODULES = {
  'load_model': 'infoprune_jax.score.language_model',
  'read_keep_set': 'infoprune_jax.selection.keep_set',
}


def __getattr__(name: str) -> Any:
  """`load_model` or `read_keep_set`."""
  if name not in _MODULES:
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
  return getattr(importlib.import_module(_MODULES[name]), name)
