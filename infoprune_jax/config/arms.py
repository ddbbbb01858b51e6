"""The arms of an experiment: their rules, and their phases.

A config file gives an arm as rules, or as phases with rules of their own.
`expand` writes phases in terms of rules and branches, which is all that the
stages know: each phase has a keep set, under a name in `SelectConfig.arms`.
Standard library only.
"""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

from infoprune_jax.config.decontamination import BenchmarksConfig
from infoprune_jax.config.duplicated_text import DuplicatedTextConfig
from infoprune_jax.config.selection import (
  RuleConfig,
  TableConfig,
  check_table_name,
)
from infoprune_jax.config.validation import UserError, build, check_choice

SCORE_WITH = ('reference', 'itself')


@dataclasses.dataclass(frozen=True, kw_only=True)
class PhaseConfig:
  """What an arm trains on from one of its steps on."""

  at: float  # the fraction of the steps before it; 0.0 for the first phase
  rules: tuple[RuleConfig, ...] = ()
  # Of the first phase, in place of rules: the arm whose run it shares.
  arm: str = ''
  # Of the phase after another arm's run, see `BranchConfig.score_with`.
  score_with: str = 'reference'

  def __post_init__(self):
    check_choice('score_with', self.score_with, SCORE_WITH)


@dataclasses.dataclass(frozen=True, kw_only=True)
class BranchConfig:
  """An arm that trains as another one does, and then on its own keep set."""

  arm: str  # the other arm
  at: float  # the fraction of the steps that it trains as the other arm
  # Whether it starts from the checkpoint that the other arm's run has there. If
  # not, its run takes those steps itself, and the other arm is only a keep set.
  shares_run: bool = True
  # The model whose scores its rules read: 'reference' for the reference model,
  # or 'itself' for the checkpoint that it starts from. That is another model
  # for each seed, so each seed then has its own keep set.
  score_with: str = 'reference'

  def __post_init__(self):
    check_choice('score_with', self.score_with, SCORE_WITH)
    if self.score_with == 'itself' and not self.shares_run:
      raise UserError(
        "score_with='itself' needs the checkpoint of another arm's run: give "
        "base.branch(arm, at, then, score_with='itself') in place of phases."
      )
    if not 0.0 < self.at < 1.0:
      raise UserError(
        f'the fraction of the steps must be in (0, 1), got {self.at}.'
      )


@dataclasses.dataclass(frozen=True, kw_only=True)
class SelectConfig:
  """The rules of each arm, applied one after another."""

  arms: Mapping[str, tuple[RuleConfig, ...]]
  # Of arms with several phases. `expand` makes them of `base.phases` and
  # `base.branch`.
  branches: Mapping[str, BranchConfig] = dataclasses.field(default_factory=dict)
  # Tables of the user's, whose columns rules can read as TABLE.COLUMN.
  tables: Mapping[str, TableConfig] = dataclasses.field(default_factory=dict)
  # Benchmarks whose text is looked for in the corpus.
  decontaminate: BenchmarksConfig = dataclasses.field(
    default_factory=BenchmarksConfig
  )
  duplicated_text: DuplicatedTextConfig = dataclasses.field(
    default_factory=DuplicatedTextConfig
  )

  def __post_init__(self):
    for name in self.tables:
      check_table_name(name)
    for name, rules in self.arms.items():
      if not rules:
        raise UserError(f'select.arms.{name} has no rule.')
      if len(rules) > 1 and _is_longer(rules):
        raise UserError(
          f"select.arms.{name}: keep='all_plus_reference' adds documents that "
          'were not scored, so it must be the only rule: remove the other rules, '
          "or use keep='all'."
        )
      if any(rule.keep == 'repeat' for rule in rules[:-1]):
        raise UserError(
          f"select.arms.{name}: keep='repeat' must be the last rule, because "
          'the other rules do not count repeats: move it to the end.'
        )
      if not name.isidentifier():
        raise UserError(f'select.arms: {name!r} must be a Python identifier.')
    for name, branch in self.branches.items():
      check_choice('An arm of select.branches', name, tuple(self.arms))
      check_choice(f'select.arms.{name}: the arm', branch.arm, tuple(self.arms))
    for name in self.branches:
      self._check_branch(name)
      if self.scores_itself(name) and name not in self.trained:
        raise UserError(
          f"select.arms.{name} has score_with='itself', but is only a phase of "
          'another arm, and has no run: make it an arm of its own, by '
          'base.branch, and let the other arm branch off it.'
        )

  def _check_branch(self, name: str) -> None:
    chain, last = [name], 1.0
    while branch := self.branches.get(chain[-1]):
      if branch.arm in chain:
        raise UserError(
          f'select.arms: {", which starts from ".join([*chain, branch.arm])}: '
          'this is a cycle. Let one of them be an arm with rules of its own.'
        )
      if branch.at >= last:
        raise UserError(
          f'select.arms.{name}: the phase of {chain[-1]} starts at {branch.at} '
          f'of the steps, and the one after it at {last}: give ascending '
          'fractions, or name an arm that starts earlier.'
        )
      chain.append(branch.arm)
      last = branch.at
    for arm in chain:
      if _is_longer(self.arms[arm]):
        raise UserError(
          f"select.arms.{name}: {arm} has keep='all_plus_reference', which "
          'trains for more steps than other arms, so it can be no phase: use '
          "keep='all'."
        )

  @property
  def trained(self) -> tuple[str, ...]:
    """The arms that can be trained: without those that are only a keep set."""
    parts = {b.arm for b in self.branches.values() if not b.shares_run}
    return tuple(name for name in self.arms if name not in parts)

  def phases(self, arm: str) -> tuple[tuple[float, str], ...]:
    """The phases of an arm, from 0.0 on.

    Returns:
      For each phase the fraction of the steps before it, and the arm whose keep
      set it trains on. The last is `arm`.
    """
    branch = self.branches.get(arm)
    if not branch:
      return ((0.0, arm),)
    return (*self.phases(branch.arm), (branch.at, arm))

  def has_plain_run(self, arm: str) -> bool:
    """Whether an arm has one phase, and the steps that most arms have."""
    return arm not in self.branches and not _is_longer(self.arms[arm])

  def scores_itself(self, arm: str) -> bool:
    """Whether the rules of an arm read the scores by its own checkpoint."""
    return arm in self.branches and self.branches[arm].score_with == 'itself'

  def shared(self, arm: str) -> BranchConfig | None:
    """The other arm whose run an arm starts from, if there is one."""
    branch = self.branches.get(arm)
    while branch and not branch.shares_run:
      branch = self.branches.get(branch.arm)
    return branch


def _is_longer(rules: Iterable[RuleConfig]) -> bool:
  return any(rule.keep == 'all_plus_reference' for rule in rules)


def expand(select: Mapping[str, Any]) -> dict[str, Any]:
  """The section `select`, with phases written as arms and branches.

  An arm of phases has the rules of its last phase. Those of earlier phases are
  arms of their own, `NAME_phase_1` and so on.

  Args:
    select: The section of a config file; arms are rules or phases.

  Raises:
    UserError: the phases of an arm are not in order, or one has no rules.
  """
  arms, branches = {}, dict(select.get('branches', {}).items())
  for name, items in select['arms'].items():
    if not _are_phases(items):
      arms[name] = items
      continue
    where = f'config.select.arms.{name}'
    phases = build(tuple[PhaseConfig, ...], items, where)
    _check_phases(phases, where)
    before = phases[0].arm
    for number, phase in enumerate(phases, 1):
      if phase.arm:
        continue
      own = name if number == len(phases) else f'{name}_phase_{number}'
      if own in arms or (own != name and own in select['arms']):
        raise UserError(
          f'In {where}: its phase {number} is called {own!r}, and so is another '
          'arm: rename that arm.'
        )
      arms[own] = items[number - 1]['rules']
      if number > 1:
        branches[own] = {
          'arm': before,
          'at': phase.at,
          'shares_run': before == phases[0].arm,
          'score_with': phase.score_with,
        }
      before = own
  return {**select, 'arms': arms, 'branches': branches}


def _are_phases(items: Any) -> bool:
  items = items if isinstance(items, tuple | list) else (items,)
  return any(hasattr(item, 'items') and 'at' in item for item in items)


def _check_phases(phases: tuple[PhaseConfig, ...], where: str) -> None:
  starts = [phase.at for phase in phases]
  in_order = starts == sorted(set(starts)) and starts[-1] < 1.0
  if len(phases) < 2 or starts[0] != 0.0 or not in_order:
    raise UserError(
      f'In {where}: phases start at {", ".join(map(str, starts))} of the steps: '
      'give two or more, the first at 0.0 and the others in (0, 1), ascending.'
    )
  for number, phase in enumerate(phases, 1):
    if phase.score_with != 'reference' and number == 1:
      raise UserError(
        f'In {where}: the first phase has score_with={phase.score_with!r}, but '
        'there is no checkpoint before it: remove it.'
      )
    if bool(phase.rules) == bool(phase.arm) or (phase.arm and number > 1):
      raise UserError(
        f'In {where}: phase {number} needs rules; only the first phase can have '
        f'the name of an arm in their place. It has {len(phase.rules)} rules '
        f'and the arm {phase.arm!r}.'
      )
