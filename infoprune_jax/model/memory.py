"""What fits into the memory of a device, and errors that say it lacks."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import jax

from infoprune_jax.config.model import ModelConfig
from infoprune_jax.config.validation import UserError
from infoprune_jax.model import chips, network
from infoprune_jax.model.mesh import Mesh
from infoprune_jax.runtime import distributed

# A tile of float32 logits takes at most this fraction of a device's memory. Its
# gradient takes as much again.
_LOGITS_FRACTION = 1 / 16
# On an H200, training with 124M parameters was 4 % faster with a tile of 16,384
# tokens than with one of 1,024. Below the least, products get slow.
_LEAST_CHUNK, _MOST_CHUNK = 256, 16_384
# Layers in an iteration of the scan, at most, by platform. In training, a scan
# copies what the backward pass needs: on an H100, a scan over single layers took
# 1.36 times as long as unrolled layers (124M parameters), and on a CPU, a scan
# over 4 of 8 layers 1.2 times as long (8M). The compiler takes longer for each
# layer.
_UNROLL = {'gpu': 32, 'cpu': 8}


@contextlib.contextmanager
def oom_as_user_error(explain: Callable[[], str]) -> Iterator[None]:
  """Turns a lack of device memory into a message.

  Args:
    explain: Returns the message; called only if memory ran out.

  Raises:
    UserError: device memory ran out in this block.
  """
  try:
    yield
  except jax.errors.JaxRuntimeError as error:
    if 'RESOURCE_EXHAUSTED' not in str(error):
      raise
    raise UserError(explain()) from None


def fits(
  compiled: Callable[[], Any], mesh: Mesh, others_bytes: int = 0
) -> bool:
  """Whether a program compiles and fits a device of the mesh.

  Args:
    compiled: Returns the compiled program.
    mesh: The mesh. Devices that do not report their memory have enough.
    others_bytes: Bytes on a device besides the program's own arrays.
  """
  try:
    need = compiled().memory_analysis()
  except jax.errors.JaxRuntimeError as error:
    if 'RESOURCE_EXHAUSTED' not in str(error):
      raise
    return False
  total = total_bytes(need) + others_bytes
  return total <= (_own_limit(mesh) or total)


def total_bytes(need: Any) -> int:
  """The bytes of all arrays of a program on a device.

  Args:
    need: The `memory_analysis` of the compiled program.
  """
  return (
    need.argument_size_in_bytes
    + need.temp_size_in_bytes
    + need.output_size_in_bytes
    - need.alias_size_in_bytes  # Donated: the output takes its place.
  )


def _own_limit(mesh: Mesh) -> int:
  """As `limit`, of this process alone."""
  try:
    stats = mesh.local_devices[0].memory_stats() or {}
  except jax.errors.JaxRuntimeError:  # A device that is only compiled for.
    return chips.hbm_bytes(mesh.local_devices[0].device_kind)
  return stats.get('bytes_limit', 0)


def limit(mesh: Mesh) -> int:
  """Bytes that JAX may use of a device; 0 if it does not say (a CPU).

  All processes call this together: the result is the least of theirs.
  """
  return min(distributed.all_gather('memory of a device', _own_limit(mesh)))


def scan_unroll(model: ModelConfig, mesh: Mesh) -> int:
  """Layers in an iteration of the scan, where the config leaves that open."""
  platform = mesh.devices.flat[0].platform
  most = _UNROLL.get(platform, network.SCAN_UNROLL)
  return model.scan_unroll or min(model.num_layers, most)


def with_loss_chunk(
  model: ModelConfig, vocab_size: int, mesh: Mesh
) -> ModelConfig:
  """The model with its `loss_chunk_tokens`, where that is left to the memory.

  All processes call this together.
  """
  bytes_limit = 0 if model.loss_chunk_tokens else limit(mesh)
  if not bytes_limit:
    return model
  columns = -(-vocab_size // mesh.num_shards('vocab'))
  tokens = int(bytes_limit * _LOGITS_FRACTION) // (4 * columns)
  power = 1 << (max(tokens, 1).bit_length() - 1)
  chunk = min(max(power, _LEAST_CHUNK), _MOST_CHUNK)
  return dataclasses.replace(model, loss_chunk_tokens=chunk)
