"""Configs as nested dicts and lists, with one value replaced."""

import importlib
import importlib.metadata
import pathlib
from typing import Any

import pytest
from ml_collections import ConfigDict

from configs import base
from infoprune_jax.config import experiment as config_lib, validation


def edits_of(name: str) -> ConfigDict:
  if name == 'demo':
    constraints = pathlib.Path('constraints.txt').read_text().splitlines()
    version = importlib.metadata.version('tensorflow')
    if f'tensorflow=={version}' not in constraints:
      pytest.skip('the demo reads files of the versions in constraints.txt')
  edits = importlib.import_module(f'configs.{name}').get_config()
  if name == 'base':
    edits.corpus.sources.mine = base.jsonl('mine.jsonl')
  return edits


def plain() -> dict[str, Any]:
  """The base config as nested dicts and lists."""
  return validation.to_plain(config_lib.from_mapping(edits_of('base')))


def edited(path: str, value: Any) -> dict[str, Any]:
  """`plain()`, with one value replaced."""
  result = plain()
  sections, _, key = path.rpartition('.')
  section = value_at(result, sections)
  section = section[0] if isinstance(section, list) else section
  section[key] = value
  return result


def value_at(value: Any, path: str) -> Any:
  """The value of an option, named as on the command line."""
  for name in path.split('.') if path else ():
    # Of an arm: its first rule.
    value = value[0][name] if isinstance(value, list) else value[name]
  return value
