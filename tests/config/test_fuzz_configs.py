"""Hostile configs: refused in one message, or taken; see tests/hostile.py."""

import dataclasses
import json
import math
import re
from typing import Any

import pytest
from host_job import command_line
from hostile import fuzz, texts
from hypothesis import given, strategies as st
from small_corpus import small_config

from configs import base
from infoprune_jax import dry_run
from infoprune_jax.config import experiment as config_lib, validation
from infoprune_jax.config.validation import UserError

leaves = st.one_of(
  st.none(),
  st.booleans(),
  st.sampled_from(
    [0, 1, -1, 3, 7, 2**16, 2**31, 2**63, 10**30, -(10**30), 10**400, 10**5000]
  ),
  st.integers(),
  st.floats(),
  st.sampled_from([0.0, 1.0, 0.5, 1e-300, 1e308, math.inf, -math.inf]),
  texts,
  st.sampled_from(['', 'inf', 'nan', 'all', 'top', 'bfloat16', 'source', '*']),
  st.binary(max_size=3),
  st.just(()),
  st.just({}),
  st.lists(st.integers() | texts, max_size=2),
  st.tuples(st.integers(), st.text()),
  st.dictionaries(st.text(), st.integers(), max_size=2),
)


def places(value: Any, path: tuple = ()) -> list[tuple]:
  """Every key below a nested mapping or list, by its path."""
  found = [path] if path else []
  items = (
    value.items()
    if isinstance(value, dict)
    else enumerate(value)
    if isinstance(value, list)
    else ()
  )
  for key, item in items:
    found += places(item, (*path, key))
  return found


def config_of_all_fields() -> dict[str, Any]:
  """Also those of what a config may leave empty."""
  edits = small_config(__file__)
  edits.mesh.rules = {'embed': ('fsdp', 'sequence')}
  edits.model.layer_pattern = ({'window': 8, 'rope_scaling': 'linear'},)
  edits.classifiers.made_up = base.classifier(
    good=base.jsonl('good/*.jsonl'), bad_sources=('made_up',)
  )
  edits.select.decontaminate = base.benchmarks('eval', text_columns=('text',))
  edits.select.tables.made_up = base.table('made_up/*.parquet', on='example_id')
  edits.select.arms.late = base.branch('full', 0.5, base.arm('all'))
  edits.train.training.mixture = {'made_up': 1.0}
  edits.train.training.mixture_schedule = (base.phase(3, {'made_up': 2.0}),)
  edits.select.arms.late = base.branch('full', 0.5, then=base.arm('distinct'))
  return validation.to_plain(config_lib.from_mapping(edits.to_dict()))


PLAIN = config_of_all_fields()
PLACES = places(PLAIN)


def test_every_field_is_fuzzed():
  reached = {place[-1] for place in PLACES}

  def walk(kind: Any) -> None:
    for field in dataclasses.fields(kind):
      assert field.name in reached
      for inner in (field.type, *getattr(field.type, '__args__', ())):
        if dataclasses.is_dataclass(inner):
          walk(inner)

  walk(config_lib.Config)


@fuzz
@given(
  place=st.sampled_from(PLACES),
  value=leaves,
  rest=st.lists(st.tuples(st.sampled_from(PLACES), leaves), max_size=1),
  missing=st.booleans(),
)
def test_configs(place, value, rest, missing, tmp_path_factory, capsys):
  plain = json.loads(json.dumps(PLAIN))
  for path, new in ((place, value), *rest):
    node = plain
    for key in path[:-1]:
      if not isinstance(node, dict | list) or (
        isinstance(node, dict) and key not in node
      ):
        break
      node = node[key]
    else:
      if isinstance(node, dict):
        node[path[-1]] = new
        if missing and not rest:
          del node[path[-1]]
  try:
    config = config_lib.from_mapping(plain)
    dry_run.run(config, str(tmp_path_factory.getbasetemp() / 'nowhere'))
  except UserError as error:
    assert 10 < len(str(error)) < 5000
  capsys.readouterr()


@pytest.mark.parametrize(
  ('text', 'expected'),
  [
    (b'def get_config(:\n', 'broken.py, line 1: SyntaxError: '),
    (b'import nowhere_at_all\n', 'line 1: ModuleNotFoundError: No module'),
    (b'x = 1\n', 'has no function get_config'),
    (b'def get_config():\n  return 1 / 0\n', 'line 2: ZeroDivisionError'),
    (b'def get_config():\n  pass\n', 'returned None'),
    (b'def get_config():\n  return {"corpus": 7}\n', 'config'),
    (b'\x00\xff', 'SyntaxError|source code'),
  ],
)
def test_config_files(text, expected, tmp_path):
  path = tmp_path / 'broken.py'
  path.write_bytes(text)
  code, output = command_line(f'--config={path}')
  assert code == 2, output
  assert 'Traceback' not in output
  assert re.search(expected, output), output
