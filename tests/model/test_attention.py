import jax.numpy as jnp
import numpy as np
import pytest

from infoprune_jax.model.attention import attention


def oracle(query, key, value, segments):
  """One query at a time, in float64."""
  batch, length, heads, dim = query.shape
  group = heads // key.shape[2]
  out = np.zeros(query.shape)
  for b in range(batch):
    for head in range(heads):
      k, v = key[b, :, head // group], value[b, :, head // group]
      for t in range(length):
        seen = np.arange(t + 1)[segments[b, : t + 1] == segments[b, t]]
        logits = k[seen].astype(np.float64) @ query[b, t, head] / dim**0.5
        weights = np.exp(logits - logits.max())
        out[b, t, head] = weights @ v[seen] / weights.sum()
  return out


@pytest.mark.parametrize('length', [1, 5, 64, 65, 150])
@pytest.mark.parametrize('kv_heads', [1, 2, 4])
def test_equals_the_definition(length, kv_heads):
  rng = np.random.default_rng(length)
  query = rng.normal(size=(2, length, 4, 8)).astype(np.float32)
  key = rng.normal(size=(2, length, kv_heads, 8)).astype(np.float32)
  value = rng.normal(size=(2, length, kv_heads, 8)).astype(np.float32)
  segments = np.sort(rng.integers(0, 4, (2, length)), axis=1)[:, ::-1].copy()
  found = attention(*map(jnp.asarray, (query, key, value, segments)))
  np.testing.assert_allclose(
    found, oracle(query, key, value, segments), atol=2e-5
  )
