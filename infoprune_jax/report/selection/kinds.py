"""Kinds of sources: groups by patterns of their names."""

import difflib
import fnmatch
from collections.abc import Mapping, Sequence

from infoprune_jax.config.validation import UserError

OTHER = 'other'
_NAMED = 20  # sources that a message lists


def of_sources(
  kinds: Mapping[str, Sequence[str]], sources: Sequence[str]
) -> dict[str, str]:
  """The kind of each source, or {} if no kinds are given.

  A source that no pattern matches is of the kind `OTHER`.

  >>> of_sources({'code': ('code-*',)}, ['code-go', 'web'])
  {'code-go': 'code', 'web': 'other'}

  Args:
    kinds: Patterns (as in `fnmatch`) or whole names, by kind.
    sources: All names.

  Raises:
    UserError: a pattern matches no source, or two kinds match one.
  """
  if not kinds:
    return {}
  kind_of: dict[str, tuple[str, str]] = {}
  for kind, patterns in kinds.items():
    for pattern in patterns:
      matched = [s for s in sources if _matches(s, pattern)]
      if not matched:
        raise UserError(_no_source(kind, pattern, sources))
      for source in matched:
        other, first = kind_of.setdefault(source, (kind, pattern))
        if other != kind:
          raise UserError(
            f'report.kinds: source {source!r} matches {first!r} of kind '
            f'{other!r}, and {pattern!r} of kind {kind!r}: change the patterns '
            'so that each source is of one kind.'
          )
  return {source: kind_of.get(source, (OTHER,))[0] for source in sources}


def _matches(source: str, pattern: str) -> bool:
  return source == pattern or fnmatch.fnmatchcase(source, pattern)


def _no_source(kind: str, pattern: str, sources: Sequence[str]) -> str:
  names = {source.lower(): source for source in sources}
  bare = pattern.replace('*', '').lower()
  near = difflib.get_close_matches(bare, names, 1, 0.5)
  hint = f' Did you mean {names[near[0]]!r}?' if near else ''
  listed = ', '.join(map(repr, sources[:_NAMED]))
  if len(sources) > _NAMED:
    listed += f' and {len(sources) - _NAMED} more'
  return (
    f'report.kinds: pattern {pattern!r} of kind {kind!r} matches no source '
    f'that was scored.{hint} Sources are {listed}.'
  )
