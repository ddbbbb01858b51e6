"""The FLOP/s of a matrix product on a device. MFU is a fraction of them."""

import functools
import time

import jax
import jax.numpy as jnp

# A product takes 1.1 TFLOPs, milliseconds on an accelerator, or 17 GFLOPs on a CPU.
_WIDTH, _CPU_WIDTH = 8192, 2048
_PRODUCTS = 8


@functools.cache
def matmul_flops_per_second(dtype: str) -> float:
  """The result of `measured`; 0.0 on CPUs, where measuring takes seconds."""
  if jax.local_devices()[0].platform == 'cpu':
    return 0.0
  return measured(dtype)


def measured(dtype: str) -> float:
  """Measures the FLOP/s of a square product on one device of this process.

  It takes less than a second on an accelerator.
  """
  device = jax.local_devices()[0]
  width = _CPU_WIDTH if device.platform == 'cpu' else _WIDTH
  # Random numbers: a GPU multiplies equal ones faster, because fewer bits change.
  x = jax.random.normal(jax.random.key(0), (width, width)) * width**-0.5
  x = jax.device_put(x.astype(dtype), device)
  # The precision of the model's own products.
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
