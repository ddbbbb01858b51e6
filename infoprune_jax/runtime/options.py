"""The options that decide an artifact, as its records hold them.

A record leaves out each option that is at its default. A record without an
option was therefore made at that option's default, by this version or by one
without the option, and a new option invalidates no finished artifact. So a
default is part of the format once it is released.
"""

import dataclasses
import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from infoprune_jax.config.validation import default_of, to_plain
from infoprune_jax.runtime.filesystems import canonical

# Options that hold paths, which `x`, `./x`, `~/x` or `file:///x` may spell.
_PATH_OPTIONS = re.compile(
  r'options\.((vocabulary\.)?path|'
  r'(corpus\.sources\..*|(good|bad)\[\d+\])\.(paths|data_dir))'
)


# An expected value that equals whatever a record holds.
UNKNOWN = object()
ABSENT = object()  # the value of an option that one side lacks


class Change(NamedTuple):
  """An option of which a record holds another value than is expected."""

  name: str
  old: Any  # a JSON value, or `ABSENT`
  new: Any  # the same


@dataclasses.dataclass(frozen=True)
class Defaulted:
  """The value of an option that has a default."""

  value: Any  # a result of `options_of`
  default: Any  # a JSON value, in full
  is_default: bool


def options_of(value: Any) -> Any:
  """The options in a section, or in mappings and tuples of sections.

  Returns:
    Dicts, lists and JSON values; a `Defaulted` for each field of a dataclass
    that has a default.
  """
  if isinstance(value, Defaulted) or value is UNKNOWN:
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
  """The JSON value that a record holds of a section, or of its `options_of`."""
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
  """The first of `changes`, as a text; '' if there is none."""
  for name, there, here in changes(old, expected, where):
    if here is ABSENT:
      return f'{name} is only there, as {there!r}'
    if there is ABSENT:
      return f'{name} is only in this config, as {here!r}'
    return f'{name} is {there!r}, not {here!r}'
  return ''


def changes(old: Any, expected: Any, where: str) -> Iterator[Change]:
  """Yields the differences of a record from an expected value.

  Args:
    old: A JSON value, with or without the options at their defaults.
    expected: A JSON value, a section, or its `options_of`.
    where: The name of the values.
  """
  yield from _changes(old, options_of(expected), where)


def _changes(old: Any, expected: Any, where: str) -> Iterator[Change]:
  if isinstance(expected, Defaulted):
    expected = expected.value
  if expected is UNKNOWN:
    return
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
        yield Change(name, old[key], ABSENT)
      elif key not in old:
        if expected[key] is not UNKNOWN:
          yield Change(name, ABSENT, recorded(expected[key]))
      else:
        yield from _changes(old[key], expected[key], name)
    return
  if _are_one_place(old, expected, where):
    return
  lists = isinstance(old, list) and isinstance(expected, list)
  if lists and len(old) == len(expected):
    for number, (item, other) in enumerate(zip(old, expected, strict=True)):
      yield from _changes(item, other, f'{where}[{number}]')
    return
  expected = recorded(expected)
  if old != expected:
    yield Change(where, old, expected)


def _are_one_place(old: Any, expected: Any, where: str) -> bool:
  """Whether two options are spellings of the same path."""
  if not _PATH_OPTIONS.fullmatch(where):
    return False
  sides = [[s] if isinstance(s, str) else s for s in (old, expected)]
  one, other = ([path and canonical(path) for path in side] for side in sides)
  return one == other
