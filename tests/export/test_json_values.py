"""Values of Arrow as JSON: each comes back from its text, exactly."""

import datetime
import decimal
import json
import re
import uuid

import pyarrow as pa
import pytest
from hypothesis import given, strategies as st

from infoprune_jax.export import json_values

INT64 = st.integers(-(2**63), 2**63 - 1)
UNITS = ('s', 'ms', 'us', 'ns')
PER_SECOND = dict(zip(UNITS, (1, 10**3, 10**6, 10**9), strict=True))
EPOCH = datetime.datetime(1970, 1, 1)
DATES = st.dates().map(lambda date: (date - datetime.date(1970, 1, 1)).days)
TEXT = st.text(st.characters(codec='utf-8'), max_size=5)
# Seconds since 1970 of the years that ISO 8601 writes with four digits.
FIRST, LAST = -62135596800, 253402300799


def as_json(array: pa.Array, texts=()):
  """The values of an array, read back from JSON."""
  field = pa.field('x', array.type)
  columns, refused = json_values.converters([field], texts)
  assert refused == []
  values = [json_values.converted(columns['x'], scalar) for scalar in array]
  return json.loads(json.dumps(values, allow_nan=False))


def stored(value: int, kind: pa.DataType) -> pa.Array:
  """An array of one value of a type of time, given as it is stored."""
  size = pa.int32() if kind.bit_width == 32 else pa.int64()
  return pa.array([value], size).view(kind)


@given(st.data())
@pytest.mark.parametrize('unit', UNITS)
@pytest.mark.parametrize('zone', [None, 'Europe/Berlin', '+05:30'])
def test_timestamps(unit, zone, data):
  bounds = FIRST * PER_SECOND[unit], (LAST + 1) * PER_SECOND[unit] - 1
  value = data.draw(
    st.integers(max(bounds[0], -(2**63)), min(bounds[1], 2**63 - 1))
  )
  [text] = as_json(stored(value, pa.timestamp(unit, zone)))
  assert re.fullmatch(r'\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{3,9})?Z?', text)
  assert text.endswith('Z') == bool(zone)
  whole, _, fraction = text.removesuffix('Z').partition('.')
  since = datetime.datetime.fromisoformat(whole) - EPOCH
  assert len(fraction) == len(str(PER_SECOND[unit])) - 1
  seconds = since.days * 86_400 + since.seconds
  assert seconds * PER_SECOND[unit] + int(fraction or 0) == value


@given(st.data())
@pytest.mark.parametrize('unit', UNITS)
def test_times_of_day_and_durations(unit, data):
  value = data.draw(st.integers(0, 24 * 3600 * PER_SECOND[unit] - 1))
  kind = pa.time32(unit) if unit in ('s', 'ms') else pa.time64(unit)
  [text] = as_json(stored(value, kind))
  hours, minutes, seconds = text.split(':')
  exact = decimal.Decimal(seconds) * PER_SECOND[unit]
  per_minute = 60 * PER_SECOND[unit]
  assert (int(hours) * 60 + int(minutes)) * per_minute + exact == value
  value = data.draw(INT64)
  [text] = as_json(stored(value, pa.duration(unit)))
  sign, seconds = re.fullmatch(r'(-?)PT([\d.]+)S', text).groups()
  assert decimal.Decimal(sign + seconds) * PER_SECOND[unit] == value


@given(DATES)
def test_dates(day):
  expected = datetime.date(1970, 1, 1) + datetime.timedelta(days=day)
  for array in (
    stored(day, pa.date32()),
    stored(day * 86_400_000, pa.date64()),
  ):
    assert as_json(array) == [expected.isoformat()]


@pytest.mark.parametrize(
  'array',
  [
    stored(10**8, pa.date32()),
    stored(2**62, pa.timestamp('s')),
    stored(LAST + 1, pa.timestamp('s', 'UTC')),
  ],
)
def test_years_that_iso_8601_has_not(array):
  columns, _ = json_values.converters([pa.field('x', array.type)], ())
  with pytest.raises((ValueError, OverflowError)):
    json_values.converted(columns['x'], array[0])


@given(st.integers(-(10**20), 10**20), st.integers(-3, 20))
def test_decimals_keep_every_digit(digits, scale):
  kind = pa.decimal128(38, scale)
  value = decimal.Decimal(digits).scaleb(-scale)
  [text] = as_json(pa.array([value], kind))
  assert re.fullmatch(r'-?\d+(\.\d+)?', text)
  assert decimal.Decimal(text) == value
  if scale > 0:
    assert len(text.partition('.')[2]) == scale


MAPS = st.dictionaries(TEXT, st.none() | DATES, max_size=3)


@given(st.lists(st.none() | MAPS, max_size=4), st.integers(0, 4))
def test_a_map_from_text_is_an_object(maps, start):
  kind = pa.map_(pa.string(), pa.date32())
  pairs = [None if one is None else list(one.items()) for one in maps]
  # Also of an array that begins within its buffers.
  assert as_json(pa.array(pairs, kind)[start:]) == [
    None
    if one is None
    else {
      key: None
      if day is None
      else (
        datetime.date(1970, 1, 1) + datetime.timedelta(days=day)
      ).isoformat()
      for key, day in one.items()
    }
    for one in maps[start:]
  ]


def test_another_map_is_a_list_of_keys_and_values():
  kind = pa.map_(pa.int32(), pa.list_(pa.decimal128(4, 2)))
  value = [(2, [decimal.Decimal('1.5'), None]), (1, None), (2, [])]
  assert as_json(pa.array([value, None], kind)) == [
    [
      {'key': 2, 'value': ['1.50', None]},
      {'key': 1, 'value': None},
      {'key': 2, 'value': []},
    ],
    None,
  ]


def test_a_key_twice_is_no_object():
  array = pa.array([[('a', 1), ('a', 2)]], pa.map_(pa.string(), pa.int8()))
  columns, _ = json_values.converters([pa.field('x', array.type)], ())
  with pytest.raises(ValueError, match='a map in x has a key twice'):
    json_values.converted(columns['x'], array[0])


@pytest.mark.parametrize(
  'array, expected',
  [
    (pa.array([uuid.UUID(int=7).bytes], pa.uuid()), [str(uuid.UUID(int=7))]),
    (pa.array(['a', None, 'a']).dictionary_encode(), ['a', None, 'a']),
    (pa.array([[1, 2], None], pa.list_(pa.int8(), 2)), [[1, 2], None]),
    (pa.array([[0, None]], pa.list_(pa.date32())), [['1970-01-01', None]]),
    (pa.array([{'a': [{'b': 0}]}, None]), [{'a': [{'b': 0}]}, None]),
    (
      pa.array([{'d': 0}], pa.struct([('d', pa.date32())])),
      [{'d': '1970-01-01'}],
    ),
    (pa.array(['x'], pa.string_view()), ['x']),
    (pa.array([2**64 - 1], pa.uint64()), [2**64 - 1]),
  ],
)
def test_other_types(array, expected):
  assert as_json(array) == expected


def test_bytes_of_a_text_column_are_text():
  kind = pa.struct([('text', pa.large_binary())])
  array = pa.array([{'text': 'é'.encode()}], kind)
  assert as_json(array, texts=('x.text',)) == [{'text': 'é'}]


def test_every_column_that_cannot_be_written_is_named():
  schema = pa.schema(
    [
      ('text', pa.binary()),
      ('cover', pa.struct([('data', pa.binary()), ('name', pa.string())])),
      ('pages', pa.list_(pa.list_(pa.binary(4)))),
      ('by_name', pa.map_(pa.string(), pa.binary())),
      ('by_bytes', pa.map_(pa.binary(), pa.int8())),
      ('wait', pa.month_day_nano_interval()),
      ('twice', pa.int8()),
      ('twice', pa.int8()),
      ('fine', pa.date32()),
    ]
  )
  _, refused = json_values.converters(schema, ('text',))
  assert refused == [
    'twice (2 columns)',
    'cover.data (binary)',
    'pages (fixed_size_binary[4])',
    'by_name.value (binary)',
    'by_bytes.key (binary)',
    'wait (month_day_nano_interval)',
  ]
