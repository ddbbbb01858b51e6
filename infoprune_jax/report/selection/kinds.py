"""Kinds of sources: groups by patterns of their names."""

import difflib
import fnmatch
from collections.abc import Mapping, Sequence

from infoprune_jax.config.experiment import ReportConfig
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


def targeted(config: ReportConfig, sources: Sequence[str]) -> list[str]:
  """The sources that decide: those of `report.target`, or all.

  An entry of the target that is a kind stands for its sources. Any other entry
  is a pattern of names of sources.

  Raises:
    UserError: an entry is no kind and matches no source.
  """
  kind_of = of_sources(config.kinds, sources)
  decides = set() if config.target else set(sources)
  for entry in config.target:
    members = {source for source, kind in kind_of.items() if kind == entry}
    members = members or {s for s in sources if _matches(s, entry)}
    if not members:
      raise UserError(
        f'report.target: {entry!r} is no kind of report.kinds '
        f'({", ".join(config.kinds) or "none"}) and matches no source.'
        + _sources_like(entry, [*config.kinds, *sources], sources)
      )
    decides |= members
  return [source for source in sources if source in decides]


def _matches(source: str, pattern: str) -> bool:
  return source == pattern or fnmatch.fnmatchcase(source, pattern)


def _no_source(kind: str, pattern: str, sources: Sequence[str]) -> str:
  return (
    f'report.kinds: pattern {pattern!r} of kind {kind!r} matches no source '
    f'that was scored.{_sources_like(pattern, sources, sources)}'
  )


def _sources_like(
  pattern: str, names: Sequence[str], sources: Sequence[str]
) -> str:
  """A hint at the name that was meant, and the sources there are."""
  lowered = {name.lower(): name for name in names}
  bare = pattern.replace('*', '').lower()
  near = difflib.get_close_matches(bare, lowered, 1, 0.5)
  hint = f' Did you mean {lowered[near[0]]!r}?' if near else ''
  listed = ', '.join(map(repr, sources[:_NAMED]))
  if len(sources) > _NAMED:
    listed += f' and {len(sources) - _NAMED} more'
  return f'{hint} Sources are {listed}.'
