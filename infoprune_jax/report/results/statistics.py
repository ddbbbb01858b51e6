"""Paired differences between arms on held-out texts, and their uncertainty.

Every arm and seed is evaluated on the same documents, so arms are compared
document by document and seed by seed. The documents are a sample of the texts
of a source, and the sources a sample of all possible sources: the bootstrap
resamples both levels. From `MIN_SEEDS_FOR_INTERVAL` seeds on, intervals also
cover the choice of seeds.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy import special

from infoprune_jax.config.validation import UserError
from infoprune_jax.report.results import bootstrap

MEASURES = ('bits_per_byte', 'nats_per_token', 'macro_bits_per_byte')
DECISIVE = {'macro': 'macro_bits_per_byte', 'bytes': 'bits_per_byte'}
CONFIDENCE = 0.95
MIN_SEEDS_FOR_INTERVAL = 3
MIN_TEXTS_FOR_INTERVAL = 5  # of one source

Pairs = Sequence[tuple[int, int]]  # indices of an arm and of its reference

_LN2 = float(np.log(2.0))
# 2**64 over the golden ratio, which is odd: the top bit of a product with it
# depends on every bit of the other factor.
_MIXER = np.uint64(0x9E3779B97F4A7C15)


@dataclasses.dataclass(frozen=True)
class HeldoutLosses:
  """Losses of A arms with S seeds on N distinct texts of K sources.

  Copies of a text within a source count as one text: drawn separately, they
  would look like more evidence than there is. Texts are sorted by source, then
  by content.
  """

  arms: tuple[str, ...]  # A names
  seeds: tuple[int, ...]  # S
  sources: tuple[str, ...]  # K names, sorted
  source: np.ndarray  # [N] index into `sources`, ascending
  content_hash: np.ndarray  # [N] int64
  num_documents: np.ndarray  # [N] int64, copies counted
  num_tokens: np.ndarray  # [N] int64
  num_bytes: np.ndarray  # [N] int64
  nll_sum: np.ndarray  # [A, S, N] float64, nats

  @classmethod
  def from_documents(
    cls,
    arms: Sequence[str],
    seeds: Sequence[int],
    sources: Sequence[str],
    documents: Mapping[str, np.ndarray],
  ) -> 'HeldoutLosses':
    """Sorts documents, joins copies, and leaves out empty ones.

    Args:
      arms: A names.
      seeds: S seeds.
      sources: Names of sources.
      documents: Columns of D documents: `source`, an index in `sources`;
        `content_hash`, int64, equal for copies; `shard` and `doc_index`, which
        identify a document; `num_tokens`; `num_bytes`; and `nll_sum`, [A, S,
        D], in nats.

    Raises:
      UserError: no document has a token.
    """
    names = sorted(sources)
    code = np.array([names.index(name) for name in sources])
    code, digest = code[documents['source']], documents['content_hash']
    order = _order(documents, code)
    code, digest = code[order], digest[order]
    first = np.ones(len(order), bool)
    first[1:] = (code[1:] != code[:-1]) | (digest[1:] != digest[:-1])
    starts = np.flatnonzero(first)
    present, source = np.unique(code[starts], return_inverse=True)
    kinds = {'num_tokens': int, 'num_bytes': int, 'nll_sum': float}
    sums = {
      name: np.add.reduceat(
        documents[name][..., order].astype(kind), starts, -1
      )
      for name, kind in kinds.items()
    }
    return cls(
      arms=tuple(arms),
      seeds=tuple(seeds),
      sources=tuple(names[k] for k in present),
      source=source,
      content_hash=digest[starts],
      num_documents=np.diff(np.append(starts, len(order))),
      **sums,
    )

  def where(self, mask: np.ndarray) -> 'HeldoutLosses':
    """The texts of a boolean mask, and the sources that are left."""
    present, source = np.unique(self.source[mask], return_inverse=True)
    return dataclasses.replace(
      self,
      sources=tuple(self.sources[k] for k in present),
      source=source,
      content_hash=self.content_hash[mask],
      num_documents=self.num_documents[mask],
      num_tokens=self.num_tokens[mask],
      num_bytes=self.num_bytes[mask],
      nll_sum=self.nll_sum[..., mask],
    )

  def of_arms(self, names: Sequence[str]) -> 'HeldoutLosses':
    """The losses of some arms."""
    index = [self.arms.index(name) for name in names]
    return dataclasses.replace(
      self, arms=tuple(names), nll_sum=self.nll_sum[index]
    )

  @property
  def starts(self) -> np.ndarray:
    """[K] index of the first text of each source."""
    return np.flatnonzero(np.diff(self.source, prepend=-1))

  def by_source(self, values: np.ndarray) -> np.ndarray:
    """Sums [..., N] values of texts into [..., K] values of sources."""
    return np.add.reduceat(values, self.starts, axis=-1)


def _order(documents: Mapping[str, np.ndarray], code: np.ndarray) -> np.ndarray:
  """The documents that have tokens, sorted by source and content.

  Copies are summed in the order of shard and doc_index, so that results do not
  depend on the order of documents even in the last bit.
  """
  order = np.lexsort(
    (
      documents['doc_index'],
      documents['shard'],
      documents['content_hash'],
      code,
    )
  )
  empty = (documents['num_tokens'] <= 0) | (documents['num_bytes'] <= 0)
  order = order[~empty[order]]
  if not len(order):
    raise UserError(
      'The held-out split has no token: raise corpus.heldout_fraction or add '
      'documents.'
    )
  return order


def halves(losses: HeldoutLosses) -> tuple[HeldoutLosses, HeldoutLosses]:
  """Splits held-out texts in two: one half to choose an arm, one to report.

  A bit mixed from the content hash decides. So the halves are independent of
  the split of the corpus, which reads the same hash, and copies in different
  sources stay in one half.

  Raises:
    UserError: one half would be empty.
  """
  mixed = losses.content_hash.astype(np.int64).view(np.uint64) * _MIXER
  report = (mixed >> np.uint64(63)) == 1
  if report.all() or not report.any():
    raise UserError(
      f'The held-out split has too few distinct texts ({len(report)}). The '
      'report needs two halves of it: one to choose an arm, one to report. '
      'Raise corpus.heldout_fraction.'
    )
  return losses.where(~report), losses.where(report)


def measures(
  nll: np.ndarray, num_tokens: np.ndarray, num_bytes: np.ndarray
) -> dict[str, np.ndarray]:
  """Each of `MEASURES`, from sums over the texts of each source.

  All three are linear in `nll`, so `nll` may also be a difference of losses.

  >>> tokens, size = np.array([1, 3]), np.array([4, 4])
  >>> values = measures(np.array([2.0, 4.0]), tokens, size)
  >>> float(values['nats_per_token'])
  1.5

  Args:
    nll: [..., K] nats.
    num_tokens: [..., K].
    num_bytes: [..., K].
  """
  return {
    'bits_per_byte': nll.sum(-1) / num_bytes.sum(-1) / _LN2,
    'nats_per_token': nll.sum(-1) / num_tokens.sum(-1),
    'macro_bits_per_byte': (nll / num_bytes).mean(-1) / _LN2,
  }


def losses_by_seed(losses: HeldoutLosses) -> dict[str, np.ndarray]:
  """Each measure, [A, S], over all texts of `losses`."""
  return measures(
    losses.by_source(losses.nll_sum),
    losses.by_source(losses.num_tokens),
    losses.by_source(losses.num_bytes),
  )


def paired_differences(losses: HeldoutLosses, pairs: Pairs) -> np.ndarray:
  """[P, N] nats: arm minus reference, text by text, averaged over seeds.

  The subtraction comes before any sum, so that equal arms differ by exactly
  zero.
  """
  return np.stack(
    [(losses.nll_sum[a] - losses.nll_sum[b]).mean(axis=0) for a, b in pairs]
  )


def differences_by_seed(
  losses: HeldoutLosses, pairs: Pairs
) -> dict[str, np.ndarray]:
  """Arm minus reference in each measure, [P, S], over all texts."""
  by_source = [
    losses.by_source(losses.nll_sum[a] - losses.nll_sum[b]) for a, b in pairs
  ]
  return measures(
    np.stack(by_source),
    losses.by_source(losses.num_tokens),
    losses.by_source(losses.num_bytes),
  )


def difference_intervals(
  losses: HeldoutLosses, pairs: Pairs, num_samples: int, seed: int
) -> dict[str, dict[str, np.ndarray]]:
  """Arm minus reference in each measure, with percentile intervals.

  A sample of the hierarchical bootstrap draws K sources with replacement. For
  each drawn source it draws as many texts as the source has, with replacement.
  In simulations with 15 texts per source and sources that differ, the 95 %
  intervals held the truth in 92, 96 and 97 % of 300 trials with 8, 20 and 58
  sources. If sources did not differ at all, the intervals were too wide: 99 %.

  With at least `MIN_SEEDS_FOR_INTERVAL` seeds, each sample also draws the mean
  over seeds: the standard error over seeds times a draw from Student's t. In
  simulations with 11 sources of 15 texts and 3 seeds, where sources, both, or
  seeds alone differed, these intervals held the truth in 95, 98 and 97 % of 300
  trials. Seeds drawn with replacement, as texts are, gave 95, 92 and 83 %.

  Args:
    losses: Of A arms.
    pairs: P pairs of indices: an arm, and the reference that is subtracted.
    num_samples: Of the bootstrap.
    seed: Of the bootstrap.

  Returns:
    For each of `MEASURES`: `{'estimate', 'low', 'high'}`, each [P].
  """
  estimates = measures(
    losses.by_source(paired_differences(losses, pairs)),
    losses.by_source(losses.num_tokens),
    losses.by_source(losses.num_bytes),
  )
  tail = (1.0 - CONFIDENCE) / 2.0
  intervals = {}
  for measure, drawn in difference_draws(
    losses, pairs, num_samples, seed
  ).items():
    low, high = np.quantile(drawn, [tail, 1.0 - tail], axis=1)
    intervals[measure] = {
      'estimate': estimates[measure],
      'low': low,
      'high': high,
    }
  return intervals


def difference_draws(
  losses: HeldoutLosses, pairs: Pairs, num_samples: int, seed: int
) -> dict[str, np.ndarray]:
  """Each measure, [P, B]: the samples of `difference_intervals`."""
  columns = np.concatenate(
    [
      paired_differences(losses, pairs),
      losses.num_tokens[None],
      losses.num_bytes[None],
    ]
  ).T
  sums = bootstrap.resampled_sums(columns, losses.starts, num_samples, seed)
  samples = measures(
    np.moveaxis(sums[..., :-2], -1, 0), sums[..., -2], sums[..., -1]
  )
  by_seed = differences_by_seed(losses, pairs)
  return {
    measure: values + _seed_noise(by_seed[measure], num_samples, seed)
    for measure, values in samples.items()
  }


def _seed_noise(by_seed: np.ndarray, num_samples: int, seed: int) -> np.ndarray:
  """[P, B]: draws of the error of a mean over seeds; 0 for too few seeds."""
  count = by_seed.shape[1]
  if count < MIN_SEEDS_FOR_INTERVAL:
    return np.zeros((len(by_seed), 1))
  error = by_seed.std(axis=1, ddof=1) / np.sqrt(count)
  rng = np.random.default_rng([seed, 1])
  return error[:, None] * rng.standard_t(count - 1, num_samples)


def source_intervals(
  losses: HeldoutLosses, pairs: Pairs, num_samples: int, seed: int
) -> dict[str, np.ndarray]:
  """Arm minus reference in bits per byte within each source, with intervals.

  The bootstrap draws the texts of one source with replacement, so the intervals
  are about other texts of the same source. They are wider for few texts
  (Hesterberg's expanded percentile interval). In simulations with skewed
  differences, 95 % intervals held the truth in 90, 92 and 93 % of 2,000 sources
  of 5, 15 and 60 texts.

  Args:
    losses: Of A arms on K sources.
    pairs: P pairs of indices: an arm, and the reference that is subtracted.
    num_samples: Of the bootstrap.
    seed: Of the bootstrap.

  Returns:
    `{'estimate', 'low', 'high'}`, each [P, K]; bounds are NaN for sources of
    fewer than `MIN_TEXTS_FOR_INTERVAL` texts.
  """
  rng = np.random.default_rng(seed)
  difference = paired_differences(losses, pairs)
  columns = np.concatenate([difference, losses.num_bytes[None]]).T
  values = np.full((3, len(difference), len(losses.sources)), np.nan)
  for k, block in enumerate(np.split(columns, losses.starts[1:])):
    sums = block.sum(axis=0)
    values[0, :, k] = sums[:-1] / sums[-1] / _LN2
    if len(block) >= MIN_TEXTS_FOR_INTERVAL:
      sums = bootstrap.sums_of_draws(block, num_samples, rng)
      samples = sums[:, :-1] / sums[:, -1:] / _LN2
      tail = _expanded_tail(len(block))
      values[1:, :, k] = np.quantile(samples, [tail, 1.0 - tail], axis=0)
  return dict(zip(('estimate', 'low', 'high'), values, strict=True))


def _expanded_tail(size: int) -> float:
  """The tail of a normal where Student's t of `size` values has 2.5 %."""
  distance = _student_quantile(size - 1) * np.sqrt(size / (size - 1))
  return float(special.ndtr(-distance))


def _student_quantile(degrees: int) -> float:
  """The two-sided 95 % quantile of Student's t."""
  return float(special.stdtrit(degrees, (1.0 + CONFIDENCE) / 2.0))


def seed_spread(values: np.ndarray) -> dict[str, Any]:
  """How a quantity, [S], varies over seeds.

  Returns:
    `values`, their `range` as [lowest, highest], and `interval`: 95 %, by
    Student's t, or None for fewer than `MIN_SEEDS_FOR_INTERVAL` seeds.
  """
  count = len(values)
  interval = None
  if count >= MIN_SEEDS_FOR_INTERVAL:
    half = _student_quantile(count - 1) * values.std(ddof=1) / np.sqrt(count)
    interval = [float(values.mean() - half), float(values.mean() + half)]
  return {
    'values': [float(value) for value in values],
    'range': [float(values.min()), float(values.max())],
    'interval': interval,
  }
