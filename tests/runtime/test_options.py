"""Options: written without defaults, compared with them, defaults frozen."""

import dataclasses
import json
import math
import pathlib
from collections.abc import Mapping
from typing import Any, get_args, get_type_hints

import pytest

from infoprune_jax.config.experiment import Config
from infoprune_jax.config.validation import (
  UserError,
  build,
  default_of,
  to_plain,
)
from infoprune_jax.runtime import artifacts, manifests
from infoprune_jax.runtime.options import first_difference, options_of, recorded

FROZEN = pathlib.Path(__file__).parents[1] / 'golden' / 'defaults.txt'
REFRESH = (
  'python -m pytest tests/runtime/test_options.py -k frozen --refresh-goldens'
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Window:
  tokens: int
  overlap: int = 8


@dataclasses.dataclass(frozen=True, kw_only=True)
class Section:
  seed: int
  low: float = -math.inf
  # Not what `Window` itself has.
  window: Window = Window(tokens=64, overlap=16)
  windows: Mapping[str, Window] = dataclasses.field(default_factory=dict)
  rules: tuple[Window, ...] = ()


EXAMPLES = [
  (Section(seed=0), {'seed': 0}),
  (Section(seed=0, low=0.5), {'seed': 0, 'low': 0.5}),
  (
    Section(seed=0, window=Window(tokens=64)),
    {'seed': 0, 'window': {'tokens': 64}},
  ),
  (
    Section(seed=0, windows={'a': Window(tokens=1), 'b': Window(tokens=2)}),
    {'seed': 0, 'windows': {'a': {'tokens': 1}, 'b': {'tokens': 2}}},
  ),
  (
    Section(seed=0, rules=(Window(tokens=1), Window(tokens=1, overlap=0))),
    {'seed': 0, 'rules': [{'tokens': 1}, {'tokens': 1, 'overlap': 0}]},
  ),
]


def spelled(value: Any) -> Any:
  """A record as versions wrote it that left nothing out."""
  return to_plain(value)


@pytest.mark.parametrize('section, short', EXAMPLES)
def test_a_record_leaves_defaults_out(section, short):
  assert recorded(section) == short
  assert recorded(options_of(section)) == short
  assert recorded({'some': (section,)}) == {'some': [short]}
  assert json.loads(json.dumps(short, allow_nan=False)) == short


@pytest.mark.parametrize('section, short', EXAMPLES)
def test_a_section_comes_back_from_its_record(section, short):
  assert build(Section, short, 'it') == section
  assert build(Section, spelled(section), 'it') == section


@pytest.mark.parametrize('section, short', EXAMPLES)
def test_a_record_with_defaults_and_one_without_are_the_same(section, short):
  for found in (short, spelled(section)):
    assert first_difference(found, section, 'it') == ''
  for other, _ in EXAMPLES:
    if other != section:
      assert first_difference(short, other, 'it')
      assert first_difference(spelled(section), other, 'it')


@pytest.mark.parametrize(
  'found, expected, message',
  [
    ({'seed': 0}, Section(seed=1), 'it.seed is 0, not 1'),
    ({'seed': 0}, Section(seed=0, low=0.5), "it.low is '-inf', not 0.5"),
    ({'seed': 0, 'low': 0.5}, Section(seed=0), "it.low is 0.5, not '-inf'"),
    ({}, Section(seed=3), 'it.seed is only in this config, as 3'),
    (
      {'seed': 0, 'gone': 3},
      Section(seed=0),
      'it.gone is only there, as 3',
    ),
    # Without a window, it is the section's; without an overlap, the window's.
    (
      {'seed': 0},
      Section(seed=0, window=Window(tokens=64)),
      'it.window.overlap is 16, not 8',
    ),
    (
      {'seed': 0, 'window': {'tokens': 64}},
      Section(seed=0),
      'it.window.overlap is 8, not 16',
    ),
    (
      {'seed': 0},
      Section(seed=0, windows={'a': Window(tokens=1)}),
      "it.windows.a is only in this config, as {'tokens': 1}",
    ),
    (
      {'seed': 0, 'rules': [{'tokens': 1}, {'tokens': 2}]},
      Section(seed=0, rules=(Window(tokens=1), Window(tokens=2, overlap=9))),
      'it.rules[1].overlap is 8, not 9',
    ),
    (
      {'seed': 0, 'rules': [{'tokens': 1}]},
      Section(seed=0),
      "it.rules is [{'tokens': 1}], not []",
    ),
  ],
)
def test_a_difference_has_a_name_and_both_values(found, expected, message):
  assert first_difference(found, expected, 'it') == message


def test_an_artifact_keeps_the_words_that_it_was_begun_with(tmp_path):
  """Made again, in part, it has the fingerprint that others name."""
  section = Section(seed=0)
  made = artifacts.Artifact(str(tmp_path), 'thing', 'do', section, {})
  older = dataclasses.replace(made, options=spelled(section))
  older.begin()
  before = older.finish({})
  assert before['options'] == spelled(section)
  assert made.finished() == before
  made.begin()
  assert made.finish({}) == before
  (tmp_path / manifests.BEGUN).unlink()
  made.begin()
  assert made.finish({})['options'] == {'seed': 0}
  other = dataclasses.replace(made, options=Section(seed=0, low=0.5))
  for refuses in (other.begin, other.finished):
    with pytest.raises(UserError, match="options: low '-inf' -> 0.5"):
      refuses()


def sections(kind: Any) -> dict[str, type]:
  """The dataclasses that a type is made of, by name."""
  found = {}
  if dataclasses.is_dataclass(kind):
    found[kind.__name__] = kind
    for hint in get_type_hints(kind).values():
      found |= sections(hint)
  for argument in get_args(kind):
    found |= sections(argument)
  return found


def test_defaults_are_frozen(request):
  version = f'format_version = {manifests.FORMAT_VERSION}'
  here = [
    f'{name}.{field.name} = {recorded(default_of(field))!r}'
    for name, kind in sorted(sections(Config).items())
    for field in dataclasses.fields(kind)
    if default_of(field) is not dataclasses.MISSING
  ]
  frozen = FROZEN.read_text().splitlines() if FROZEN.exists() else ['']
  changed = sorted(set(frozen[1:]) - set(here)) if frozen[0] == version else []
  assert not changed, (
    f'{changed}: other defaults, or none. Artifacts leave out options at their '
    'default, so that those of users would now mean something else. Put the '
    'default back; another value goes into configs/. Only together with a '
    'higher artifacts.FORMAT_VERSION may a line change or go.'
  )
  if request.config.getoption('--refresh-goldens'):
    FROZEN.write_text('\n'.join([version, *here]) + '\n')
    return
  assert [version, *here] == frozen, (
    f'New defaults, or a higher FORMAT_VERSION: {REFRESH}. From then on they '
    'are part of the format. A new option must do at its default what was '
    'done without it.'
  )


def test_seeds_have_no_default():
  for kind in sections(Config).values():
    for field in dataclasses.fields(kind):
      if field.name in ('seed', 'seeds'):
        assert default_of(field) is dataclasses.MISSING, kind
