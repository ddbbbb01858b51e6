"""Kinds of sources."""

import pytest

from infoprune_jax.config.validation import UserError
from infoprune_jax.report.selection import kinds

SOURCES = ['code-go', 'code-java', 'news', 'wiki [en]']


def test_sources_of_no_kind_are_other():
  assert kinds.of_sources({'code': ('code-*',)}, SOURCES) == {
    'code-go': 'code',
    'code-java': 'code',
    'news': 'other',
    'wiki [en]': 'other',
  }


def test_a_whole_name_is_a_pattern_whatever_it_holds():
  kind_of = kinds.of_sources({'wiki': ('wiki [en]',)}, SOURCES)
  assert kind_of['wiki [en]'] == 'wiki'


def test_no_kinds():
  assert kinds.of_sources({}, SOURCES) == {}


@pytest.mark.parametrize(
  ('given', 'expected'),
  [
    (
      {'code': ('code-*', 'new')},
      r"pattern 'new' of kind 'code' matches no source that was scored\. Did "
      r"you mean 'news'\? Sources are 'code-go', .* 'wiki \[en\]'\.",
    ),
    (
      {'code': ('CODE-*',)},
      "pattern 'CODE-\\*' of kind 'code' .* mean 'code-go'",
    ),
    (
      {'code': ('code-*',), 'go': ('*-go',)},
      r"source 'code-go' matches 'code-\*' of kind 'code', and '\*-go' of kind",
    ),
  ],
)
def test_a_wrong_pattern_is_named(given, expected):
  with pytest.raises(UserError, match=r'report\.kinds: ' + expected):
    kinds.of_sources(given, SOURCES)


def test_of_many_sources_some_are_listed():
  with pytest.raises(UserError, match="'s19' and 10 more"):
    kinds.of_sources({'x': ('y',)}, [f's{n:02}' for n in range(30)])


def test_two_patterns_of_one_kind_may_match_one_source():
  kind_of = kinds.of_sources({'code': ('code-*', '*-go')}, SOURCES)
  assert kind_of['code-go'] == 'code'
