"""The types of columns of records of JSON: their schema for Parquet.

JSON has no schema, so the schema of a source comes from its records. No value
is converted to fit: 3 and "3" in one field are refused, 3 and 0.5 are numbers.
"""

import io
from collections.abc import Iterable, Mapping
from typing import Any

import pyarrow as pa

from infoprune_jax.corpus import parquet

# The schema of documents of sources without records.
DOCUMENT = pa.schema(
  [('id', pa.string()), ('source', pa.string()), ('text', pa.string())]
)
_INT64 = 2**63


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
    Unfit: there is no such type; `where` is the field.
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
  """A field that is always {}, which Parquet cannot hold; '' if none."""
  if pa.types.is_struct(kind):
    if not kind.num_fields:
      return where
    inside = [empty_object(f.type, _inside(where, f.name)) for f in kind]
    return next(filter(None, inside), '')
  return empty_object(kind.value_type, where) if pa.types.is_list(kind) else ''


def not_parquet(fields: Iterable[pa.Field]) -> list[str]:
  """The columns that Parquet cannot hold, as 'a (month_day_nano_interval)'."""

  def fits(field: pa.Field) -> bool:
    table = pa.schema([field]).empty_table()
    try:
      parquet.write_table(table, io.BytesIO())
    except pa.ArrowNotImplementedError:
      return False
    return True

  return [f'{f.name} ({f.type})' for f in fields if not fits(f)]


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
      raise Unfit(where, 'holds text that is not Unicode') from None
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
    (pa.types.is_boolean, 'true or false'),
  ):
    if matches(kind):
      return said
  return 'a number'
