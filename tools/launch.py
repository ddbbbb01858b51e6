r"""Runs a whole experiment on TPUs, from a laptop.

    python tools/launch.py --config=configs/mine.py --workdir=gs://bucket/mine \
        --tpu=v5e-64 --image=IMAGE

The experiment is a graph of jobs: the stages, and for training one job for each
arm and seed. A job starts when those that it needs are done; --parallel limits
how many use TPUs at the same time. Jobs whose artifacts are finished are not
started. So the same command resumes an experiment that was interrupted, and
jobs that run are followed.

--dry_run prints the jobs, their state, chip-hours and dollars, and the commands.
The rate and the price are yours: --tflops_per_chip and --dollars_per_chip_hour.
"""

import dataclasses
import os
import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import job_runner
import tpu_slices
from absl import app, flags
from ml_collections import config_flags

from infoprune_jax.config import config_flag, experiment
from infoprune_jax.config.validation import UserError
from infoprune_jax.runtime import filesystems, unicode_mode

# Config files import configs/, as with python -m infoprune_jax.main.
sys.path.append(os.getcwd())
TOOLS = os.path.dirname(os.path.abspath(__file__))
_CONFIG = config_flag.define('As of infoprune_jax.main, options included.')
_WORKDIR = flags.DEFINE_string('workdir', None, 'gs://..., that all jobs see.')
_TPU = flags.DEFINE_string('tpu', None, 'A slice for each job, as v5e-64.')
_SLICES = flags.DEFINE_integer('slices', 1, 'Slices of each job.')
_ON = flags.DEFINE_enum(
  'tpus_on',
  'gke',
  ['gke', 'queued_resource'],
  'What runs jobs with a model: tools/launch_gke.py, or '
  'tools/launch_queued_resource.sh.',
)
_CPUS_ON = flags.DEFINE_enum(
  'cpus_on',
  'gke',
  ['gke', 'batch', 'here'],
  'What runs the other jobs: tools/launch_gke.py, tools/launch_batch.py, or '
  'this machine.',
)
_NAME = flags.DEFINE_string(
  'name', None, 'What names of jobs begin with. Default: that of the config.'
)
_IMAGE = flags.DEFINE_string(
  'image', None, 'Of the Dockerfile, with the config.'
)
_CPU = flags.DEFINE_integer('cpu', 16, 'CPUs of a job without a model.')
_MEMORY = flags.DEFINE_integer('memory_gib', 64, 'Memory of such a job.')
_SPOT = flags.DEFINE_bool('spot', False, 'TPUs that may be taken away.')
_PROJECT = flags.DEFINE_string(
  'project', None, 'Of queued resources and Batch.'
)
_ZONE = flags.DEFINE_string('zone', None, 'Of queued resources and Batch.')
_ACCOUNT = flags.DEFINE_string(
  'service_account', None, 'Of pods: of Kubernetes; of Batch: its e-mail.'
)
_PARALLEL = flags.DEFINE_integer('parallel', 1, 'Jobs on TPUs at a time.')
_DRY_RUN = flags.DEFINE_bool('dry_run', False, 'Print, and start nothing.')
_RATE = flags.DEFINE_float(
  'tflops_per_chip', None, 'TFLOP/s that a chip reaches, for the dry run.'
)
_PRICE = flags.DEFINE_float(
  'dollars_per_chip_hour', None, 'What a chip costs, for the dry run.'
)
_TOKENS = flags.DEFINE_integer(
  'corpus_tokens', 0, 'Tokens of a corpus not tokenized yet, for the dry run.'
)
_DOCUMENTS = flags.DEFINE_integer(
  'corpus_documents', 0, 'Documents of such a corpus.'
)


def _parse(argv: Sequence[str]) -> list[str]:
  """Parses flags; a mistake in them is one message."""
  try:
    rest = config_flag.parse(argv)
    if len(rest) > 1:
      raise UserError(f'Unexpected arguments: {rest[1:]}.')
    return rest
  except UserError as error:
    print(f'launch: {error}', file=sys.stderr)
    sys.exit(2)


def main(argv: Sequence[str]) -> int:
  """Runs the experiment; returns the exit code."""
  del argv
  unicode_mode.print_anything()
  try:
    return _launch()
  except (UserError, ValueError) as error:
    print(f'launch: {error}', file=sys.stderr)
    return 2
  except KeyboardInterrupt:
    print(
      'launch: interrupted; jobs that run go on, and the same command follows '
      'them.',
      file=sys.stderr,
    )
    return 130


def _launch() -> int:
  tpu = tpu_slices.parse(_TPU.value or '')
  _check_flags()
  # The checks of a mesh need as many devices; these are of the CPU.
  os.environ['JAX_PLATFORMS'] = 'cpu'
  os.environ['XLA_FLAGS'] = (
    f'{os.environ.get("XLA_FLAGS", "")} --xla_force_host_platform_device_count='
    f'{tpu.chips * _SLICES.value}'
  )
  config = experiment.from_mapping(_CONFIG.value)

  import experiment_jobs

  from infoprune_jax import dry_run, stages

  workdir = stages.prepare(_in_one_slice(config), _WORKDIR.value, None)
  jobs = experiment_jobs.graph(config)
  states = {
    job.name: stages.state(job.stage, job.config, workdir) for job in jobs
  }
  for job in jobs:
    if states[job.name].kind in ('stale', 'refused'):
      raise UserError(
        f'{job.name} is {states[job.name]}: use another --workdir, or delete '
        'what is stale with python -m infoprune_jax.main --stale=redo.'
      )
  _check_names(jobs)
  commands = {job.name: _command(job, workdir) for job in jobs}
  if _DRY_RUN.value:
    plan = dry_run.make_plan(_in_one_slice(config), workdir)
    plan = experiment_jobs.with_corpus_size(
      plan, _TOKENS.value, _DOCUMENTS.value
    )
    flops = {job.name: experiment_jobs.flops(job, plan) for job in jobs}
    _print_jobs(jobs, states, flops, tpu.chips * _SLICES.value)
    for job in jobs:
      if states[job.name].kind != 'finished':
        print(shlex.join(commands[job.name]))
    return 0
  finished = {job.name for job in jobs if states[job.name].kind == 'finished'}
  return job_runner.run(jobs, commands, finished, _PARALLEL.value)


def _check_flags() -> None:
  """Raises `UserError` if a flag is missing or wrong."""
  wanted: dict[str, Any] = {'workdir': _WORKDIR.value}
  clouds = {_ON.value, _CPUS_ON.value}
  if clouds & {'gke', 'batch'}:
    wanted['image'] = _IMAGE.value
  if clouds & {'queued_resource', 'batch'}:
    wanted |= {'project': _PROJECT.value, 'zone': _ZONE.value}
  for name, value in wanted.items():
    if not value:
      raise UserError(f'--{name}=... is missing.')
  if filesystems.is_local(_WORKDIR.value):
    raise UserError(
      f'--workdir={_WORKDIR.value} is on this machine, which the jobs do not '
      'see: give a folder of an object store, such as gs://bucket/mine.'
    )
  if _PARALLEL.value < 1 or _SLICES.value < 1:
    raise UserError('--parallel and --slices must be 1 or more.')


def _in_one_slice(config: experiment.Config) -> experiment.Config:
  """The same mesh over devices that are not in slices, as those of this machine.

  Raises:
    UserError: the mesh has another number of slices.
  """
  mesh = config.mesh
  slices = mesh.dcn_data * mesh.dcn_fsdp
  if slices != _SLICES.value:
    raise UserError(
      f'--slices={_SLICES.value}, but mesh.dcn_data={mesh.dcn_data} times '
      f'mesh.dcn_fsdp={mesh.dcn_fsdp} is {slices}: make them equal.'
    )
  sizes = {
    'data': mesh.data if mesh.data < 0 else mesh.data * mesh.dcn_data,
    'fsdp': mesh.fsdp if mesh.fsdp < 0 else mesh.fsdp * mesh.dcn_fsdp,
  }
  flat = dataclasses.replace(mesh, **sizes, dcn_data=1, dcn_fsdp=1)
  return dataclasses.replace(config, mesh=flat)


def _name_of(job: Any) -> str:
  """The name under which a job is launched."""
  file = config_flags.get_config_filename(flags.FLAGS['config'])
  stem = os.path.basename(file).removesuffix('.py').replace('_', '-').lower()
  return f'{_NAME.value or stem}-{job.name}'


def _check_names(jobs: Sequence[Any]) -> None:
  """Raises `UserError` if the name of a job is none of Kubernetes."""
  longest = max(map(_name_of, jobs), key=len)
  if not re.fullmatch('[a-z][-a-z0-9]{0,39}', longest):
    raise UserError(
      f'{longest!r} cannot be the name of a job: give a --name with at most '
      f'{40 - max(len(job.name) for job in jobs) - 1} lower-case letters, digits '
      'and -.'
    )


def _command(job: Any, workdir: str) -> list[str]:
  """The command that runs a job."""
  options = [arg for arg in sys.argv[1:] if arg.startswith('--config')]
  inner = [*options, f'--workdir={workdir}', f'--job={job.stage}', *job.flags]
  named = [f'--name={_name_of(job)}']
  image = [f'--image={_IMAGE.value}']
  place = [f'--project={_PROJECT.value}', f'--zone={_ZONE.value}']
  account = [f'--service_account={_ACCOUNT.value}'] if _ACCOUNT.value else []
  slices = [f'--tpu={_TPU.value}', f'--slices={_SLICES.value}']
  if _SPOT.value:
    slices.append('--spot')
  size = [f'--cpu={_CPU.value}']
  where = _ON.value if job.needs_tpu else _CPUS_ON.value
  if where == 'here':
    return [sys.executable, '-m', 'infoprune_jax.main', *inner]
  if where == 'queued_resource':
    script = [f'{TOOLS}/launch_queued_resource.sh']
    return [*script, *named, *place, *slices, '--', *inner]
  script = [sys.executable, f'{TOOLS}/launch_{where}.py', *named, *image]
  if where == 'batch':
    size += [f'--memory_gib={_MEMORY.value}', *place]
  else:
    size = slices if job.needs_tpu else [*size, f'--memory={_MEMORY.value}Gi']
  return [*script, *account, *size, '--', *inner]


def _print_jobs(
  jobs: Sequence[Any],
  states: Mapping[str, Any],
  flops: Mapping[str, float],
  chips: int,
) -> None:
  """A line for each job, and the sum of those that are not finished."""
  width = max(len(job.name) for job in jobs)
  total, unknown = 0.0, []
  for job in jobs:
    state, work = states[job.name], flops[job.name]
    text = f'{job.name:{width}}  {state.kind:8}'
    if job.needs_tpu and state.kind != 'finished':
      total += work
      unknown += [] if work else [job.name]
      text += f'  {_price(work, chips) if work else "not known yet"}'
    print(text)
  print(f'{"all":{width}}  {"":8}  {_price(total, chips)}')
  if unknown:
    print(
      f'Without {", ".join(unknown)}: give --corpus_tokens and '
      '--corpus_documents, or run tokenize first.'
    )
  if _RATE.value is None or _PRICE.value is None:
    print(
      'Give --tflops_per_chip and --dollars_per_chip_hour for hours and dollars.'
    )


def _price(flops: float, chips: int) -> str:
  """FLOPs, and with the rates of the user chip-hours, hours and dollars."""
  parts = [f'{flops:.3g} FLOP']
  if _RATE.value is not None:
    hours = flops / (_RATE.value * 1e12) / 3600
    parts += [
      f'{hours:.1f} chip-hours',
      f'{hours / chips:.2f} h on {chips} chips',
    ]
    if _PRICE.value is not None:
      parts.append(f'${hours * _PRICE.value:.2f}')
  return ', '.join(parts)


if __name__ == '__main__':
  unicode_mode.enter()
  app.run(main, flags_parser=_parse)
