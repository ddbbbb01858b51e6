"""What of a config decides an artifact, as its records hold it.

A record leaves out each option that is at its default. A record without an
option was therefore made at the option's default, by this version or by one
that did not have the option yet, and a new option never refuses what is
finished. So a default is part of the format once it is released.
"""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

from infoprune_jax.config.validation import default_of, to_plain
from infoprune_jax.runtime.filesystems import canonical

# What `x`, `./x`, `~/x` or `file:///x` may spell, by name in a manifest.
_PATH_OPTIONS = re.compile(
  r'options\.((vocabulary\.)?path|corpus\.sources\..*\.(paths|data_dir))'
)


@dataclasses.dataclass(frozen=True)
class Defaulted:
  """The value of an option that has a default."""

  value: Any  # as `options_of` gives it
  default: Any  # as JSON holds it, in full
  is_default: bool


def options_of(value: Any) -> Any:
  """The options in a section, or in mappings and tuples of sections.

  Returns:
    Dicts, lists and what JSON can hold; each field of a dataclass that has a
    default is a `Defaulted`.
  """
  if isinstance(value, Defaulted):
    return value
  if dataclasses.is_dataclass(value):
    return {
      field.name: _option(field, getattr(value, field.name))
      for field in dataclasses.fields(value)
    }
  if isinstance(value, Mapping):
    return {key: options_of(item) for key, item in value.items()}
  if isinstance(value, tuple | list):
    return [options_of(item) for item in value]
  return to_plain(value)


def _option(field: dataclasses.Field, value: Any) -> Any:
  default = default_of(field)
  if default is dataclasses.MISSING:
    return options_of(value)
  default = to_plain(default)
  return Defaulted(options_of(value), default, to_plain(value) == default)


def recorded(value: Any) -> Any:
  """What a record holds of a section, or of `options_of` it, ready for JSON."""
  options = options_of(value)
  if isinstance(options, Defaulted):
    return recorded(options.value)
  if isinstance(options, dict):
    return {
      key: recorded(item)
      for key, item in options.items()
      if not (isinstance(item, Defaulted) and item.is_default)
    }
  if isinstance(options, list):
    return [recorded(item) for item in options]
  return options


def first_difference(old: Any, expected: Any, where: str) -> str:
  """Where a record first differs from what is expected; '' if nowhere.

  Args:
    old: A JSON value. It may leave out options at their default, or hold
      them, as older versions wrote them.
    expected: A JSON value, a section, or `options_of` one.
    where: What the values are called.

  Returns:
    The name of the option, and both values.
  """
  return _difference(old, options_of(expected), where)


def _difference(old: Any, expected: Any, where: str) -> str:
  if isinstance(expected, Defaulted):
    expected = expected.value
  if isinstance(old, Mapping) and isinstance(expected, Mapping):
    defaults = {
      key: option.default
      for key, option in expected.items()
      if isinstance(option, Defaulted)
    }
    old = {**defaults, **old}
    for key in sorted(old.keys() | expected.keys()):
      name = f'{where}.{key}'
      if key not in expected:
        return f'{name} is only there, as {old[key]!r}'
      if key not in old:
        return f'{name} is only in this config, as {recorded(expected[key])!r}'
      difference = _difference(old[key], expected[key], name)
      if difference:
        return difference
    return ''
  if _are_one_place(old, expected, where):
    return ''
  lists = isinstance(old, list) and isinstance(expected, list)
  if lists and len(old) == len(expected):
    pairs = enumerate(zip(old, expected, strict=True))
    differences = (
      _difference(item, other, f'{where}[{number}]')
      for number, (item, other) in pairs
    )
    return next(filter(None, differences), '')
  expected = recorded(expected)
  return '' if old == expected else f'{where} is {old!r}, not {expected!r}'


def _are_one_place(old: Any, expected: Any, where: str) -> bool:
  """Whether two options are paths, and spellings of the same."""
  if not _PATH_OPTIONS.fullmatch(where):
    return False
  sides = [[s] if isinstance(s, str) else s for s in (old, expected)]
  one, other = ([path and canonical(path) for path in side] for side in sides)
  return one == other
