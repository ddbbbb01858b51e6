"""How many FLOPs per second a device gives a matrix product: what MFU is of."""

import functools
import time

import jax
import jax.numpy as jnp

# 1.1 TFLOPs a product, milliseconds on a device that counts; 17 GFLOPs a CPU.
_WIDTH, _CPU_WIDTH = 8192, 2048
_PRODUCTS = 8


@functools.cache
def matmul_flops_per_second(dtype: str) -> float:
  """What `measured` gives; 0.0 on CPUs, where it would take seconds.

  Returns:
    FLOP/s of a square product in `dtype`, on one device of this process.
  """
  if jax.local_devices()[0].platform == 'cpu':
    return 0.0
  return measured(dtype)


def measured(dtype: str) -> float:
  """FLOP/s of a square product, in under a second on an accelerator."""
  device = jax.local_devices()[0]
  width = _CPU_WIDTH if device.platform == 'cpu' else _WIDTH
  # Random: a GPU multiplies equal numbers faster, as fewer bits change.
  x = jax.random.normal(jax.random.key(0), (width, width)) * width**-0.5
  x = jax.device_put(x.astype(dtype), device)
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
  return _PRODUCTS * 2.0 * width**3 / min(seconds)
