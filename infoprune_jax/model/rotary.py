"""Rotary positions (arXiv 2104.09864), and their scaling to long sequences."""

import math
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from infoprune_jax.config.model import LayerKind


class Rotation(NamedTuple):
  """Cosine and sine of the angle of each pair of dimensions, float32."""

  cos: Float[Array, 'B T 1 R/2']
  sin: Float[Array, 'B T 1 R/2']


def rotation(
  positions: Int[Array, 'B T'], head_dim: int, kind: LayerKind
) -> Rotation | None:
  """The angles of all layers of a kind; None for a kind without rotation."""
  if not kind.rope_theta:
    return None
  half = kind.num_pairs(head_dim)
  frequency = kind.rope_theta ** -(jnp.arange(half, dtype=jnp.float32) / half)
  if kind.rope_scaling != 'none':
    frequency /= _divisors(kind, half)
  # Look the angles up in a table of positions: XLA would compute the formula
  # again at every use.
  position = jnp.arange(positions.shape[1], dtype=jnp.float32)
  angle = position[:, None] * frequency
  cos, sin = (f(angle)[positions][:, :, None] for f in (jnp.cos, jnp.sin))
  if kind.rope_magnitude != 1.0:
    cos, sin = kind.rope_magnitude * cos, kind.rope_magnitude * sin
  return Rotation(cos, sin)


def _divisors(kind: LayerKind, half: int) -> np.ndarray:
  """The divisor of each frequency, [R/2] float32."""
  if kind.rope_scaling == 'longrope':
    return np.array(kind.rope_divisors, np.float32)
  if kind.rope_scaling == 'linear':
    return np.full(half, kind.rope_factor, np.float32)
  # As in the released Llama 3.1 (arXiv 2407.21783): the more turns a frequency
  # makes in the original length, the less it is divided.
  frequency = kind.rope_theta ** -(np.arange(half) / half)
  turns = kind.rope_original_length * frequency / (2 * math.pi)
  low, high = kind.rope_low_freq_factor, kind.rope_high_freq_factor
  kept = np.clip((turns - low) / (high - low), 0.0, 1.0)
  return (1 / (kept + (1 - kept) / kind.rope_factor)).astype(np.float32)


def rotary(
  x: Float[Array, 'B T N H'], rotation: Rotation | None
) -> Float[Array, 'B T N H']:
  """Rotates pairs of the first R dimensions; the others do not change."""
  if rotation is None:
    return x
  cos, sin = rotation
  half = cos.shape[-1]
  x32 = x.astype(jnp.float32)
  x1, x2, rest = jnp.split(x32, [half, 2 * half], axis=-1)
  parts = [x1 * cos - x2 * sin, x2 * cos + x1 * sin, rest]
  return jnp.concatenate(parts, axis=-1).astype(x.dtype)
