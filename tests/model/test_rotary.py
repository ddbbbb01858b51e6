"""Rotary positions."""

import jax.numpy as jnp
import numpy as np
import pytest

from infoprune_jax.config.model import LayerKind
from infoprune_jax.model import rotary

LENGTH, DIM = 40, 16
POSITIONS = jnp.arange(LENGTH)[None]


def frequencies(kind, dim=DIM):
  """The angle of each pair at position 1, below pi in these tests."""
  turned = rotary.rotation(POSITIONS, dim, kind)
  return np.arctan2(turned.sin, turned.cos)[0, 1, 0]


def rotated(x, kind):
  return rotary.rotary(x, rotary.rotation(POSITIONS, DIM, kind))


def test_a_product_depends_on_the_distance_alone():
  rng = np.random.default_rng(0)
  query, key = rng.normal(size=(2, DIM)).astype(np.float32)
  tiled = [jnp.tile(x, (1, LENGTH, 1, 1)) for x in (query, key)]
  kind = LayerKind(rope_theta=100.0)
  query, key = (np.asarray(rotated(x, kind))[0, :, 0] for x in tiled)
  products = query @ key.T
  for distance in (0, 1, 7):
    by_place = np.diagonal(products, -distance)
    np.testing.assert_allclose(by_place, by_place[0], atol=1e-4)
  assert abs(products[7, 0] - products[0, 0]) > 0.1


def test_without_theta_nothing_turns():
  x = jnp.ones((1, LENGTH, 1, DIM))
  assert rotated(x, LayerKind(rope_theta=0.0)) is x


def test_a_fraction_leaves_the_last_dimensions():
  x = jnp.asarray(np.random.default_rng(0).normal(size=(1, LENGTH, 2, DIM)))
  part = rotated(x, LayerKind(rope_fraction=0.25))
  np.testing.assert_array_equal(part[..., 4:], x[..., 4:])
  alone = rotary.rotation(POSITIONS, 4, LayerKind())
  np.testing.assert_array_equal(part[..., :4], rotary.rotary(x[..., :4], alone))


def test_linear_scaling_stretches_positions():
  plain, scaled = (
    rotary.rotation(POSITIONS, DIM, kind)
    for kind in (
      LayerKind(),
      LayerKind(rope_scaling='linear', rope_factor=4.0),
    )
  )
  np.testing.assert_allclose(scaled.sin[:, ::4], plain.sin[:, :10], atol=1e-6)


def test_llama3_scaling_divides_frequencies_of_long_turns():
  """By hand: turns in 100 tokens are 15.9, 5.0, 1.6, 0.5, ... of theta 1e4."""
  kind = LayerKind(
    rope_scaling='llama3',
    rope_factor=8.0,
    rope_low_freq_factor=1.0,
    rope_high_freq_factor=4.0,
    rope_original_length=100,
  )
  ratio = frequencies(kind) / frequencies(LayerKind())
  turns = 100 * 10_000.0 ** -(np.arange(8) / 8) / (2 * np.pi)
  assert (turns[1] > 4) and (1 < turns[2] < 4) and (turns[3] < 1)
  np.testing.assert_allclose(ratio[:2], 1.0, rtol=1e-5)
  np.testing.assert_allclose(ratio[3:], 1 / 8, rtol=1e-5)
  kept = (turns[2] - 1.0) / 3.0
  np.testing.assert_allclose(ratio[2], kept + (1 - kept) / 8, rtol=1e-5)


def test_longrope_divides_each_frequency_and_scales():
  divisors = tuple(1.0 + np.arange(8))
  kind = LayerKind(
    rope_scaling='longrope',
    rope_divisors=divisors,
    rope_original_length=LENGTH,
    rope_magnitude=1.25,
  )
  ratio = frequencies(kind) / frequencies(LayerKind())
  np.testing.assert_allclose(ratio, 1 / np.array(divisors), rtol=1e-5)
  turned = rotary.rotation(POSITIONS, DIM, kind)
  norm = np.hypot(turned.cos, turned.sin)
  np.testing.assert_allclose(norm, 1.25, rtol=1e-6)


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_the_dtype_stays(dtype):
  x = jnp.ones((1, LENGTH, 1, DIM), dtype)
  assert rotated(x, LayerKind()).dtype == dtype
