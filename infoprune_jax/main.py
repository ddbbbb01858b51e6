r"""The command line: flags to config, config to stages.

python -m infoprune_jax.main --config=configs/demo.py [--workdir=DIR] \
    [--job=NAME] [--dry_run[=full]] [--stale=redo] [--extend] \
    [--config.a.b=value] [--multiprocess] \
    [--compile_only --topology=v5e:16x16 [--num_slices=2]]
"""

import os
import re
import signal
import socket
import sys
import threading
import types
from collections.abc import Sequence
from typing import Any, NoReturn

from absl import app, flags, logging
from ml_collections import config_flags

from infoprune_jax.config import (
  config_flag,
  experiment as config_lib,
  validation,
)
from infoprune_jax.runtime import files, preemption, progress, unicode_mode

# The stages are imported in `main`: worker processes import this module too,
# and need neither JAX nor the seconds that it takes.

_CONFIG = config_flag.define(
  'A file in configs/; override with --config.a.b=value.'
)
_WORKDIR = flags.DEFINE_string(
  'workdir', None, 'Where artifacts go. Default: runs/<name of the config>.'
)
_JOB = flags.DEFINE_string(
  'job', None, 'One stage to run. Default: all, in order.'
)


class _DryRunParser(flags.ArgumentParser):
  """--dry_run, --nodry_run and --dry_run=full: 'short', '' and 'full'."""

  def parse(self, argument: str) -> str:
    if argument in ('', 'full'):
      return argument
    try:
      return 'short' if flags.BooleanParser().parse(argument) else ''
    except ValueError:
      raise ValueError('expected --dry_run or --dry_run=full') from None


_DRY_RUN = flags.DEFINE_flag(
  flags.Flag(
    _DryRunParser(),
    flags.ArgumentSerializer(),
    'dry_run',
    '',
    'Print the stages with state and cost, and stop. --dry_run=full also '
    'prints all options, and the parameters with their shardings.',
    boolean=True,  # It needs no value.
  )
)
_STALE = flags.DEFINE_enum(
  'stale',
  'refuse',
  ['refuse', 'redo'],
  'What to do if artifacts were made by another config. redo: list them, delete '
  'them and what depends on them, and make them again.',
)
_EXTEND = flags.DEFINE_bool(
  'extend',
  False,
  'Continue finished work if the config now asks for more: training runs with '
  'more steps, a corpus with more files.',
)
_COMPILE_ONLY = flags.DEFINE_bool(
  'compile_only',
  False,
  'Compile the programs of --job for the TPUs of --topology, which need not be '
  'there; print memory, collectives and the largest batch that fits, and stop.',
)
_TOPOLOGY = flags.DEFINE_string(
  'topology',
  None,
  'A TPU chip and the shape of a slice, such as v5e:16x16, for --compile_only.',
)
_NUM_SLICES = flags.DEFINE_integer(
  'num_slices', 1, 'Number of slices, for --compile_only.', lower_bound=1
)
_MULTIPROCESS = flags.DEFINE_bool(
  'multiprocess',
  False,
  'Join the other hosts of a TPU pod, a SLURM or an Open MPI job.',
)
_COORDINATOR = flags.DEFINE_string(
  'coordinator_address',
  None,
  'HOST:PORT where process 0 can be reached, to join hosts by hand.',
)
_PROCESS_COUNT = flags.DEFINE_integer(
  'process_count', None, 'Number of processes, with --coordinator_address.'
)
_PROCESS_INDEX = flags.DEFINE_integer(
  'process_index', None, 'Index of this process, from 0.'
)
_PROCESS_TIMEOUT = flags.DEFINE_float(
  'process_timeout',
  60.0,
  'Seconds without a heartbeat after which a process counts as lost.',
)
_TIMEOUTS = 1, 24 * 3600  # seconds
_COMPILED_JOBS = ('score', 'train', 'reference', 'evaluate')
USER_ERROR = 2  # The exit code; 1 is a defect of ours.


def _parse(argv: Sequence[str]) -> list[str]:
  """Parses flags; a mistake in them is one message, not a traceback."""
  try:
    rest = config_flag.parse(argv)
    if len(rest) > 1:
      raise validation.UserError(f'Unexpected arguments: {rest[1:]}.')
    if _WORKDIR.value == '':
      raise validation.UserError(
        '--workdir is empty: give a folder, or leave it out for runs/NAME of '
        'the config.'
      )
    _check_processes()
    _check_compile_only()
    return rest
  except validation.UserError as error:
    _fail(str(error))


def _check_compile_only() -> None:
  """Raises `UserError` unless its flags are given together."""
  if not _COMPILE_ONLY.value:
    for name, is_given in (
      ('topology', _TOPOLOGY.value is not None),
      ('num_slices', _NUM_SLICES.value != 1),
    ):
      if is_given:
        raise validation.UserError(f'--{name} is for --compile_only: add it.')
    return
  if _JOB.value not in _COMPILED_JOBS or not _TOPOLOGY.value:
    raise validation.UserError(
      f'--compile_only needs --job, one of {", ".join(_COMPILED_JOBS)}, and '
      f'--topology, such as v5e:16x16, got --job={_JOB.value} and '
      f'--topology={_TOPOLOGY.value}.'
    )


def _check_processes() -> None:
  """Raises `UserError` if flags that name other hosts are missing or wrong."""
  least, most = _TIMEOUTS
  if not least <= _PROCESS_TIMEOUT.value <= most:
    raise validation.UserError(
      f'--process_timeout must be from {least} to {most} seconds, got '
      f'{_PROCESS_TIMEOUT.value:g}.'
    )
  given = {
    f'--{flag.name}': flag.value
    for flag in (_COORDINATOR, _PROCESS_COUNT, _PROCESS_INDEX)
  }
  missing = [name for name, value in given.items() if value is None]
  if 0 < len(missing) < len(given):
    raise validation.UserError(
      f'{" and ".join(missing)} must be given together with {", ".join(given)}; '
      'a TPU pod or a SLURM job needs only --multiprocess.'
    )
  if missing:
    return
  address: Any = _COORDINATOR.value
  count: Any = _PROCESS_COUNT.value
  index: Any = _PROCESS_INDEX.value
  if not re.fullmatch(r'.+:\d+', address):
    raise validation.UserError(
      f'--coordinator_address must be HOST:PORT, got {address!r}.'
    )
  if not 0 <= index < count:
    raise validation.UserError(
      f'--process_index must be from 0 to {count - 1}, with --process_count='
      f'{count}, got {index}.'
    )


def _join() -> types.ModuleType | None:
  """Joins the other hosts if a flag asks for it; returns `distributed` then."""
  if not _MULTIPROCESS.value and _COORDINATOR.value is None:
    return None
  from infoprune_jax.runtime import distributed

  distributed.initialize(
    _COORDINATOR.value,
    _PROCESS_COUNT.value,
    _PROCESS_INDEX.value,
    _PROCESS_TIMEOUT.value,
  )
  progress.log_to_stderr(distributed.index())
  return distributed


def _fail(message: str) -> NoReturn:
  sys.exit(_exit(message))


def _exit(message: str) -> int:
  progress.wipe()
  print(f'infoprune_jax: {message}', file=sys.stderr)
  return USER_ERROR


def main(argv: Sequence[str]) -> int:
  """Runs the stages; returns the exit code."""
  del argv
  unicode_mode.print_anything()
  progress.log_to_stderr()
  logging.set_verbosity(logging.WARNING)  # Orbax logs much on every save.
  _print_refusals_once()
  _leave_when_told()
  name = os.path.basename(
    config_flags.get_config_filename(flags.FLAGS['config'])
  )
  workdir = _WORKDIR.value or os.path.join('runs', name.removesuffix('.py'))
  distributed = None
  try:
    config = config_lib.from_mapping(_CONFIG.value)
    if _COMPILE_ONLY.value:
      _compile_only(config)
      return 0
    distributed = _join()

    _run(config, workdir)
    if distributed:
      distributed.leave()
  except preemption.Stopped as stopped:
    if distributed:
      distributed.leave()
    progress.wipe()
    print(
      f'infoprune_jax: {stopped}; run it again to continue.', file=sys.stderr
    )
    return 128 + stopped.number
  except validation.UserError as error:
    if distributed:
      distributed.abandon(error)
    return _exit(str(error))
  except Exception as error:
    refusal = files.refusal(error)
    if distributed:
      distributed.abandon(refusal or error)
    if not refusal:
      progress.wipe()
      raise
    _exit(f'{refusal}, and run it again: finished work in {workdir} is kept.')
    _leave_at_once(USER_ERROR)
  return 0


def _run(config: config_lib.Config, workdir: str) -> None:
  """Runs the stages, or says what they would do."""
  from infoprune_jax import dry_run, stages

  job, extend = _JOB.value, _EXTEND.value
  if _DRY_RUN.value:
    full = _DRY_RUN.value == 'full'
    dry_run.run(config, workdir, job, full=full, extend=extend)
  else:
    stages.run(config, workdir, job, stale=_STALE.value, extend=extend)


def _compile_only(config: config_lib.Config) -> None:
  """Compiles for TPUs that are not there."""
  from infoprune_jax.pods import libtpu

  libtpu.prepare()  # Before JAX is imported.
  from infoprune_jax.pods import compile_only

  compile_only.run(
    config, str(_JOB.value), str(_TOPOLOGY.value), _NUM_SLICES.value
  )


def _leave_when_told() -> None:
  """SIGTERM and SIGINT end the process at once, with one line.

  During training the first signal is a request to save.

  Files are whole at any moment, so the main thread has nothing to do. It may be
  compiling for minutes or waiting for workers, so another thread reads the
  signals that the interpreter notes.
  """
  preemption.at_exit(lambda _: progress.wipe())
  reader, writer = socket.socketpair()
  writer.setblocking(False)
  for number in (signal.SIGTERM, signal.SIGINT):
    if signal.getsignal(number) is not signal.SIG_IGN:  # As under nohup.
      signal.signal(number, lambda *_: None)
  signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)

  def leave() -> None:
    with writer:  # The writer must live until then.
      number = 0
      while number not in (signal.SIGTERM, signal.SIGINT):
        number = reader.recv(1)[0]
        if number in (signal.SIGTERM, signal.SIGINT) and preemption.ask(number):
          told = (
            f'infoprune_jax: {signal.Signals(number).name}: saves and stops '
            'after this step; a second signal stops it at once\n'
          )
          progress.wipe()
          os.write(sys.stderr.fileno(), told.encode())
          number = 0
      preemption.exit_for(number)

  threading.Thread(target=leave, daemon=True).start()


def _print_refusals_once() -> None:
  """Keeps threads from printing an error that the main thread raises too."""
  hook = threading.excepthook

  def in_thread(args: threading.ExceptHookArgs) -> None:
    if not files.refusal(args.exc_value):
      hook(args)

  threading.excepthook = in_thread
  unraisable = sys.unraisablehook

  def in_callback(args: Any) -> None:
    # Orbax still waited for other writes when its first one failed.
    if str(args.exc_value) != 'Event loop is closed':
      unraisable(args)

  sys.unraisablehook = in_callback
  # The filter of a handler sees messages of child loggers; a logger's does not.
  logging.get_absl_handler().addFilter(
    lambda record: (
      not files.refusal(Exception(record.getMessage()))
      and not (record.exc_info and files.refusal(record.exc_info[1]))
    )
  )


def _leave_at_once(code: int) -> None:
  """Ends the process without further attempts of open writers to write."""
  sys.stderr.flush()
  os._exit(code)


if __name__ == '__main__':
  unicode_mode.enter()
  app.run(main, flags_parser=_parse)
