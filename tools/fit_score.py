r"""Fits a score that needs a model by columns that need none, as one expression.

Command: python tools/fit_score.py --workdir=runs/sample \
    [--score='nll_sum / num_bytes'] [--terms='num_tokens / num_bytes' ...]

Score a sample of the corpus first. The command prints an SQL expression for a
rule, so that no model has to score the rest. It is fitted by least squares,
weighted by bytes, on half of the examples of the sample; the fit on the other
half is printed, too. The columns are those of the score table and of
`statistics`.
"""

import argparse
import pathlib
from collections.abc import Sequence

import duckdb
import numpy as np

TERMS = (
  'compressed_bytes / num_bytes',
  'pow(compressed_bytes / num_bytes, 2)',
  'unigram_nll_sum / num_bytes',
  'num_tokens / num_bytes',
  'ln(num_bytes)',
)


def read(
  workdir: pathlib.Path, score: str, terms: Sequence[str]
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
  """Of each example the score [N], the terms [N, terms + 1], bytes and half [N].

  The first term is 1. Copies are in one half, `True` or `False`.
  """
  scores, statistics = (
    str(workdir / stage / 'data/*.parquet')
    for stage in ('scores', 'statistics')
  )
  columns = duckdb.execute(
    f'select num_bytes, content_hash, {", ".join([score, *terms])} from '
    'read_parquet(?) a join read_parquet(?) b using (shard, doc_index) '
    'order by shard, doc_index',
    [scores, statistics],
  ).fetchnumpy()
  size, content, target, *values = columns.values()
  features = np.stack([np.ones(len(size)), *values], axis=1).astype(np.float64)
  return target.astype(np.float64), features, size, content % 2 == 0


def ranks(values: np.ndarray) -> np.ndarray:
  """The place of each value in their order, [N]."""
  return np.argsort(np.argsort(values, kind='stable'), kind='stable')


def fit(
  target: np.ndarray, features: np.ndarray, size: np.ndarray
) -> np.ndarray:
  """The coefficients of least squares, weighted by bytes, [terms + 1]."""
  root = np.sqrt(size)
  return np.linalg.lstsq(features * root[:, None], target * root, rcond=None)[0]


def expression(coefficients: np.ndarray, terms: Sequence[str]) -> str:
  """The fit in SQL."""
  first, *others = coefficients
  parts = [
    f'{value:+.5g} * {term}' for value, term in zip(others, terms, strict=True)
  ]
  return ' '.join([f'{first:.5g}', *parts])


def main() -> None:
  """Prints the expression, and how well it fits."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('--workdir', required=True, type=pathlib.Path)
  parser.add_argument('--score', default='nll_sum / num_bytes')
  parser.add_argument('--terms', nargs='+', default=TERMS)
  flags = parser.parse_args()
  for stage in ('scores', 'statistics'):
    if not (flags.workdir / stage / 'manifest.json').is_file():
      parser.error(
        f'{flags.workdir} has no finished {stage}: run --job=score, and '
        '--job=statistics, there first'
      )
  try:
    target, features, size, half = read(flags.workdir, flags.score, flags.terms)
  except duckdb.Error as error:
    parser.error(f'--score or --terms: {error}')
  coefficients = fit(target[half], features[half], size[half])
  fitted = features @ coefficients
  print(expression(coefficients, flags.terms))
  for name, here in (('fitted on', half), ('other half', ~half)):
    left = np.average((target - fitted)[here] ** 2, weights=size[here])
    mean = np.average(target[here], weights=size[here])
    spread = np.average((target[here] - mean) ** 2, weights=size[here])
    order = np.corrcoef(ranks(target[here]), ranks(fitted[here]))[0, 1]
    print(
      f'{name}: {np.count_nonzero(here)} examples, R2 {1 - left / spread:.3f}, '
      f'rank correlation {order:.3f}'
    )


if __name__ == '__main__':
  main()
