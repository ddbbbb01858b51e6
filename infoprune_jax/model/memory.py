"""A lack of device memory, told apart from other errors."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import jax

from infoprune_jax.config.validation import UserError
from infoprune_jax.model.mesh import Mesh


@contextlib.contextmanager
def oom_as_user_error(explain: Callable[[], str]) -> Iterator[None]:
  """Turns a lack of device memory into a message.

  Args:
    explain: The message, asked for only then.

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
    compiled: Gives the program, as JAX compiled it.
    mesh: Its devices say what they have; those that do not (a CPU) have enough.
    others_bytes: What a device holds beside the program's own arrays.
  """
  try:
    need = compiled().memory_analysis()
  except jax.errors.JaxRuntimeError as error:
    if 'RESOURCE_EXHAUSTED' not in str(error):
      raise
    return False
  total = (
    need.argument_size_in_bytes
    + need.temp_size_in_bytes
    + need.output_size_in_bytes
    - need.alias_size_in_bytes  # Donated: the output is where it was.
    + others_bytes
  )
  stats = mesh.local_devices[0].memory_stats() or {}
  return total <= stats.get('bytes_limit', total)
