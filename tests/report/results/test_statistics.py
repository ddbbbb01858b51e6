"""Statistics of paired differences."""

import dataclasses

import numpy as np
import pytest

from infoprune_jax.config.validation import UserError
from infoprune_jax.report.results import bootstrap, statistics
from infoprune_jax.report.results.statistics import HeldoutLosses

PAIRS = [(0, 0), (1, 0)]


def simulated(
  rng: np.random.Generator,
  *,
  num_sources: int = 20,
  num_documents: int = 15,
  shift: float = 0.0,
  source_sd: float = 0.0,
  document_sd: float = 0.1,
) -> dict:
  """Two arms, one seed; the second arm is `shift` nats per token above."""
  total = num_sources * num_documents
  tokens = np.full(total, 100)
  effect = shift + np.repeat(
    rng.normal(0.0, source_sd, num_sources), num_documents
  )
  effect = effect + rng.normal(0.0, document_sd, total)
  nats = rng.normal(3.0, 0.5, total)
  return {
    'sources': [f'source {k}' for k in range(num_sources)],
    'source': np.repeat(np.arange(num_sources), num_documents),
    'content_hash': rng.integers(-(2**63), 2**63, total),
    'shard': np.zeros(total, int),
    'doc_index': np.arange(total),
    'num_tokens': tokens,
    'num_bytes': 4 * tokens,
    'nll_sum': np.stack([nats, nats + effect])[:, None] * tokens,
  }


def of_seeds(columns: dict, seeds: tuple[int, ...]) -> HeldoutLosses:
  documents = {key: columns[key] for key in columns if key != 'sources'}
  return HeldoutLosses.from_documents(
    ('random', 'top'), seeds, columns['sources'], documents
  )


def losses_of(columns: dict) -> HeldoutLosses:
  return of_seeds(columns, (0,))


def intervals_of(columns: dict, num_samples: int = 200, seed: int = 0) -> dict:
  return statistics.difference_intervals(
    losses_of(columns), PAIRS, num_samples, seed
  )


def test_equal_arms_differ_by_exactly_zero():
  columns = simulated(np.random.default_rng(0))
  columns['nll_sum'][1] = columns['nll_sum'][0]
  for parts in intervals_of(columns).values():
    for key in ('estimate', 'low', 'high'):
      assert parts[key].tolist() == [0.0, 0.0]


@pytest.mark.parametrize('shift', [-0.05, 0.05])
def test_finds_a_known_shift(shift):
  columns = simulated(np.random.default_rng(1), shift=shift, document_sd=0.05)
  parts = intervals_of(columns)
  nats = parts['nats_per_token']
  assert nats['low'][1] < shift < nats['high'][1]
  assert np.sign(nats['low'][1]) == np.sign(nats['high'][1]) == np.sign(shift)
  # Every text has four bytes per token.
  bits = shift / 4 / np.log(2.0)
  for measure in ('bits_per_byte', 'macro_bits_per_byte'):
    assert parts[measure]['estimate'][1] == pytest.approx(bits, rel=0.15)


def test_interval_covers_the_truth_about_95_times_of_100():
  rng = np.random.default_rng(2)
  trials, covered = 150, 0
  for _ in range(trials):
    columns = simulated(rng, shift=0.02, source_sd=0.05)
    parts = intervals_of(columns, num_samples=150)['nats_per_token']
    covered += parts['low'][1] <= 0.02 <= parts['high'][1]
  # Four standard errors of a proportion of 0.95 are 0.07.
  assert 0.88 <= covered / trials <= 0.99


def with_seeds(
  columns: dict, rng: np.random.Generator, seed_sd: float, count: int
) -> HeldoutLosses:
  """The second arm trained from several seeds, which differ."""
  nll = np.repeat(columns['nll_sum'], count, axis=1)
  shift = rng.normal(0.0, seed_sd, count)
  nll[1] += shift[:, None] * columns['num_tokens']
  return of_seeds({**columns, 'nll_sum': nll}, tuple(range(count)))


def test_interval_covers_seeds_that_differ():
  # Without the seeds, about 60 of 100 intervals hold the truth.
  rng = np.random.default_rng(20)
  trials, covered = 150, 0
  for _ in range(trials):
    losses = with_seeds(simulated(rng, num_sources=11), rng, 0.03, 3)
    parts = statistics.difference_intervals(losses, [(1, 0)], 150, 0)
    nats = parts['nats_per_token']
    covered += nats['low'][0] <= 0.0 <= nats['high'][0]
  assert 0.88 <= covered / trials <= 0.99


def test_fewer_than_three_seeds_do_not_widen_the_interval():
  columns = simulated(np.random.default_rng(21))
  widths = []
  for count in (1, 2, 3):
    # A seed moves all texts alike.
    rng = np.random.default_rng(22)
    losses = with_seeds(columns, rng, 0.2, count)
    parts = statistics.difference_intervals(losses, [(1, 0)], 200, 0)
    nats = parts['nats_per_token']
    widths.append(nats['high'][0] - nats['low'][0])
  assert widths[0] == pytest.approx(widths[1])
  assert widths[2] > 3 * widths[0]


def test_differences_by_seed_average_to_the_estimate():
  rng = np.random.default_rng(23)
  losses = with_seeds(simulated(rng, num_sources=3), rng, 0.1, 4)
  by_seed = statistics.differences_by_seed(losses, PAIRS)
  parts = statistics.difference_intervals(losses, PAIRS, 10, 0)
  for measure in statistics.MEASURES:
    assert by_seed[measure].shape == (2, 4)
    assert not by_seed[measure][0].any()
    assert by_seed[measure].mean(axis=1) == pytest.approx(
      parts[measure]['estimate']
    )


def test_interval_is_wider_when_sources_differ():
  # Resampling texts alone would give both the same width.
  rng = np.random.default_rng(3)
  widths = []
  for source_sd in (0.0, 0.2):
    columns = simulated(rng, source_sd=source_sd)
    parts = intervals_of(columns)['bits_per_byte']
    widths.append(parts['high'][1] - parts['low'][1])
  assert widths[1] > 3 * widths[0]


@pytest.mark.parametrize('texts, least', [(5, 0.86), (15, 0.89), (60, 0.9)])
def test_intervals_of_sources_cover_the_truth(texts, least):
  """Each of 400 sources is a trial; effects are skewed, lengths are not one."""
  rng = np.random.default_rng(6)
  total = 400 * texts
  columns = simulated(rng, num_sources=400, num_documents=texts)
  tokens = rng.lognormal(5.0, 0.8, total).astype(int) + 1
  effect = rng.gamma(2.0, 0.05, total) - 0.1
  columns.update(
    num_tokens=tokens,
    num_bytes=4 * tokens,
    nll_sum=np.stack([0.0 * effect, effect])[:, None] * tokens,
  )
  intervals = statistics.source_intervals(losses_of(columns), PAIRS, 400, 0)
  covered = (intervals['low'][1] <= 0.0) & (intervals['high'][1] >= 0.0)
  assert least <= covered.mean() <= 0.99
  assert (
    intervals['low'][0].tolist() == intervals['high'][0].tolist() == [0.0] * 400
  )


def test_intervals_of_sources_equal_a_slow_bootstrap():
  columns = simulated(np.random.default_rng(7), num_sources=2, num_documents=50)
  losses = losses_of(columns)
  intervals = statistics.source_intervals(losses, PAIRS, 2000, 0)
  rng = np.random.default_rng(8)
  for k in range(2):
    inside = losses.source == k
    nats = (losses.nll_sum[1, 0] - losses.nll_sum[0, 0])[inside]
    size = losses.num_bytes[inside]
    means = []
    for _ in range(2000):
      picks = rng.integers(50, size=50)
      means.append(nats[picks].sum() / size[picks].sum() / np.log(2.0))
    assert intervals['estimate'][1, k] == pytest.approx(
      nats.sum() / size.sum() / np.log(2.0)
    )
    low, high = np.quantile(means, [0.025, 0.975])
    for key, plain in (('low', low), ('high', high)):
      wide = (intervals[key][1, k] - intervals['estimate'][1, k]) / (
        plain - intervals['estimate'][1, k]
      )
      assert 0.95 < wide < 1.2  # Expanded, for 50 texts by about 4 %.


def test_sources_of_few_texts_have_no_interval():
  for texts, told in ((4, False), (5, True)):
    columns = simulated(np.random.default_rng(9), num_documents=texts)
    intervals = statistics.source_intervals(losses_of(columns), PAIRS, 50, 0)
    assert np.isfinite(intervals['estimate']).all()
    assert np.isfinite(intervals['low']).all() == told
    assert np.isnan(intervals['high']).any() != told


def test_bootstrap_is_a_function_of_its_seed():
  columns = simulated(np.random.default_rng(4))
  first, again, other = (
    intervals_of(columns, seed=seed)['bits_per_byte'] for seed in (0, 0, 1)
  )
  assert first['low'].tolist() == again['low'].tolist()
  assert first['low'].tolist() != other['low'].tolist()
  assert first['estimate'].tolist() == other['estimate'].tolist()


def test_order_of_documents_and_names_does_not_matter():
  columns = simulated(np.random.default_rng(5), source_sd=0.1)
  columns['content_hash'][3::7] = 11  # Copies, whose sums must not reorder.
  columns['num_tokens'][:5] = 0
  order = np.random.default_rng(6).permutation(len(columns['source']))
  names = columns['sources'][::-1]
  shuffled = {
    key: values[..., order]
    for key, values in columns.items()
    if key != 'sources'
  }
  shuffled['source'] = len(names) - 1 - shuffled['source']
  first = intervals_of(columns)
  second = intervals_of({**shuffled, 'sources': names})
  for measure in statistics.MEASURES:
    for key in ('estimate', 'low', 'high'):
      np.testing.assert_array_equal(first[measure][key], second[measure][key])


def test_resampled_sums_draw_within_sources():
  # A text's value is its source's power of 1000: sums show what was drawn.
  values = np.repeat([1.0, 1e3, 1e6], [2, 3, 5])[:, None]
  sums = bootstrap.resampled_sums(values, np.array([0, 2, 5]), 400, 0)
  assert sums.shape == (400, 3, 1)
  assert set(sums.ravel()) == {2.0, 3e3, 5e6}
  fraction = (sums == 5e6).mean()
  assert fraction == pytest.approx(1 / 3, abs=0.06)


def test_a_source_drawn_twice_has_its_texts_drawn_twice():
  values = np.random.default_rng(7).normal(size=(50, 1))
  sums = bootstrap.resampled_sums(values, np.array([0, 25]), 100, 0)[..., 0]
  assert len(np.unique(sums)) == sums.size


def test_copies_within_a_source_are_one_text():
  columns = simulated(np.random.default_rng(8), num_sources=2)
  columns['content_hash'][:] = np.arange(30)
  columns['content_hash'][[0, 1, 2, 20]] = 5
  losses = losses_of(columns)
  assert losses.num_documents.sum() == 30
  assert len(losses.source) == 30 - 3  # Documents 0, 1, 2 and 5 are copies.
  np.testing.assert_allclose(losses.nll_sum.sum(), columns['nll_sum'].sum())
  assert losses.num_tokens.sum() == columns['num_tokens'].sum()


def test_empty_documents_are_left_out():
  columns = simulated(np.random.default_rng(9), num_sources=2)
  empty = columns['source'] == 0
  columns['num_tokens'][empty] = columns['num_bytes'][empty] = 0
  columns['nll_sum'][..., empty] = 0.0
  assert losses_of(columns).sources == ('source 1',)
  columns['num_tokens'][:] = 0
  with pytest.raises(UserError, match='no token'):
    losses_of(columns)


def test_halves_are_disjoint_and_copies_stay_together():
  rng = np.random.default_rng(10)
  columns = simulated(rng, num_sources=10, num_documents=100)
  # Copies across sources too.
  columns['content_hash'] = rng.integers(-(2**63), 2**63, 300)[
    rng.integers(300, size=1000)
  ]
  losses = losses_of(columns)
  choose, report = statistics.halves(losses)
  assert not set(choose.content_hash) & set(report.content_hash)
  assert len(choose.source) + len(report.source) == len(losses.source)
  assert choose.num_documents.sum() + report.num_documents.sum() == 1000
  assert 0.35 < len(set(report.content_hash)) / 300 < 0.65


@pytest.mark.parametrize(
  'low, high', [(0, 2**61), (-(2**63), -(2**63) + 2**60)]
)
def test_halves_are_even_on_any_range_of_hashes(low, high):
  rng = np.random.default_rng(11)
  columns = simulated(rng, num_documents=100)
  columns['content_hash'] = rng.integers(low, high, 2000)
  _, report = statistics.halves(losses_of(columns))
  assert 0.45 < len(report.source) / 2000 < 0.55


def test_a_half_may_lack_a_source():
  columns = simulated(np.random.default_rng(12), num_documents=1)
  choose, report = statistics.halves(losses_of(columns))
  assert set(choose.sources).isdisjoint(report.sources)
  for half in (choose, report):
    assert half.by_source(half.num_documents).tolist() == [1] * len(
      half.sources
    )


def test_too_few_texts_for_two_halves():
  columns = simulated(np.random.default_rng(13), num_sources=1, num_documents=1)
  with pytest.raises(UserError, match='heldout_fraction'):
    statistics.halves(losses_of(columns))


def test_losses_divide_last():
  losses = HeldoutLosses.from_documents(
    ('one',),
    (0,),
    ['a', 'b'],
    {
      'source': np.array([0, 0, 1]),
      'content_hash': np.array([1, 2, 3]),
      'shard': np.zeros(3, int),
      'doc_index': np.arange(3),
      'num_tokens': np.array([1, 3, 4]),
      'num_bytes': np.array([2, 6, 32]),
      'nll_sum': np.array([[[1.0, 3.0, 8.0]]]),
    },
  )
  values = statistics.losses_by_seed(losses)
  assert values['nats_per_token'].item() == 12 / 8
  assert values['bits_per_byte'].item() == pytest.approx(12 / 40 / np.log(2))
  assert values['macro_bits_per_byte'].item() == pytest.approx(
    (4 / 8 + 8 / 32) / 2 / np.log(2)
  )


def test_differences_are_means_over_seeds():
  columns = simulated(np.random.default_rng(14), shift=0.1)
  nll = columns['nll_sum']
  columns['nll_sum'] = np.concatenate([nll, nll + 50.0], axis=1)
  two = of_seeds(columns, (0, 1))
  one = dataclasses.replace(two, seeds=(0,), nll_sum=two.nll_sum[:, :1])
  # Both arms moved alike: the pairing takes it out.
  np.testing.assert_allclose(
    statistics.paired_differences(two, PAIRS),
    statistics.paired_differences(one, PAIRS),
    atol=1e-9,
  )


def test_no_interval_over_seeds_below_three():
  for count in (1, 2):
    spread = statistics.seed_spread(np.arange(count, dtype=float))
    assert spread['interval'] is None
    assert spread['range'] == [0.0, count - 1.0]


@pytest.mark.parametrize(
  'seeds, quantile', [(3, 4.303), (10, 2.262), (101, 1.984)]
)
def test_interval_over_seeds_is_student_s(seeds, quantile):
  values = np.arange(seeds, dtype=float)
  low, high = statistics.seed_spread(values)['interval']
  error = values.std(ddof=1) / np.sqrt(seeds)
  assert (low + high) / 2 == pytest.approx(values.mean())
  assert (high - low) / 2 / error == pytest.approx(quantile, abs=1e-3)
