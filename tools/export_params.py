r"""Writes the parameters of a trained model to one file.

  python tools/export_params.py --run=runs/small/reference
  --out=small.safetensors

The run may be any training run, and the step any that it has kept. To score
with the file, set --config.reference.checkpoint.path=small.safetensors.
"""

import sys

from absl import app, flags, logging

from infoprune_jax.config.experiment import CheckpointConfig, MeshConfig
from infoprune_jax.config.validation import UserError
from infoprune_jax.runtime.options import options_of, recorded

_RUN = flags.DEFINE_string('run', None, 'The folder of a finished run.')
_STEP = flags.DEFINE_integer('step', -1, 'A kept step; -1 for the last.')
_OUT = flags.DEFINE_string('out', None, 'The file, ending in .safetensors.')
flags.mark_flags_as_required(['run', 'out'])


def export(run: str, step: int, out: str) -> None:
  """Writes the parameters of a step in float32, and facts of their training.

  Raises:
    UserError: there is no such run or step, or the name is not .safetensors.
  """
  from infoprune_jax.model import mesh as mesh_lib, parameter_file
  from infoprune_jax.score import references

  if not CheckpointConfig(path=out, step=-1).is_file:
    raise UserError(f'--out must end in .safetensors, got {out!r}.')
  # No model runs here, so any kernel that a config names is accepted.
  how = dict(
    attention='auto',
    loss_kernel='auto',
    remat='none',
    scan_unroll=1,
    loss_chunk_tokens=1,
  )
  given = references.open_given(
    'the parameters', CheckpointConfig(path=run, step=step), how
  )
  mesh = mesh_lib.make_mesh(MeshConfig(data=-1, fsdp=1, tensor=1))
  params = references.load(given, mesh)
  model = options_of(given.model)
  for name in how:  # Of the job that scores.
    del model[name]
  parameter_file.write(out, params, {**given.facts, 'model': recorded(model)})


def main(_: list[str]) -> int:
  """Returns the exit code."""
  logging.set_verbosity(logging.WARNING)  # Orbax says much.
  try:
    export(_RUN.value, _STEP.value, _OUT.value)
  except UserError as error:
    print(error, file=sys.stderr)
    return 2
  return 0


if __name__ == '__main__':
  app.run(main)
