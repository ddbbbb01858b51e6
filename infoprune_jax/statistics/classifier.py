"""A linear classifier over hashed n-grams of tokens: fitted, and applied.

As in fastText (arXiv 1607.01759), the features of a text are the mean over its
n-grams, so that its length decides nothing. The classifier is a logistic
regression, whose loss is convex: the result does not depend on an order of
texts.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np

from infoprune_jax.runtime.hashing import offset, scramble

_PIECE = 1 << 20  # tokens that are hashed at once
_MAX_STEPS = 500  # of the solver, which needs about 50
_TOLERANCE = 1e-6  # of any component of the gradient


@dataclasses.dataclass(frozen=True, eq=False)
class Texts:
  """D texts as token ids."""

  tokens: np.ndarray  # [T], of all texts, one after another
  num_tokens: np.ndarray  # [D]

  def pieces(self) -> Iterator[tuple[slice, np.ndarray, np.ndarray]]:
    """Yields whole texts: which they are, their ids, and whose each is.

    The last is the number of the text within the piece, [tokens].
    """
    ends = np.cumsum(self.num_tokens, dtype=np.int64)
    first = 0
    while first < len(ends):
      start = ends[first] - self.num_tokens[first]
      last = max(first + 1, int(np.searchsorted(ends, start + _PIECE, 'right')))
      text = np.repeat(np.arange(last - first), self.num_tokens[first:last])
      yield slice(first, last), self.tokens[start : ends[last - 1]], text
      first = last


@dataclasses.dataclass(frozen=True, eq=False)
class Classifier:
  """The log odds of a text are the mean weight of its n-grams, and a bias."""

  weights: np.ndarray  # [2^bits] float32
  bias: float
  ngram: int  # tokens of the longest n-gram

  def log_odds(self, texts: Texts) -> np.ndarray:
    """Of each text, [D] float64; that of a text without tokens is the bias."""
    result = np.full(len(texts.num_tokens), self.bias)
    bits = len(self.weights).bit_length() - 1
    for where, ids, text in texts.pieces():
      sums = np.zeros(where.stop - where.start)
      for whose, feature in _ngrams(ids, text, self.ngram, bits):
        sums += np.bincount(whose, self.weights[feature], len(sums))
      result[where] += sums / _num_ngrams(texts.num_tokens[where], self.ngram)
    return result


def _ngrams(
  ids: np.ndarray, text: np.ndarray, longest: int, bits: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
  """Yields, for each length, the text and the feature of every n-gram."""
  hashes = np.zeros(len(ids), np.uint64)
  for size in range(1, longest + 1):
    count = max(len(ids) - size + 1, 0)
    # A hash of n-grams of this length, from that of those one shorter.
    added = ids[size - 1 :].astype(np.uint64)
    hashes = scramble(hashes[:count] + added + offset(size))
    inside = text[:count] == text[size - 1 :]  # No n-gram is of two texts.
    feature = hashes[inside] >> np.uint64(64 - bits)
    yield text[:count][inside], feature.astype(np.int64)


def _num_ngrams(num_tokens: np.ndarray, longest: int) -> np.ndarray:
  """The n-grams of each text of these lengths, at least 1, [D] int64."""
  sizes = np.arange(longest)
  counts = num_tokens.astype(np.int64)[:, None] - sizes
  return np.maximum(np.maximum(counts, 0).sum(axis=1), 1)


def features(texts: Texts, longest: int, bits: int) -> Any:
  """The fraction of each text's n-grams that a feature has.

  Returns:
    A sparse array of SciPy, [D, 2^bits] float64, in rows.
  """
  from scipy import sparse

  rows = []
  for where, ids, text in texts.pieces():
    whose, feature = map(
      np.concatenate, zip(*_ngrams(ids, text, longest, bits), strict=True)
    )
    fraction = 1.0 / _num_ngrams(texts.num_tokens[where], longest)
    shape = (where.stop - where.start, 1 << bits)
    # Equal positions are added up.
    rows.append(
      sparse.coo_array((fraction[whose], (whose, feature)), shape).tocsr()
    )
  return sparse.vstack(rows, 'csr')


def fit(x: Any, is_good: np.ndarray, l2: float, ngram: int) -> Classifier:
  """Minimizes the logistic loss, in which both labels have equal weight.

  Args:
    x: As `features` gives them, [D, V].
    is_good: [D] bool; both values occur.
    l2: See `ClassifierConfig`.
    ngram: Tokens of the longest n-gram.
  """
  from scipy import optimize, sparse

  # Features of norm 1 on average are on the scale that the solver expects.
  scale = 1.0 / np.sqrt(max((x.data**2).sum() / x.shape[0], 1e-30))
  # A feature that no text has keeps the weight 0.
  used, column = np.unique(x.indices, return_inverse=True)
  num_features, shape = x.shape[1], (x.shape[0], len(used))
  x = sparse.csr_array((x.data * scale, column, x.indptr), shape)
  sign = np.where(is_good, 1.0, -1.0)
  weight = np.where(is_good, 0.5 / is_good.sum(), 0.5 / (~is_good).sum())
  transposed = x.T

  def loss(w: np.ndarray) -> tuple[float, np.ndarray]:
    margin = sign * (x @ w[:-1] + w[-1])
    # d/dm log(1 + exp(-m)) = -1 / (1 + exp(m))
    slope = -weight * sign * np.exp(-np.logaddexp(0.0, margin))
    value = weight @ np.logaddexp(0.0, -margin) + l2 / 2 * w[:-1] @ w[:-1]
    return value, np.append(transposed @ slope + l2 * w[:-1], slope.sum())

  fit = optimize.minimize(
    loss,
    np.zeros(len(used) + 1),
    jac=True,
    method='L-BFGS-B',
    options={'maxiter': _MAX_STEPS, 'gtol': _TOLERANCE, 'ftol': 1e-10},
  )
  weights = np.zeros(num_features, np.float32)
  weights[used] = fit.x[:-1] * scale
  return Classifier(weights, float(fit.x[-1]), ngram)
