"""What is said when a scoring program does not fit its devices."""

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Any

import jax

from infoprune_jax.config import UserError


@contextlib.contextmanager
def user_errors(scorer: Any, others_bytes: int = 0) -> Iterator[None]:
  """Turns a lack of device memory into a message with a batch that fits.

  Args:
    scorer: A `scorer.Scorer`, whose program is compiled or run in this block.
    others_bytes: What a device holds beside that.

  Raises:
    UserError: device memory ran out.
  """
  try:
    yield
  except jax.errors.JaxRuntimeError as error:
    if 'RESOURCE_EXHAUSTED' not in str(error):
      raise
    rows = scorer.scoring.per_device_batch_size
    fits = _fitting(scorer, others_bytes)
    advice = (
      f'per_device_batch_size={fits} fits'
      if fits
      else 'not even one row fits: spread the model over more devices, with '
      'mesh.fsdp or mesh.tensor'
    )
    raise UserError(
      f'Scoring with per_device_batch_size={rows}, '
      f'row_length={scorer.scoring.row_length} needs more memory than a device '
      f'has: {advice}.'
    ) from None


def _fitting(scorer: Any, others_bytes: int) -> int:
  """The largest half, quarter and so on of the batch that fits; 0 for none."""
  device = scorer.mesh.local_devices[0]
  stats = device.memory_stats() or {}
  rows = scorer.scoring.per_device_batch_size // 2
  while rows:
    smaller = dataclasses.replace(
      scorer,
      scoring=dataclasses.replace(scorer.scoring, per_device_batch_size=rows),
    )
    with contextlib.suppress(jax.errors.JaxRuntimeError):
      need = smaller.program(1).memory_analysis()
      total = (
        need.argument_size_in_bytes
        + need.temp_size_in_bytes
        + need.output_size_in_bytes
        + others_bytes
      )
      if total <= stats.get('bytes_limit', total):
        return rows
    rows //= 2
  return 0
