"""The message for a scoring program that does not fit into device memory."""

import contextlib
import dataclasses
from typing import Any

from infoprune_jax.model import memory


def oom_as_user_error(
  scorer: Any, others_bytes: int = 0
) -> contextlib.AbstractContextManager[None]:
  """Turns a lack of device memory into a message that names a batch that fits.

  Args:
    scorer: The `scorer.Scorer` whose program is compiled or run in this block.
    others_bytes: Bytes of the other arrays on a device.

  Raises:
    UserError: device memory ran out.
  """

  def explain() -> str:
    sequences = scorer.scoring.per_device_batch_size
    smaller = _fitting(scorer, others_bytes)
    advice = (
      f'per_device_batch_size={smaller} fits'
      if smaller
      else 'not even one sequence fits: spread the model over more devices, with '
      'mesh.fsdp or mesh.tensor'
    )
    return (
      f'Scoring with per_device_batch_size={sequences}, '
      f'sequence_length={scorer.scoring.sequence_length} needs more memory than a device '
      f'has: {advice}.'
    )

  return memory.oom_as_user_error(explain)


def _fitting(scorer: Any, others_bytes: int) -> int:
  """The largest of a half, a quarter and so on of the batch that fits; or 0."""
  sequences = scorer.scoring.per_device_batch_size // 2
  while sequences:
    scoring = dataclasses.replace(
      scorer.scoring, per_device_batch_size=sequences
    )
    smaller = dataclasses.replace(scorer, scoring=scoring)
    if memory.fits(lambda s=smaller: s.program(1), scorer.mesh, others_bytes):
      return sequences
    sequences //= 2
  return 0
