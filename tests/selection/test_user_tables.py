"""Tables of the user's, as they are read."""

import json
import pathlib

import pytest

from infoprune_jax.config.selection import TableConfig
from infoprune_jax.config.validation import UserError
from infoprune_jax.selection import user_tables


def read(path: pathlib.Path) -> list[dict]:
  config = TableConfig(paths=(str(path),), on=('example_id',))
  table = user_tables.open_table('quality', config)
  return [row for _, _, batch in table.batches() for row in batch.to_pylist()]


@pytest.mark.parametrize(
  ('last', 'message'),
  [
    (0.5, r"from [1-9]\d* .* column 'score' .* int64 \(.*:0.5\). .* Parquet"),
    ('x', r"column 'score' .* type, int64 \(.* from number to string"),
  ],
)
def test_a_later_value_of_another_type_is_named(
  tmp_path, last, message, monkeypatch
):
  """The types are those of the first block; it is 16 MiB, and here 1 KiB."""
  monkeypatch.setattr(user_tables, '_BLOCK', 1 << 10)
  rows = [{'example_id': f'{n}', 'score': n, 'other': n / 2} for n in range(99)]
  rows.append({'example_id': '99', 'score': 99, 'other': 7})
  path = tmp_path / 'x.jsonl'
  path.write_text(''.join(json.dumps(row) + '\n' for row in rows))
  assert read(path) == rows  # A whole number is a fraction, too.
  with open(path, 'a') as file:
    file.write(json.dumps({**rows[-1], 'score': last}) + '\n')
  with pytest.raises(UserError, match=message):
    read(path)
  with open(path, 'a') as file:
    file.write('{"example_id": ')
  with pytest.raises(UserError, match='cannot be read: JSON parse error'):
    read(path)
