"""What fits a device, by what its program needs and what the device says."""

import types

import jax
import pytest

from infoprune_jax.config.validation import UserError
from infoprune_jax.model import memory


def mesh(**stats):
  device = types.SimpleNamespace(memory_stats=lambda: stats or None)
  return types.SimpleNamespace(local_devices=[device])


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
