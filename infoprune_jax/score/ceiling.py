"""How many FLOPs a second a device gives a matrix product: what MFU is of."""

import functools
import time

import jax
import jax.numpy as jnp

_WIDTH = 8192  # 1.1 TFLOPs a product: milliseconds on a device that counts
_PRODUCTS = 8


@functools.cache
def matmul_flops_per_second(dtype: str) -> float:
  """Measured on one device of this process, in under a second once compiled.

  Returns:
    FLOP/s of a square product in `dtype`; 0.0 on CPUs, where it would take
    seconds and say little.
  """
  device = jax.local_devices()[0]
  if device.platform == 'cpu':
    return 0.0
  x = jax.device_put(jnp.full((_WIDTH, _WIDTH), 1 / _WIDTH, dtype), device)
  # As the model multiplies: in float32, where that is what was asked for.
  precision = 'highest' if dtype == 'float32' else 'default'

  @jax.jit
  def chain(x: jax.Array) -> jax.Array:
    product = x
    for _ in range(_PRODUCTS):
      product = jnp.matmul(product, x, precision=precision)
    return product

  chain(x).block_until_ready()
  seconds = []
  for _ in range(3):
    start = time.perf_counter()
    chain(x).block_until_ready()
    seconds.append(time.perf_counter() - start)
  return _PRODUCTS * 2.0 * _WIDTH**3 / min(seconds)
