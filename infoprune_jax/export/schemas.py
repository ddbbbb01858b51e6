"""The types of columns: of what Parquet is to hold, and what JSON can.

JSON has no schema, so that of a source is found in its records. No value is
made another to fit: 3 and "3" in one field are refused, 3 and 0.5 are numbers.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import pyarrow as pa

# Of documents of sources that have no records.
DOCUMENT = pa.schema(
  [('id', pa.string()), ('source', pa.string()), ('text', pa.string())]
)
_INT64 = 2**63
_IN_JSON: tuple[Callable[[pa.DataType], bool], ...] = (
  pa.types.is_null,
  pa.types.is_boolean,
  pa.types.is_integer,
  pa.types.is_floating,
  pa.types.is_string,
  pa.types.is_large_string,
)
_LISTS: tuple[Callable[[pa.DataType], bool], ...] = (
  pa.types.is_list,
  pa.types.is_large_list,
  pa.types.is_fixed_size_list,
)


class Unfit(Exception):
  """A field, and why no type holds its values."""


def of_records(records: Iterable[Mapping[str, Any]]) -> pa.StructType:
  """The type of records of JSON, fields in the order of their first appearance.

  >>> of_records([{'a': 1, 'b': None}, {'a': 0.5}])
  StructType(struct<a: double, b: null>)

  Raises:
    Unfit: no type holds the values of a field.
  """
  type_ = pa.struct([])
  for record in records:
    type_ = merged(type_, _of_value(record, ''), '')
  return type_


def merged(first: pa.DataType, second: pa.DataType, where: str) -> pa.DataType:
  """The type that holds the values of both.

  Raises:
    Unfit: there is none; `where` is the field.
  """
  if first.equals(second) or pa.types.is_null(second):
    return first
  if pa.types.is_null(first):
    return second
  if pa.types.is_struct(first) and pa.types.is_struct(second):
    fields = {field.name: field.type for field in first}
    for field in second:
      before = fields.get(field.name, pa.null())
      inside = _inside(where, field.name)
      fields[field.name] = merged(before, field.type, inside)
    return pa.struct(list(fields.items()))
  if pa.types.is_list(first) and pa.types.is_list(second):
    return pa.list_(merged(first.value_type, second.value_type, where))
  if {first, second} == {pa.int64(), pa.float64()}:
    return pa.float64()
  raise Unfit(where, f'holds {_said(first)} here and {_said(second)} there')


def empty_object(kind: pa.DataType, where: str = '') -> str:
  """A field that is {} wherever it is, which Parquet cannot hold; '' if none."""
  if pa.types.is_struct(kind):
    if not kind.num_fields:
      return where
    inside = [empty_object(f.type, _inside(where, f.name)) for f in kind]
    return next(filter(None, inside), '')
  return empty_object(kind.value_type, where) if pa.types.is_list(kind) else ''


def not_json(fields: Iterable[pa.Field], where: str = '') -> str:
  """The first column of a type that JSON has no value for; '' if none."""
  for field in fields:
    name, kind = _inside(where, field.name), field.type
    while any(is_list(kind) for is_list in _LISTS):
      kind = kind.value_type
    if pa.types.is_dictionary(kind):
      kind = kind.value_type
    if pa.types.is_struct(kind):
      if column := not_json(kind, name):
        return column
    elif not any(fits(kind) for fits in _IN_JSON):
      return f'{name} ({kind})'
  return ''


def _of_value(value: Any, where: str) -> pa.DataType:
  """The type of one value of JSON."""
  if value is None:
    return pa.null()
  if isinstance(value, bool):
    return pa.bool_()
  if isinstance(value, int):
    if not -_INT64 <= value < _INT64:
      raise Unfit(where, 'holds an integer of more than 64 bits')
    return pa.int64()
  if isinstance(value, float):
    return pa.float64()
  if isinstance(value, str):
    try:
      value.encode()
    except UnicodeEncodeError:
      raise Unfit(where, 'holds text that is no Unicode') from None
    return pa.string()
  if isinstance(value, list):
    kind = pa.null()
    for item in value:
      kind = merged(kind, _of_value(item, where), where)
    return pa.list_(kind)
  return pa.struct(
    [(name, _of_value(v, _inside(where, name))) for name, v in value.items()]
  )


def _inside(where: str, name: str) -> str:
  return f'{where}.{name}' if where else name


def _said(kind: pa.DataType) -> str:
  for matches, said in (
    (pa.types.is_struct, 'an object'),
    (pa.types.is_list, 'a list'),
    (pa.types.is_string, 'text'),
    (pa.types.is_boolean, 'a truth value'),
  ):
    if matches(kind):
      return said
  return 'a number'
