"""Digests of trees of arrays, the same on any mesh."""

import hashlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def params_hash(params: Any) -> str:
  """A digest of the names, shapes, dtypes and values of a tree of arrays.

  It is the same on any mesh: each device adds up its own shards, and no array
  is gathered.
  """
  digest = hashlib.sha256()
  for path, leaf in jax.tree_util.tree_leaves_with_path(params):
    name = jax.tree_util.keystr(path)
    digest.update(f'{name} {leaf.shape} {leaf.dtype}\n'.encode())
    digest.update(np.asarray(_sums(leaf)).tobytes())
  return digest.hexdigest()[:16]


@jax.jit
def _sums(x: jax.Array) -> jax.Array:
  """Two sums over mixed bits and positions, [2] uint32, in any order."""
  width = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}[x.dtype.itemsize]
  bits = jax.lax.bitcast_convert_type(x, width).astype(jnp.uint32)
  place = jnp.zeros(x.shape, jnp.uint32)
  for axis, size in enumerate(x.shape):
    along = jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis)
    place = place * jnp.uint32(size) + along
  return jnp.stack(
    [
      jnp.sum(_mix(bits ^ _mix(place + jnp.uint32(seed))), dtype=jnp.uint32)
      for seed in (1, 2**31)
    ]
  )


def _mix(x: jax.Array) -> jax.Array:
  """Spreads each bit of an uint32 over all (MurmurHash3's finalizer)."""
  for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
    x = (x ^ (x >> shift)) * jnp.uint32(factor)
  return x ^ (x >> 16)
