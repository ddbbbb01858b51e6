"""Types found in records of JSON hold every value as it is."""

import json

import pyarrow as pa
import pytest
from hypothesis import given, strategies as st

from infoprune_jax.export import schemas

LEAVES = {
  'text': st.text(st.characters(codec='utf-8'), max_size=5),
  'integer': st.integers(-(2**63), 2**63 - 1),
  'number': st.floats(allow_nan=False) | st.integers(-(2**53), 2**53),
  'truth': st.booleans(),
}
NAMES = st.sampled_from(['a', 'b', 'c.d'])


@st.composite
def values_of_a_type(draw, depth=2):
  """A strategy of values that one column can hold, nulls among them."""
  kind = draw(
    st.sampled_from(['object', 'list', *LEAVES] if depth else [*LEAVES])
  )
  if kind == 'object':
    fields = {
      name: draw(values_of_a_type(depth - 1))
      for name in draw(st.lists(NAMES, min_size=1, unique=True))
    }
    return st.none() | st.fixed_dictionaries({}, optional=fields)
  if kind == 'list':
    return st.none() | st.lists(draw(values_of_a_type(depth - 1)), max_size=3)
  return st.none() | LEAVES[kind]


def filled(value, kind: pa.DataType):
  """A value with null for each field that it lacks."""
  if value is None:
    return None
  if pa.types.is_struct(kind):
    return {f.name: filled(value.get(f.name), f.type) for f in kind}
  if pa.types.is_list(kind):
    return [filled(item, kind.value_type) for item in value]
  return value


@given(st.data())
def test_records_come_back(data):
  column = data.draw(values_of_a_type())
  records = data.draw(
    st.lists(st.fixed_dictionaries({'x': column}), min_size=1)
  )
  records = json.loads(json.dumps(records))
  kind = schemas.of_records(records)
  found = pa.Table.from_pylist(records, pa.schema(list(kind))).to_pylist()
  assert found == [filled(record, kind) for record in records]
  # Cut anywhere, as into shards.
  cut = data.draw(st.integers(0, len(records)))
  halves = [
    schemas.of_records(shard) for shard in (records[:cut], records[cut:])
  ]
  assert schemas.merged(*halves, '') == kind


@pytest.mark.parametrize(
  'records, field',
  [
    ([{'a': 1}, {'a': 'x'}], 'a'),
    ([{'a': 1}, {'a': True}], 'a'),
    ([{'a': [1, 'x']}], 'a'),
    ([{'a': {'b': [1]}}, {'a': {'b': {}}}], 'a.b'),
    ([{'a': {'b': -(2**63) - 1}}], 'a.b'),
    ([{'a': '\ud800'}], 'a'),
  ],
)
def test_what_no_type_holds_is_named(records, field):
  with pytest.raises(schemas.Unfit) as caught:
    schemas.of_records(records)
  assert caught.value.args[0] == field


def test_empty_objects_are_found():
  kind = schemas.of_records([{'a': {'b': {}}, 'c': [{'d': {}}]}])
  assert schemas.empty_object(kind) == 'a.b'
  assert schemas.empty_object(schemas.of_records([{'a': [{}]}])) == 'a'
  assert not schemas.empty_object(schemas.of_records([{'a': [{'b': None}]}]))


def test_columns_that_parquet_cannot_hold_are_named():
  schema = pa.schema(
    [
      ('fine', pa.map_(pa.int8(), pa.duration('s'))),
      ('wait', pa.list_(pa.month_day_nano_interval())),
      ('runs', pa.run_end_encoded(pa.int32(), pa.int8())),
      ('none', pa.struct([])),
    ]
  )
  assert [name.split()[0] for name in schemas.not_parquet(schema)] == [
    *('wait', 'runs', 'none'),
  ]


@pytest.mark.parametrize(
  'values, expected',
  [
    ([[1], [0.5]], pa.list_(pa.float64())),
    ([[], [None, 'x']], pa.list_(pa.string())),
    ([[{'b': 1}], [{'c': 2}]], pa.list_(pa.struct(dict(b='int64', c='int64')))),
  ],
)
def test_lists_are_merged(values, expected):
  records = [{'a': value} for value in values]
  assert schemas.of_records(records) == pa.struct([('a', expected)])
