"""Checks and builders for every section of a config.

Standard library only.
"""

import dataclasses
import difflib
import math
import types
from collections.abc import Mapping, Sequence
from typing import Any, get_args, get_origin, get_type_hints

MAX_MESSAGE = 4000  # characters; a config may hold a value of any length


# Options and values of earlier versions, and what they are called now.
RENAMED = {
  'curve_tokens': 'online_eval_tokens',
  'decay_share': 'decay_fraction',
  'everything': 'all_plus_reference',
  'heldout_share': 'heldout_fraction',
  'kernels': 'loss_kernel',
  'loss_tile': 'loss_chunk_tokens',
  'num_parts': 'num_shards',
  'on_bad_row': 'on_bad_record',
  'others': 'extra_models',
  'places': 'include_locations',
  'reference_share': 'reference_fraction',
  'row_length': 'sequence_length',
}


class UserError(ValueError):
  """Something a user can fix: shown as one message, without a traceback."""

  def __str__(self) -> str:
    """The message; if it is too long, its beginning and end."""
    text = super().__str__()
    if len(text) <= MAX_MESSAGE:
      return text
    half = MAX_MESSAGE // 2
    return f'{text[:half]} ... {text[-half:]}'


def check_choice(name: str, value: Any, choices: tuple[Any, ...]) -> None:
  """Raises `UserError` unless `value` is one of `choices`."""
  if value in choices:
    return
  raise UserError(
    f'{name} must be one of {", ".join(map(repr, choices))}, got {value!r}.'
    + did_you_mean(str(value), [str(choice) for choice in choices])
  )


def did_you_mean(name: str, names: Sequence[str]) -> str:
  """A hint at the right name, after a space; '' if no name is near."""
  if RENAMED.get(name) in names:
    return f' {name!r} was renamed to {RENAMED[name]!r}.'
  near = difflib.get_close_matches(name, names, n=1)
  return f' Did you mean {near[0]!r}?' if near else ''


def check_range(name: str, value: float, low: float, high: float) -> None:
  """Raises `UserError` unless low <= value <= high."""
  if not low <= value <= high:
    raise UserError(f'{name} must be in [{low:g}, {high:g}], got {value:g}.')


def check_positive(section: str, instance: Any, *names: str) -> None:
  """Raises `UserError` unless fields (all numbers if none is named) are > 0."""
  for name, value in vars(instance).items():
    meant = type(value) in (int, float) and (name in names or not names)
    if meant and not 0 < value < math.inf:
      raise UserError(f'{section}.{name} must be positive, got {value}.')


def check_seeds(name: str, *seeds: int) -> None:
  """Raises `UserError` unless every random generator takes the seeds."""
  for seed in seeds:
    check_range(name, seed, 0, 2**31 - 1)


def to_plain(value: Any) -> Any:
  """Dataclasses, mappings and tuples as dicts and lists, ready for JSON.

  Numbers that JSON cannot express become strings: 'inf', '-inf'.
  """
  if dataclasses.is_dataclass(value):
    return {
      field.name: to_plain(getattr(value, field.name))
      for field in dataclasses.fields(value)
    }
  if isinstance(value, Mapping):
    return {key: to_plain(item) for key, item in value.items()}
  if isinstance(value, tuple | list):
    return [to_plain(item) for item in value]
  if isinstance(value, float) and not math.isfinite(value):
    return str(value)
  return value


def default_of(field: dataclasses.Field) -> Any:
  """The default of a field; `dataclasses.MISSING` if it has none."""
  if field.default_factory is not dataclasses.MISSING:
    return field.default_factory()
  return field.default


def build(kind: Any, value: Any, where: str) -> Any:
  """Builds a value of the annotated type `kind` out of nested mappings.

  A field that the mappings leave out gets its default.
  """
  origin, arguments = get_origin(kind), get_args(kind)
  if type(value) is str:
    _check_text(value, where)
  if type(value) is int and value.bit_length() > 63:
    raise UserError(
      f'In {where}: an integer must fit 64 bits, got '
      f'{value.bit_length() + 1} bits.'
    )
  if origin is types.UnionType:
    return build(_member(arguments, value), value, where)
  if dataclasses.is_dataclass(kind):
    return _build_dataclass(kind, value, where)
  if origin is Mapping:
    if not hasattr(value, 'items'):
      raise UserError(f'In {where}: expected a section, got {value!r}.')
    section: Any = value  # A ConfigDict is no Mapping.
    return {
      build(str, name, where): build(arguments[1], item, _key(where, name))
      for name, item in section.items()
    }
  if origin is tuple:
    # One rule alone needs no tuple around it.
    items = (value,) if hasattr(value, 'items') else value
    if not isinstance(items, tuple | list):
      raise UserError(
        f'In {where}: expected a tuple, got {value!r}: write ({value!r},).'
      )
    return tuple(build(arguments[0], item, where) for item in items)
  if kind is float and (type(value) is int or value in ('inf', '-inf')):
    return float(value)  # The strings are what `to_plain` writes.
  if type(value) is not kind:
    hint = f' Put it in quotes: {str(value)!r}.' if kind is str else ''
    raise UserError(
      f'In {where}: expected {kind.__name__}, got {value!r} '
      f'({type(value).__name__}).{hint}'
    )
  return value


def _member(kinds: Sequence[Any], value: Any) -> Any:
  """The kind of a union that a value is meant to be; the first if none."""

  def fits(kind: Any) -> bool:
    is_section = get_origin(kind) is Mapping
    return hasattr(value, 'items') == is_section and (
      (type(value) is str) == (kind is str)
    )

  return next(filter(fits, kinds), kinds[0])


def _key(where: str, name: str) -> str:
  """The name of a key of a section, as Python and the command line write it."""
  return f'{where}.{name}' if name.isidentifier() else f'{where}[{name!r}]'


def _check_text(value: str, where: str) -> None:
  """Raises `UserError` for what no file name and no UTF-8 file can hold."""
  try:
    # As Python itself writes file names that are no UTF-8.
    value.encode('utf-8', 'surrogateescape')
  except UnicodeEncodeError:
    raise UserError(f'In {where}: {value!a} is not Unicode text.') from None
  if '\0' in value:
    raise UserError(f'In {where}: {value!r} holds a NUL character.')


def _build_dataclass(kind: Any, value: Any, where: str) -> Any:
  """Builds the dataclass `kind`; error messages name the section."""
  if not hasattr(value, 'items'):  # A ConfigDict is no Mapping.
    raise UserError(f'In {where}: expected a section, got {value!r}.')
  hints = get_type_hints(kind)
  for key in value:
    check_choice(f'A key of {where}', key, tuple(hints))
  missing = [
    field.name
    for field in dataclasses.fields(kind)
    if field.name not in value and default_of(field) is dataclasses.MISSING
  ]
  if missing:
    raise UserError(f'In {where}: {", ".join(missing)} missing.')
  fields = {
    name: build(hint, value[name], f'{where}.{name}')
    for name, hint in hints.items()
    if name in value
  }
  try:
    return kind(**fields)
  except UserError as error:
    raise UserError(f'In {where}: {error}') from None
