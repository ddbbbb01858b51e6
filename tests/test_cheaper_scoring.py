"""benchmarks/cheaper_scoring.py: rounding, two stages, and all of it once."""

import pathlib
import re
import sys
import tarfile

import jax.numpy as jnp
import numpy as np
import pyarrow as pa
import pytest

from benchmarks import cheaper_scoring
from infoprune_jax.runtime.workdir import scores_dir
from infoprune_jax.tokens import tables

GOLDEN = pathlib.Path(__file__).parent / 'golden_workdir.tar.xz'


@pytest.fixture
def ranking():
  rng = np.random.default_rng(0)
  tokens = rng.integers(1, 300, 200)
  table = pa.table(
    {
      'num_tokens': pa.array(tokens, pa.int32()),
      'num_bytes': pa.array(3 * tokens, pa.int32()),
      'nll_sum': np.zeros(200),
      'fold': np.zeros(200, np.int8),
    }
  )
  return cheaper_scoring.Ranking(table, 'nll_sum / num_bytes')


@pytest.fixture
def values(ranking):
  """Those of a first stage, and of full scoring."""
  rng = np.random.default_rng(1)
  full = rng.gamma(3.0, size=200) * ranking.weight
  first = full * rng.lognormal(0.0, 0.3, size=200)
  return ranking.values(first), ranking.values(full)


@pytest.mark.parametrize(
  'round_to, most',
  [(cheaper_scoring.int8, 0.5 / 127), (cheaper_scoring.float8, 2**-4)],
)
def test_a_channel_is_rounded_by_its_own_largest_weight(round_to, most):
  rng = np.random.default_rng(0)
  weights = rng.normal(size=(16, 8)) * 10.0 ** np.arange(-4, 4)
  rounded = round_to(jnp.asarray(weights, jnp.float32), (0,))
  error = np.abs(np.asarray(rounded) - weights).max(axis=0)
  assert (error > 0.0).all()
  assert (error <= 1.001 * most * np.abs(weights).max(axis=0)).all()


@pytest.mark.parametrize(
  'names, axes',
  [
    (('vocab', 'embed'), (1,)),
    (('embed', 'vocab'), (0,)),
    (('layers', 'embed', 'heads', 'head_dim'), (1,)),
    (('layers', 'heads', 'head_dim', 'embed'), (1, 2)),
    (('layers', 'mlp', 'embed'), (1,)),
  ],
)
def test_products_sum_over_the_inputs_of_a_matrix(names, axes):
  assert cheaper_scoring._summed(names) == axes


@pytest.mark.parametrize('fraction', cheaper_scoring.FRACTIONS)
def test_two_stages_lie_between_the_first_and_full_scoring(
  ranking, values, fraction
):
  first, full = values
  goal = ranking.kept(full, fraction)
  overlaps = []
  for band in (0.0, 0.2, 2.0):
    kept = ranking.two_stages(first, full, fraction, band)
    assert ranking.weight[kept].sum() <= fraction * ranking.total
    overlaps.append(ranking.overlap(kept, goal)[0])
  assert overlaps == sorted(overlaps)
  assert overlaps[0] < 0.95
  np.testing.assert_array_equal(kept, goal)
  without = ranking.two_stages(first, full, fraction, 0.0)
  np.testing.assert_array_equal(without, ranking.kept(first, fraction))


def test_a_finished_workdir_is_compared(tmp_path, monkeypatch, capsys):
  with tarfile.open(GOLDEN) as archive:
    archive.extractall(tmp_path, filter='data')
  workdir = tmp_path / 'workdir'
  flags = [f'--workdir={workdir}', f'--small={workdir}/reference']
  monkeypatch.setattr(sys, 'argv', ['cheaper_scoring.py', *flags])
  cheaper_scoring.main()
  printed = capsys.readouterr().out
  table = tables.read_table(scores_dir(str(workdir)))
  nll, tokens = (
    sum(table[name].to_pylist()) for name in ('nll_sum', 'num_tokens')
  )
  assert f'{table.num_rows} documents' in printed
  # The windows of long documents are others there.
  own = float(re.search(r'([\d.]+) nats per token', printed)[1])
  assert own == pytest.approx(nll / tokens, rel=0.01)
  # Here the smaller model is the reference model itself.
  row = next(
    x for x in printed.splitlines() if x.startswith('| smaller model ')
  )
  assert row.split('|')[2:7:4] == [' 1.000 ', ' 100.0%, 100.0% ']
