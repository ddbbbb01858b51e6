"""What fits a device, by what its program needs and what the device says."""

import dataclasses
import types

import jax
import numpy as np
import pytest

from infoprune_jax.config.validation import UserError
from infoprune_jax.model import chips, memory


def mesh(shards=1, **stats):
  device = types.SimpleNamespace(memory_stats=lambda: stats or None)
  return types.SimpleNamespace(
    local_devices=[device], num_shards=lambda axis: shards
  )


def program():
  """Of 100 bytes in, 90 of them donated to 95 out, and 40 in between."""
  need = types.SimpleNamespace(
    argument_size_in_bytes=100,
    temp_size_in_bytes=40,
    output_size_in_bytes=95,
    alias_size_in_bytes=90,
  )
  return types.SimpleNamespace(memory_analysis=lambda: need)


def failing(words: str):
  def compiled():
    raise jax.errors.JaxRuntimeError(words)

  return compiled


def test_a_program_fits_with_what_is_beside_it():
  assert memory.fits(program, mesh(bytes_limit=145))
  assert not memory.fits(program, mesh(bytes_limit=144))
  assert memory.fits(program, mesh(bytes_limit=152), others_bytes=7)
  assert not memory.fits(program, mesh(bytes_limit=151), others_bytes=7)
  assert memory.fits(program, mesh())  # A CPU does not say what it has.


@pytest.mark.parametrize(
  'gigabytes, vocab_size, shards, chunk',
  [
    (60, 50257, 1, 16384),  # An H100, as JAX takes three quarters of it.
    (16, 50257, 1, 4096),
    (16, 128256, 1, 1024),
    (16, 128256, 4, 4096),
    (1, 128256, 1, 256),
    (0, 128256, 1, 0),  # A CPU does not say what it has.
  ],
)
def test_a_chunk_of_the_loss_takes_a_part_of_the_memory(
  small, gigabytes, vocab_size, shards, chunk
):
  free = dataclasses.replace(small.model, loss_chunk_tokens=0)
  on = mesh(shards, bytes_limit=gigabytes * 10**9)
  chosen = memory.with_loss_chunk(free, vocab_size, on)
  assert chosen.loss_chunk_tokens == chunk
  assert dataclasses.replace(chosen, loss_chunk_tokens=0) == free
  given = dataclasses.replace(free, loss_chunk_tokens=77)
  assert memory.with_loss_chunk(given, vocab_size, on) == given


def test_what_does_not_compile_for_want_of_memory_does_not_fit():
  assert not memory.fits(failing('RESOURCE_EXHAUSTED: of HBM'), mesh())
  with pytest.raises(jax.errors.JaxRuntimeError, match='INTERNAL'):
    memory.fits(failing('INTERNAL: broken'), mesh())


def test_only_a_lack_of_memory_is_explained():
  explained = memory.oom_as_user_error(lambda: 'take less')
  with pytest.raises(UserError, match='take less'), explained:
    failing('RESOURCE_EXHAUSTED: of HBM')()
  explained = memory.oom_as_user_error(lambda: 'take less')
  with pytest.raises(jax.errors.JaxRuntimeError, match='INTERNAL'), explained:
    failing('INTERNAL: broken')()


@pytest.mark.parametrize(
  'platform, num_layers, given, unroll',
  [
    ('gpu', 24, 0, 24),
    ('gpu', 40, 0, 32),
    ('tpu', 24, 0, 4),
    ('cpu', 3, 0, 3),
    ('cpu', 24, 0, 8),
    ('gpu', 24, 2, 2),
  ],
)
def test_layers_of_an_iteration_of_the_scan(
  small, platform, num_layers, given, unroll
):
  device = types.SimpleNamespace(platform=platform)
  on = types.SimpleNamespace(devices=np.array([device]))
  model = dataclasses.replace(
    small.model, num_layers=num_layers, scan_unroll=given
  )
  assert memory.scan_unroll(model, on) == unroll


def test_a_chip_that_is_only_compiled_for_has_the_memory_of_its_kind():
  def memory_stats():
    raise jax.errors.JaxRuntimeError('INVALID_ARGUMENT: not addressable')

  device = types.SimpleNamespace(
    memory_stats=memory_stats, device_kind='TPU v6 lite'
  )
  described = types.SimpleNamespace(local_devices=[device])
  assert memory.limit(described) == chips.CHIPS['v6e'].hbm_bytes
