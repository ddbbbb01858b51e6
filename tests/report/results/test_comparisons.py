"""Comparisons of arms, on losses with known effects."""

import dataclasses

import numpy as np
import pytest

from infoprune_jax.config.experiment import ReportConfig
from infoprune_jax.config.validation import UserError
from infoprune_jax.report.results import comparisons, statistics
from infoprune_jax.report.results.comparisons import Differences, Question
from infoprune_jax.report.results.statistics import HeldoutLosses

MACRO, POOLED = 'macro_bits_per_byte', 'bits_per_byte'
# Of a source: texts, bytes of each, and what pruning changes, in bits per byte.
WRITTEN = {f'written-{k}': (20, 400, -0.25) for k in range(6)}
GENERATED = {'generated': (60, 40_000, 1.75)}


def losses_of(
  sources: dict[str, tuple[int, int, float]],
  by_seed: tuple[float, ...] = (0.0, 0.0, 0.0),
  arms: tuple[str, ...] = ('full', 'top'),
) -> HeldoutLosses:
  """Losses of 1 bit per byte; the last arm's change with source and seed."""
  rng = np.random.default_rng(0)
  names = sorted(sources)
  texts = np.array([sources[name][0] for name in names])
  source = np.repeat(np.arange(len(names)), texts)
  size = np.repeat([sources[name][1] for name in names], texts)
  effect = np.repeat([sources[name][2] for name in names], texts)
  effect = effect + rng.normal(0.0, 0.01, len(effect))
  nll = np.ones((len(arms), len(by_seed), len(size)))
  nll[-1] += effect + np.array(by_seed)[:, None]
  return HeldoutLosses(
    arms=arms,
    seeds=tuple(range(len(by_seed))),
    sources=tuple(names),
    source=source,
    content_hash=rng.integers(-(2**63), 2**63, len(size)),
    num_documents=np.ones(len(size), int),
    num_tokens=size // 4,
    num_bytes=size,
    nll_sum=nll * size * np.log(2.0),
  )


def question(
  losses: HeldoutLosses, names: set[str], measure: str = MACRO
) -> Question:
  inside = np.array([name in names for name in losses.sources])
  target = losses.where(inside[losses.source])
  return Question(('top',), None, None, losses, target, measure)


def compared(asked: Question) -> dict:
  return Differences(asked, [('top', 'full')], 200).of('top', 'full')


@pytest.mark.parametrize('measure', [MACRO, POOLED])
def test_the_target_decides_and_all_bytes_are_told(measure):
  losses = losses_of({**WRITTEN, **GENERATED})
  told = compared(question(losses, set(WRITTEN), measure))
  assert told['verdict'] == 'better'
  assert told['decisive']['estimate'] == pytest.approx(-0.25, abs=0.01)
  assert told['wins']['surely_better'] == told['wins']['sources'] == 6
  assert told['over_all_bytes']['verdict'] != 'better'
  assert told['over_all_bytes']['estimate'] == pytest.approx(1.71, abs=0.02)


def test_a_source_of_many_bytes_decides_only_over_bytes():
  sources = {**WRITTEN, 'generated': (60, 40_000, 0.4)}
  losses = losses_of(sources)
  macro, pooled = (
    compared(question(losses, set(sources), measure))
    for measure in (MACRO, POOLED)
  )
  assert macro['decisive']['estimate'] == pytest.approx(-1.1 / 7, abs=0.01)
  assert macro['wins'] == {
    'sources': 7,
    'better': 6,
    'worse': 1,
    'surely_better': 6,
    'surely_worse': 1,
  }
  assert pooled['decisive']['estimate'] == pytest.approx(0.387, abs=0.01)
  assert pooled['decisive'] == macro['difference'][POOLED]


@pytest.mark.parametrize(
  'by_seed, verdict',
  [
    ((0.0, 0.0, 0.0), 'better'),
    ((0.0, 0.02, -0.02), 'better'),
    # Two seeds: their interval leaves the seeds out, and still they decide.
    ((-0.0, 0.26), 'no conclusion: the seeds disagree'),
    ((-0.1, 0.0, 0.3), 'no conclusion: the seeds disagree'),
    # Three that agree, but may not with another.
    ((-0.5, 0.1, 0.2), 'no difference shown'),
    ((0.4, 0.5), 'worse'),
  ],
)
def test_seeds_decide_before_texts(by_seed, verdict):
  told = compared(question(losses_of(WRITTEN, by_seed), set(WRITTEN)))
  assert told['verdict'] == verdict
  expected = [-0.25 + value for value in by_seed]
  assert told['difference_by_seed']['values'] == pytest.approx(
    expected, abs=0.01
  )


def test_the_price_is_where_the_loss_rises():
  sources = {
    **WRITTEN,
    'written-0': (20, 400, 0.05),
    **GENERATED,
    'generated-2': (20, 400, 0.25),
    'records': (20, 400, -0.1),
    'hashes': (4000, 400, 0.0005),
  }
  asked = question(losses_of(sources), set(WRITTEN))
  kind_of = {
    name: name.split('-')[0] if '-' in name else name for name in sources
  }
  price = comparisons.price(asked, kind_of, 'top', 'full')
  assert [item['name'] for item in price] == ['generated', 'written-0']
  after = [item['after'] - item['before'] for item in price]
  assert after == pytest.approx([1.0, 0.05], abs=0.01)
  assert price[0]['before'] == pytest.approx(1.0)
  # Without kinds each source is told.
  price = comparisons.price(asked, {}, 'top', 'full')
  assert [item['name'] for item in price] == [
    'generated',
    'generated-2',
    'written-0',
  ]
  assert comparisons.price(asked, {}, 'full', 'full') == []


def arm(name: str, kept: float = 0.5, **fields) -> dict:
  return {
    'name': name,
    'kept_tokens': kept,
    'added_tokens': None,
    'keeps_everything': False,
    'by_chance': False,
    **fields,
  }


ARMS = [
  arm('random_20', 0.2, by_chance=True),
  arm('random_50', by_chance=True),
  arm('top', 0.49),
  arm('strict', 0.2),
  arm('longer', 1.0, added_tokens=9, keeps_everything=True),
  arm('full', 1.0, keeps_everything=True),
]


@pytest.mark.parametrize(
  'name, baseline, expected',
  [
    ('top', 'full', ['full', 'random_50', 'longer']),
    ('strict', 'random_50', ['full', 'random_20', 'longer']),
    ('strict', 'top', ['full', 'random_20', 'longer', 'top']),
    ('full', 'random_20', ['random_50', 'longer']),
  ],
)
def test_references_are_in_the_order_of_statements(name, baseline, expected):
  found = comparisons.references(ARMS, name, baseline)
  assert [reference for _, reference in found] == expected
  for role, reference in found:
    index = [arm['name'] for arm in ARMS].index(reference)
    of_arm = comparisons.role(ARMS[index])
    assert role == of_arm or (role, of_arm) == ('baseline', 'rule')


def test_candidates_are_the_arms_with_a_rule():
  assert comparisons.candidates(ARMS, 'full') == ('top', 'strict')
  assert comparisons.candidates(ARMS, 'top') == ('strict',)
  assert comparisons.candidates(ARMS[:2], 'random_20') == ('random_50',)
  assert comparisons.candidates(ARMS[:1], 'random_20') == ()


def curve(arm: str, measured: list[float] | None) -> dict:
  return {'arm': arm, 'step': [0, 10, 20], 'measured': measured}


def test_the_first_step_below_a_final_loss():
  curves = [
    curve('full', [4.0, 3.0, 2.0]),
    curve('full', [4.0, 3.0, 2.2]),
    curve('top', [4.0, 2.5, 1.0]),
    curve('top', [4.0, 1.5, 1.0]),
    curve('poor', [4.0, 3.0, 2.5]),
    curve('old', None),
  ]
  assert comparisons.first_step_below(curves, 'top', 'full') == {
    'step': 10,
    'of': 20,
  }
  assert comparisons.first_step_below(curves, 'poor', 'full') == {
    'step': None,
    'of': 20,
  }
  assert comparisons.first_step_below(curves, 'old', 'full') is None
  assert comparisons.first_step_below(curves, 'top', 'old') is None


def test_a_curve_is_measured_as_the_losses_are():
  losses = losses_of({**WRITTEN, **GENERATED})
  tokens = losses.by_source(losses.num_tokens)
  nats = losses.by_source(losses.nll_sum[1, 0]) / tokens
  by_source = {
    source: [value, 2 * value]
    for source, value in zip(losses.sources, nats, strict=True)
  }
  told = {'nats_per_token_by_source': {**by_source, 'other': [9.0, 9.0]}}
  for measure, values in statistics.losses_by_seed(losses).items():
    expected = [values[1, 0], 2 * values[1, 0]]
    assert comparisons.measured_curve(told, losses, measure) == pytest.approx(
      expected
    )
  del told['nats_per_token_by_source']['generated']
  assert comparisons.measured_curve(told, losses, MACRO) is None


def test_a_target_without_held_out_texts_is_refused():
  losses = losses_of(WRITTEN)
  selections = {
    'arms': [arm('full', keeps_everything=True), arm('top')],
    'mix': {'sources': [{'source': 'rare'}]},
  }
  report = ReportConfig(baseline='full', target=('rare',))
  with pytest.raises(UserError, match='too few held-out texts'):
    comparisons.ask(report, selections, losses)
  asked = comparisons.ask(
    dataclasses.replace(report, target=('written-1', 'rare')),
    selections,
    losses,
  )
  assert asked.target.sources == ('written-1',)
  assert asked.judged is losses
