"""Compiles the programs of a job for TPUs that are not there, and prints them.

See `--compile_only` in docs/pods.md.
"""

import re
import time
from collections.abc import Iterator

import jax
from jax.experimental import topologies

from infoprune_jax.config.experiment import Config, MeshConfig
from infoprune_jax.config.validation import UserError
from infoprune_jax.model import chips, mesh as mesh_lib, partitioning
from infoprune_jax.model.chips import Chip
from infoprune_jax.model.mesh import Mesh
from infoprune_jax.pods import bisection, programs, roofline
from infoprune_jax.pods.programs import Needs, Program
from infoprune_jax.runtime.progress import (
  alive,
  counted,
  duration,
  logger,
  quantity,
)

MOST_SEQUENCES = 4096  # of a chip, that are tried
_PRECISION = 16  # The largest batch is told to one part in so many.


def run(config: Config, job: str, topology: str, num_slices: int) -> None:
  """Compiles and prints the programs of a job, and the largest batch that fits.

  It reads no corpus and no workdir; models and vocabularies from elsewhere are
  read.

  Args:
    config: The experiment.
    job: As for `programs.of_job`.
    topology: A chip and the shape of a slice, such as 'v5e:16x16'.
    num_slices: How many slices there are.

  Raises:
    UserError: there is no such topology; the config does not suit it; or a
      program does not fit, which is known after all are printed.
  """
  chip = chips.of_topology(topology)
  mesh = make_mesh(config.mesh, topology, num_slices)
  of_job = programs.of_job(config, job, mesh)
  for program in of_job:
    program.check()
  slices = f'{counted(num_slices, "slice")} of ' * (num_slices > 1)
  print(
    f'{job} on {slices}{topology}: {counted(mesh.devices.size, "chip")}, mesh '
    f'{dict(mesh.shape)}',
    flush=True,
  )
  too_large = []
  for program in of_job:
    needs = compiled(program)
    print('\n'.join(lines(chip, program, needs)), flush=True)
    # Evaluation takes turns with training, and has a batch of its own.
    if fits(chip, needs) and program is not of_job[0]:
      continue
    told = _largest_text(program, *largest_batch(chip, program, needs))
    print(f'  {told}', flush=True)
    if not fits(chip, needs):
      too_large.append(f'{program.name} ({told})')
  if too_large:
    raise UserError(
      f'{job} does not fit {topology}: {"; ".join(too_large)}. Change the batch, '
      'raise gradient_accumulation_steps, or spread the model over more chips, '
      'with mesh.fsdp or mesh.tensor.'
    )


def _largest_text(program: Program, sequences: int, unit: int) -> str:
  if not sequences:
    return 'not even one sequence per chip fits'
  smallest = _with(program, sequences)
  remat = smallest.planned.model.remat
  text = f'{smallest.batch_option} is the largest batch that fits'
  if remat != program.planned.model.remat:
    text += f', with model.remat={remat!r}'
  if unit > 1:
    text += f', in steps of {unit} sequences per chip'
  return text


def make_mesh(config: MeshConfig, topology: str, num_slices: int) -> Mesh:
  """The mesh of a topology, whose devices are only compiled for.

  Raises:
    UserError: the mesh does not divide it.
  """
  described = topologies.get_topology_desc(
    topology,
    'tpu',
    num_slices=num_slices,
    # As Cloud TPUs run: both cores of a chip are one device.
    **{'chip_config_name': 'megacore'} if topology.startswith('v4') else {},
  )
  mesh = mesh_lib.make_mesh(config, list(described.devices))
  partitioning.process_groups(mesh)
  return mesh


def compiled(program: Program) -> Needs | str:
  """What a program needs, or what the compiler says if it lacks memory."""
  start = time.monotonic()
  try:
    with alive(f'compiles {program.name}'):
      return program.compile()
  except jax.errors.JaxRuntimeError as error:
    if 'RESOURCE_EXHAUSTED' not in str(error):
      raise
    told = re.search(r'[^.:]*(?:memory required|Used )[^\n]*', str(error))
    return told[0].strip() if told else str(error).splitlines()[0]
  finally:
    spent = duration(time.monotonic() - start)
    logger.info(
      '%s, %s: compiled in %s', program.name, program.batch_option, spent
    )


def largest_batch(
  chip: Chip, program: Program, needs: Needs | str
) -> tuple[int, int]:
  """The most sequences of a chip that fit; 0 if not even one does.

  Args:
    chip: The chip.
    program: The program.
    needs: What it needs as it is.

  Returns:
    The number, and the steps of the search, which are up to a sixteenth of it.
  """
  sequences, smallest = program.sequences, _with(program, program.sequences)
  if smallest != program:
    needs = compiled(smallest)
  while not fits(chip, needs):
    if sequences == 1:
      return 0, 1
    sequences //= 2
    needs = compiled(_with(program, sequences))
  assert isinstance(needs, Needs)
  # The rest of the memory grows with the batch.
  fixed = needs.parameters + needs.optimizer + needs.beside
  per_sequence = max(needs.total - fixed, 1) / sequences
  guess = min(int((chip.hbm_bytes - fixed) / per_sequence), MOST_SEQUENCES)
  unit = 1 << max(guess // _PRECISION, 1).bit_length() - 1

  def passes(units: int) -> bool:
    number = units * unit
    if number <= sequences:
      return True
    result = fits(chip, compiled(_with(program, number)))
    verb = 'fits' if result else 'does not fit'
    logger.info('%s per chip: %s', counted(number, 'sequence'), verb)
    return result

  most = MOST_SEQUENCES // unit
  units = bisection.largest(passes, max(guess // unit, 1), most)
  return max(units * unit, sequences), unit


def fits(chip: Chip, needs: Needs | str) -> bool:
  """Whether a program fits a chip, by what `compiled` says."""
  return isinstance(needs, Needs) and needs.total <= chip.hbm_bytes


def _with(program: Program, sequences: int) -> Program:
  return program.with_sequences(sequences)


def lines(chip: Chip, program: Program, needs: Needs | str) -> Iterator[str]:
  """A few lines about a program."""
  size = f'{program.sequences} x {program.config.sequence_length} tokens'
  yield f'{program.name}: {program.batch_option}, {size} per chip at once'
  if isinstance(needs, str):
    yield f'  memory     does not fit: {needs}'
    return
  yield from _memory_lines(chip, needs)
  yield from _collective_lines(needs)
  per_chip = program.flops / program.mesh.devices.size
  yield (
    f'  FLOPs      {quantity(program.flops, "FLOP")} per step, '
    f'{quantity(per_chip, "FLOP")} per chip'
  )
  yield from _estimate_lines(
    chip, program, roofline.estimate(chip, program, needs)
  )


def _memory_lines(chip: Chip, needs: Needs) -> Iterator[str]:
  parts = {
    'parameters': needs.parameters,
    'optimizer': needs.optimizer,
    'batch': needs.batch,
    'activations and other temporaries': needs.temporaries,
    'held beside it': needs.beside,
  }
  named = ', '.join(
    f'{name} {quantity(size, "B")}' for name, size in parts.items() if size
  )
  verb = 'fits' if fits(chip, needs) else 'does not fit'
  yield (
    f'  memory     {quantity(needs.total, "B")} of '
    f'{quantity(chip.hbm_bytes, "B")} per chip, {verb}: {named}'
  )


def _collective_lines(needs: Needs) -> Iterator[str]:
  if needs.collectives is None:
    yield '  collectives  libtpu does not print this program'
    return
  kinds = (
    f'{one.count} {kind} of {quantity(one.bytes, "B")}'
    for kind, one in needs.collectives.items()
  )
  unknown = needs.num_unknown_loops
  yield f'  collectives  {", ".join(kinds) or "none"}' + (
    f' ({counted(unknown, "loop")} of unknown length counted once)'
    if unknown
    else ''
  )


def _estimate_lines(
  chip: Chip, program: Program, estimate: roofline.Estimate
) -> Iterator[str]:
  rate = program.tokens / estimate.step / program.mesh.devices.size
  by_formula = ' (by formula)' * estimate.links_are_formula
  yield (
    f'  at best    {estimate.step:.3g} s per step, '
    f'{quantity(rate, "tokens/s")} per chip, MFU {estimate.mfu:.0%}: compute '
    f'{estimate.compute:.3g} s, memory {estimate.memory:.3g} s, links '
    f'{estimate.links:.3g} s{by_formula}; at '
    f'{quantity(chip.flops_per_second, "FLOP/s")}, '
    f'{quantity(chip.hbm_bytes_per_second, "B/s")} of memory and '
    f'{quantity(chip.ici_bytes_per_second / 2, "B/s")} of links each way'
  )
