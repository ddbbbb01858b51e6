"""Which arms are compared with which, on which texts, and what comes out."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from infoprune_jax.config.experiment import ReportConfig
from infoprune_jax.config.validation import UserError
from infoprune_jax.report.results import statistics, wording
from infoprune_jax.report.results.statistics import HeldoutLosses
from infoprune_jax.report.selection import kinds

# What arms with a rule are compared with, in the order of statements: all that
# was scored, a random draw, and all data at the same total FLOPs.
ROLES = ('full', 'random', 'longer')
NOTABLE = 0.001  # bits per byte: `price` leaves out smaller losses
SEED = 0  # of the bootstrap; fixed, so that a page written again is the same

Arm = Mapping[str, Any]  # As in `selections.json`.


@dataclasses.dataclass(frozen=True)
class Question:
  """The arms that the headline is about, and the texts that judge them."""

  headline: tuple[str, ...]  # arms: named in advance, or the best of several
  chosen: str | None  # the arm that was chosen on `choose`
  choose: HeldoutLosses | None  # texts of the target; None if none was chosen
  judged: HeldoutLosses  # texts of all sources
  target: HeldoutLosses  # those texts of `judged` that decide
  measure: str  # that decides, one of `statistics.MEASURES`


def ask(
  report: ReportConfig, selections: Mapping[str, Any], losses: HeldoutLosses
) -> Question:
  """Chooses the arms of the headline, and the texts that judge them.

  Arms of `report.hypothesis` are judged on all texts. So is the only arm with a
  rule. The best of several arms is chosen on one half of the texts and judged
  on the other half.

  Raises:
    UserError: an arm of the hypothesis was not trained, or there are too few
      texts.
  """
  for name in report.hypothesis:
    if name not in losses.arms:
      raise UserError(
        f'report.hypothesis names {name!r}, which is not in train.arms '
        f'({", ".join(losses.arms)}): train it, or name other arms.'
      )
  names = kinds.targeted(report, sources_of(selections, losses))
  measure = statistics.DECISIVE[report.measure]
  headline = tuple(dict.fromkeys(report.hypothesis))
  headline = headline or candidates(selections['arms'], report.baseline)
  chosen, choose, judged = None, None, losses
  if len(headline) > 1 and not report.hypothesis:
    choose, judged = statistics.halves(losses)
    choose = _of_sources(choose, names)
    mean = statistics.losses_by_seed(choose)[measure].mean(axis=1)
    chosen = min(headline, key=lambda name: mean[losses.arms.index(name)])
    headline = (chosen,)
  target = _of_sources(judged, names)
  return Question(headline, chosen, choose, judged, target, measure)


def sources_of(
  selections: Mapping[str, Any], losses: HeldoutLosses
) -> list[str]:
  """All sources, also those without held-out text, in order."""
  scored = {source['source'] for source in selections['mix']['sources']}
  return sorted(scored | set(losses.sources))


def _of_sources(losses: HeldoutLosses, names: Sequence[str]) -> HeldoutLosses:
  """The texts of some sources.

  Raises:
    UserError: there are none.
  """
  inside = np.isin(losses.sources, names)
  if not inside.any():
    raise UserError(
      'The sources of report.target have too few held-out texts: raise '
      'corpus.heldout_fraction, or change report.target.'
    )
  return losses.where(inside[losses.source])


def role(arm: Arm) -> str:
  """One of `ROLES`, or 'rule' for an arm that prunes by a rule."""
  if arm['added_tokens'] is not None:
    return 'longer'
  if arm['keeps_everything']:
    return 'full'
  return 'random' if arm['by_chance'] else 'rule'


def candidates(arms: Sequence[Arm], baseline: str) -> tuple[str, ...]:
  """The arms with a rule; without one, all arms but the baseline."""
  others = [arm for arm in arms if arm['name'] != baseline]
  ruled = [arm for arm in others if role(arm) == 'rule']
  return tuple(arm['name'] for arm in ruled or others)


def references(
  arms: Sequence[Arm], name: str, baseline: str
) -> list[tuple[str, str]]:
  """Role and name of each arm that an arm is compared with, in order.

  Of several arms of one role it is the one that keeps most nearly as much. A
  baseline with a rule comes last, with the role 'baseline'.
  """
  arm = next(arm for arm in arms if arm['name'] == name)
  others = [other for other in arms if other is not arm]
  named = []
  for one in ROLES:
    of_role = [other for other in others if role(other) == one]
    if of_role:
      nearest = min(
        of_role,
        key=lambda other: (
          round(abs(other['kept_tokens'] - arm['kept_tokens']), 2),
          other['name'] != baseline,
        ),
      )
      named.append((one, nearest['name']))
  if any(o['name'] == baseline and role(o) == 'rule' for o in others):
    named.append(('baseline', baseline))
  return named


class Differences:
  """Arm minus reference, for some pairs of arms, on the judged texts."""

  def __init__(
    self, question: Question, pairs: Sequence[tuple[str, str]], samples: int
  ):
    """Runs the bootstrap of all pairs.

    Args:
      question: With the texts.
      pairs: Names of an arm and of its reference.
      samples: Of the bootstrap.
    """
    self._pairs, self._measure = list(pairs), question.measure
    names = question.judged.arms
    indices = [(names.index(a), names.index(b)) for a, b in self._pairs]
    judged, target = question.judged, question.target
    self._target = statistics.difference_intervals(
      target, indices, samples, SEED
    )
    self._by_seed = statistics.differences_by_seed(target, indices)
    self._all, self._all_by_seed = self._target, self._by_seed
    if target.sources != judged.sources:
      self._all = statistics.difference_intervals(
        judged, indices, samples, SEED
      )
      self._all_by_seed = statistics.differences_by_seed(judged, indices)
    self._sources = statistics.source_intervals(judged, indices, samples, SEED)
    self._is_target = np.isin(judged.sources, target.sources)

  def of(self, arm: str, reference: str) -> dict[str, Any]:
    """All numbers of one pair.

    Returns:
      `difference`: by measure, `{'estimate', 'low', 'high'}` over the target.
      `decisive` and `difference_by_seed`: in the measure that decides.
      `verdict`: by these two.
      `wins`: counts of sources of the target. `over_all_bytes`: the difference
      in bits per byte over all texts, with its `verdict`.
    """
    p = self._pairs.index((arm, reference))
    difference = _of_pair(self._target, p)
    by_seed = self._by_seed[self._measure][p]
    over_all = _of_pair(self._all, p)['bits_per_byte']
    all_by_seed = self._all_by_seed['bits_per_byte'][p].tolist()
    return {
      'difference': difference,
      'decisive': difference[self._measure],
      'difference_by_seed': statistics.seed_spread(by_seed),
      'verdict': wording.verdict(difference[self._measure], by_seed.tolist()),
      'wins': self._wins(p),
      'over_all_bytes': {
        **over_all,
        'verdict': wording.verdict(over_all, all_by_seed),
      },
    }

  def of_source(self, arm: str, reference: str, k: int) -> dict[str, Any]:
    """The difference in bits per byte within source `k` of the judged texts."""
    p = self._pairs.index((arm, reference))
    return {
      key: None if np.isnan(values[p, k]) else float(values[p, k])
      for key, values in self._sources.items()
    }

  def _wins(self, p: int) -> dict[str, int]:
    """On how many sources an arm is better, and worse, than its reference."""
    estimate, low, high = (
      self._sources[key][p, self._is_target]
      for key in ('estimate', 'low', 'high')
    )
    return {
      'sources': len(estimate),
      'better': int((estimate < 0.0).sum()),
      'worse': int((estimate > 0.0).sum()),
      'surely_better': int((high < 0.0).sum()),
      'surely_worse': int((low > 0.0).sum()),
    }


def _of_pair(
  intervals: Mapping[str, Mapping[str, np.ndarray]], p: int
) -> dict[str, dict[str, float]]:
  return {
    measure: {key: float(values[p]) for key, values in parts.items()}
    for measure, parts in intervals.items()
  }


def price(
  question: Question, kind_of: Mapping[str, str], arm: str, reference: str
) -> list[dict[str, Any]]:
  """The losses where an arm is worse than its reference.

  Args:
    question: With the texts.
    kind_of: The kind of each source; {} if there are no kinds.
    arm: Its name.
    reference: The name of the arm that it is compared with.

  Returns:
    `{'name', 'before', 'after'}` of each source of the target, and of each kind
    (or source) outside of it, whose loss is higher by `NOTABLE` or more,
    largest increase first. Before and after are in bits per byte, in the
    measure that decides.
  """
  judged, target = question.judged, set(question.target.sources)
  groups: dict[tuple[bool, str], list[int]] = {}
  for k, source in enumerate(judged.sources):
    name = source if source in target else kind_of.get(source, source)
    groups.setdefault((source in target, name), []).append(k)
  indices = [judged.arms.index(name) for name in (reference, arm)]
  nll = judged.by_source(judged.nll_sum[indices].mean(axis=1))  # [2, K]
  tokens = judged.by_source(judged.num_tokens)
  size = judged.by_source(judged.num_bytes)
  worse = []
  for (_, name), members in groups.items():
    losses = statistics.measures(
      nll[:, members], tokens[members], size[members]
    )
    before, after = losses[question.measure].tolist()
    if after - before >= NOTABLE:
      worse.append({'name': name, 'before': before, 'after': after})
  return sorted(worse, key=lambda item: item['before'] - item['after'])


def measured_curve(
  curve: Mapping[str, Any], losses: HeldoutLosses, measure: str
) -> list[float] | None:
  """The loss of the target during training, in the measure that decides.

  The loss of each source, which is in nats per token, is weighed by the tokens
  and bytes of its texts in `losses`.

  Args:
    curve: Of `inputs.heldout_curve`.
    losses: The texts of the target.
    measure: One of `statistics.MEASURES`.

  Returns:
    A number for each step of the curve; None if the curve lacks a source.
  """
  by_source = curve['nats_per_token_by_source']
  if not all(source in by_source for source in losses.sources):
    return None
  nats = np.array([by_source[source] for source in losses.sources]).T
  tokens = losses.by_source(losses.num_tokens)
  size = losses.by_source(losses.num_bytes)
  return statistics.measures(nats * tokens, tokens, size)[measure].tolist()


def first_step_below(
  curves: Sequence[Mapping[str, Any]], arm: str, reference: str
) -> dict[str, int | None] | None:
  """When an arm reaches the final loss of its reference, in means over seeds.

  Args:
    curves: Of all runs: `arm`, `step`, and `measured`, as `measured_curve`.
    arm: Its name.
    reference: The name of the other arm.

  Returns:
    `step`: the first evaluated step with a loss as low, or None. `of`: the last
    step of the reference. None if the curves are not known.
  """
  own, other = (_mean_curve(curves, name) for name in (arm, reference))
  if not own or not other:
    return None
  last = max(other)
  reached = [step for step in sorted(own) if own[step] <= other[last]]
  return {'step': reached[0] if reached else None, 'of': last}


def _mean_curve(
  curves: Sequence[Mapping[str, Any]], arm: str
) -> dict[int, float]:
  """The mean over seeds at the steps that all runs of an arm evaluated."""
  runs = [curve for curve in curves if curve['arm'] == arm]
  if any(run['measured'] is None for run in runs):
    return {}
  by_step = [dict(zip(r['step'], r['measured'], strict=True)) for r in runs]
  common = set.intersection(*map(set, by_step))
  return {
    step: sum(run[step] for run in by_step) / len(runs) for step in common
  }
