"""Kinds of sources."""

import pytest

from infoprune_jax.config.experiment import ReportConfig
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


def targeted(*target: str, **kinds_: tuple[str, ...]) -> list[str]:
  report = ReportConfig(baseline='full', kinds=kinds_, target=target)
  return kinds.targeted(report, SOURCES)


def test_without_a_target_all_sources_decide():
  assert targeted() == targeted(code=('code-*',)) == SOURCES


def test_a_target_is_kinds_or_patterns():
  code = ['code-go', 'code-java']
  assert targeted('code', code=('code-*',)) == code
  assert targeted('other', code=('code-*',)) == ['news', 'wiki [en]']
  assert targeted('*-java', 'code', code=('code-*',)) == code
  assert targeted('wiki [en]', 'code-g?') == ['code-go', 'wiki [en]']
  # A kind comes before a pattern.
  assert targeted('news', news=('code-*',)) == code


def test_an_unknown_target_is_refused():
  message = (
    r"report\.target: 'cod' is no kind of report\.kinds \(code\) and matches no "
    r"source\. Did you mean 'code'\? Sources are 'code-go', "
  )
  with pytest.raises(UserError, match=message):
    targeted('cod', code=('code-*',))
  with pytest.raises(UserError, match=r'kinds \(none\) and matches'):
    targeted('other')
