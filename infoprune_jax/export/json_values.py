"""Values of Arrow as values of JSON.

What JSON has no type for is text: dates, times and durations in ISO 8601 (an
instant in UTC, with as many digits as its unit has), decimals with all their
digits, UUIDs. A map whose keys are text is an object; any other map is a list
of objects with `key` and `value`. Bytes are refused, except in columns that are
read as text.
"""

import collections
import datetime
from collections.abc import Callable, Container, Iterable
from typing import Any

import pyarrow as pa

# The value of a scalar that is not null.
Convert = Callable[[pa.Scalar], Any]
_PLAIN = (
  pa.types.is_null,
  pa.types.is_boolean,
  pa.types.is_integer,
  pa.types.is_floating,
  pa.types.is_string,
  pa.types.is_large_string,
  pa.types.is_string_view,
)
_BYTES = (
  pa.types.is_binary,
  pa.types.is_large_binary,
  pa.types.is_fixed_size_binary,
  pa.types.is_binary_view,
)
_LISTS = (
  pa.types.is_list,
  pa.types.is_large_list,
  pa.types.is_fixed_size_list,
  pa.types.is_list_view,
  pa.types.is_large_list_view,
)
_EPOCH = datetime.datetime(1970, 1, 1)
_DIGITS = {'s': 0, 'ms': 3, 'us': 6, 'ns': 9}  # of a second, by unit


def converters(
  fields: Iterable[pa.Field], texts: Container[str], where: str = ''
) -> tuple[dict[str, Convert], list[str]]:
  """What turns the values of each column into values of JSON.

  A conversion raises `ValueError` or `OverflowError` for a value that JSON
  cannot hold.

  Args:
    fields: The columns.
    texts: Columns whose bytes are text in UTF-8; 'a.b' is field b of column a.
    where: The column that they are fields of; '' for none.

  Returns:
    The conversion of each column, and the columns that JSON cannot hold, as
    'a.b (binary)'.
  """
  made: dict[str, Convert] = {}
  refused: list[str] = []
  fields = list(fields)
  for name, times in collections.Counter(f.name for f in fields).items():
    if times > 1:
      refused.append(f'{_inside(where, name)} ({times} columns)')
  for field in fields:
    inside = _inside(where, field.name)
    made[field.name], problems = _converter(field.type, texts, inside)
    refused += problems
  return made, refused


def converted(convert: Convert, scalar: pa.Scalar) -> Any:
  """The value of a scalar; None if it is null."""
  return convert(scalar) if scalar.is_valid else None


def _as_py(scalar: pa.Scalar) -> Any:
  return scalar.as_py()


def _inside(where: str, name: str) -> str:
  return f'{where}.{name}' if where else name


def _is(kind: pa.DataType, tests: Iterable[Callable[[Any], bool]]) -> bool:
  return any(test(kind) for test in tests)


def _converter(
  kind: pa.DataType, texts: Container[str], where: str
) -> tuple[Convert, list[str]]:
  """The conversion of one type, and what JSON cannot hold in it."""
  if _is(kind, _PLAIN) or isinstance(kind, pa.JsonType):
    return _as_py, []
  if _is(kind, _BYTES) and where in texts:
    return lambda scalar: scalar.as_py().decode(), []
  if isinstance(kind, pa.UuidType):
    return lambda scalar: str(scalar.as_py()), []
  if pa.types.is_decimal(kind):
    return lambda scalar: format(scalar.as_py(), 'f'), []
  if pa.types.is_date(kind):
    return lambda scalar: scalar.as_py().isoformat(), []
  if _is(kind, (pa.types.is_timestamp, pa.types.is_time, pa.types.is_duration)):
    return _time_converter(kind), []
  if pa.types.is_map(kind):
    return _map_converter(kind, texts, where)
  if pa.types.is_struct(kind):
    inside, refused = converters(kind, texts, where)
    return lambda scalar: {
      name: converted(inside[name], item) for name, item in scalar.items()
    }, refused
  if pa.types.is_dictionary(kind):
    value, refused = _converter(kind.value_type, texts, where)
    return lambda scalar: converted(value, scalar.value), refused
  if _is(kind, _LISTS):
    item, refused = _converter(kind.value_type, texts, where)
    if item is _as_py:
      return item, refused
    return lambda scalar: [converted(item, v) for v in scalar.values], refused
  return _as_py, [f'{where} ({kind})']


def _map_converter(
  kind: pa.MapType, texts: Container[str], where: str
) -> tuple[Convert, list[str]]:
  """An object if the keys are text, else a list of objects: see above."""
  fields = [kind.key_field.with_name('key'), kind.item_field.with_name('value')]
  inside, refused = converters(fields, texts, where)
  key, value = inside.values()

  def entries(scalar: Any) -> list[tuple[Any, Any]]:
    return [
      (converted(key, entry[0]), converted(value, entry[1]))
      for entry in scalar.values
    ]

  def as_list(scalar: Any) -> list[dict[str, Any]]:
    return [{'key': k, 'value': v} for k, v in entries(scalar)]

  def as_object(scalar: Any) -> dict[str, Any]:
    pairs = entries(scalar)
    if len(dict(pairs)) < len(pairs):
      raise ValueError(f'a map in {where} has a key twice')
    return dict(pairs)

  text = _is(kind.key_type, _PLAIN[-3:])
  return as_object if text else as_list, refused


def _time_converter(kind: Any) -> Convert:
  """ISO 8601 of a timestamp, a time of day or a duration."""
  digits = _DIGITS[kind.unit]

  def split(value: int) -> tuple[int, str]:
    seconds, rest = divmod(value, 10**digits)
    return seconds, f'.{rest:0{digits}}' if digits else ''

  def timestamp(scalar: Any) -> str:
    seconds, fraction = split(scalar.value)
    moment = _EPOCH + datetime.timedelta(seconds=seconds)
    return moment.isoformat() + fraction + ('Z' if kind.tz else '')

  def time(scalar: Any) -> str:
    seconds, fraction = split(scalar.value)
    return (_EPOCH + datetime.timedelta(seconds=seconds)).strftime(
      '%H:%M:%S'
    ) + fraction

  def duration(scalar: Any) -> str:
    seconds, fraction = split(abs(scalar.value))
    return f'{"-" * (scalar.value < 0)}PT{seconds}{fraction}S'

  if pa.types.is_timestamp(kind):
    return timestamp
  return time if pa.types.is_time(kind) else duration
