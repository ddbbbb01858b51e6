import types

import jax
import pytest

from infoprune_jax.score import ceiling, shards


def test_a_cpu_is_not_measured():
  assert ceiling.matmul_flops_per_second('float32') == 0.0


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_a_rate_is_measured(monkeypatch, dtype):
  """On a CPU, in the place of an accelerator."""
  [device, *_] = jax.local_devices()
  put = jax.device_put
  fake = types.SimpleNamespace(platform='gpu')
  monkeypatch.setattr(ceiling, '_WIDTH', 64)
  monkeypatch.setattr(jax, 'local_devices', lambda: [fake])
  monkeypatch.setattr(jax, 'device_put', lambda x, _: put(x, device))
  rate = ceiling.measured(dtype)
  assert 1e6 < rate < 1e14


def test_summary():
  one = dict(
    num_examples=100,
    num_tokens=900,
    flops=2e12,
    slots=1000,
    seconds=2.0,
    computing=1.5,
    waiting=0.5,
    devices=1,
  )
  line = shards.summary([one, {**one, 'seconds': 4.0}], peak=1e12)
  assert line == (
    'done, 1.8 k tokens in 0:00:04 (450 tokens/s, 50 documents/s); sequences '
    'are 90.0 % full; the device waited for the host 25.0 % of the time; MFU is 50.0 % of '
    'the 1 TFLOP/s that a matrix product reaches'
  )
  assert 'MFU' not in shards.summary([one], peak=0.0)
