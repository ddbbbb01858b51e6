"""Rotary positions (arXiv 2104.09864)."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Int


class Rotation(NamedTuple):
  """By how much rotary positions turn each pair of a head's dimensions."""

  cos: Float[Array, 'B T 1 H/2']
  sin: Float[Array, 'B T 1 H/2']


def rotation(
  positions: Int[Array, 'B T'], head_dim: int, theta: float
) -> Rotation:
  """The angles of positions, once for all layers, in float32."""
  half = head_dim // 2
  frequency = theta ** -(jnp.arange(half, dtype=jnp.float32) / half)
  # Looked up: XLA would fuse what computes them into every use.
  position = jnp.arange(positions.shape[1], dtype=jnp.float32)
  angle = position[:, None] * frequency
  cos, sin = (f(angle)[positions][:, :, None] for f in (jnp.cos, jnp.sin))
  return Rotation(cos, sin)


def rotary(
  x: Float[Array, 'B T N H'], rotation: Rotation
) -> Float[Array, 'B T N H']:
  """Turns the two halves of each head by an angle that grows with position."""
  cos, sin = rotation
  x1, x2 = jnp.split(x.astype(jnp.float32), 2, axis=-1)
  rotated = jnp.concatenate([x1 * cos - x2 * sin, x2 * cos + x1 * sin], axis=-1)
  return rotated.astype(x.dtype)
