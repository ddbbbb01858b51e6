"""Work as Apache Beam pipelines, for corpora that outgrow one machine.

Tasks and results are files in a folder that all workers see: runners limit the
size of elements, and return nothing to the process that launched a pipeline.
"""

import functools
import pickle
import posixpath
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from infoprune_jax.config.validation import UserError
from infoprune_jax.runtime import files, filesystems

_WHERE = 'corpus.beam_options'
_CLOUD_RUNNERS = ('DataflowRunner',)
_PYTHON_RUNNERS = (
  *_CLOUD_RUNNERS,
  'SwitchingDirectRunner',  # --runner=DirectRunner
  'BundleBasedDirectRunner',
  'FnApiRunner',
)
# Come before the user's options: workers log dozens of lines when they start.
_QUIET = (
  '--default_sdk_harness_log_level=WARNING',
  '--sdk_harness_log_level_overrides={"apache_beam": "ERROR", '
  '"__main__": "ERROR"}',
)
_POLL_SECONDS = 0.2
_STOP = 'stop'  # No task begins while this file exists.


def check(options: Sequence[str], folder: str) -> None:
  """Checks options of Beam before any work starts.

  Args:
    options: Options of the pipeline, as on its command line.
    folder: The folder of tasks and results.

  Raises:
    UserError: Beam is missing, has no such runner, or rejects an option; or the
      workers would not see the folder.
  """
  from apache_beam.options.pipeline_options_validator import (
    PipelineOptionsValidator,
  )

  parsed = _parsed(options)
  runner = _runner(parsed, options)
  name = type(runner).__name__
  if name in _CLOUD_RUNNERS and files.is_local(folder):
    raise UserError(
      f'{_WHERE} asks for {name}, whose workers do not see {folder}: give a '
      '--workdir in an object store, such as gs://bucket/run.'
    )
  wrong = PipelineOptionsValidator(parsed, runner).validate()
  if wrong:
    raise UserError(f'{_WHERE} is {tuple(options)}: {" ".join(wrong)}')


def _parsed(options: Sequence[str]) -> Any:
  """PipelineOptions.

  Raises:
    UserError: Beam is missing, or rejects the value of an option.
  """
  try:
    from apache_beam.options.pipeline_options import PipelineOptions
  except ModuleNotFoundError:
    raise UserError(
      f"{_WHERE} needs Apache Beam: pip install 'infoprune_jax[beam]', or set "
      f'{_WHERE}=() for processes on this machine.'
    ) from None
  parsed = PipelineOptions([*_QUIET, *options])
  try:
    parsed.get_all_options(retain_unknown_options=True)
  except SystemExit:
    raise UserError(
      f'{_WHERE} is {tuple(options)}, which Beam rejects; the reason is in the '
      'lines above.'
    ) from None
  return parsed


def _runner(parsed: Any, options: Sequence[str]) -> Any:
  """The runner that is asked for.

  Raises:
    UserError: no runner is named, or it has no such option.
  """
  from apache_beam.options.pipeline_options import (
    PipelineOptions,
    StandardOptions,
  )
  from apache_beam.runners import runner as runner_lib

  name = parsed.view_as(StandardOptions).runner
  if name is None:
    raise UserError(
      f'{_WHERE} is {tuple(options)}, which names no runner: add one, such as '
      "'--runner=DirectRunner'."
    )
  try:
    runner = runner_lib.create_runner(name)
  except (ValueError, ImportError, AttributeError) as error:
    raise UserError(f'{_WHERE} asks for the runner {name!r}: {error}') from None
  known = PipelineOptions([]).get_all_options()
  others = set(parsed.get_all_options(retain_unknown_options=True)) - {*known}
  # Python does not know the options of a runner in another language.
  if type(runner).__name__ in _PYTHON_RUNNERS and others:
    raise UserError(
      f'{_WHERE} has --{min(others)}, which is not an option of {name}.'
    )
  return runner


def run_all(
  function: Callable[[Any], Any],
  tasks: Sequence[Any],
  options: Sequence[str],
  folder: str,
) -> Iterator[Any]:
  """Yields the result of each task, in order, as soon as it is there.

  Args:
    function: A module-level function of one argument, from a package that the
      workers have.
    tasks: Its arguments; they and the results must pickle.
    options: Options of the pipeline, as on its command line.
    folder: For tasks and results; its content is deleted.

  Raises:
    UserError: the function raised it, and no further task begins; or the runner
      could not be reached, or gave up.
  """
  if not tasks:
    return
  filesystems.delete_folder(folder)
  for number, task in enumerate(tasks):
    _dump(_name(folder, 'task', number), (function, task))
  pipeline = _Pipeline(options, folder, len(tasks))
  try:
    for number in range(len(tasks)):
      name = _name(folder, 'result', number)
      while not _exists(name):
        pipeline.check_alive(name)
        time.sleep(_POLL_SECONDS)
      result, error = pickle.loads(files.read_bytes(name))
      if error is not None:
        raise error
      yield result
  finally:
    files.write_text(posixpath.join(folder, _STOP), '')
    pipeline.thread.join()
    filesystems.delete_folder(folder)


class _Pipeline:
  """A pipeline that runs in a thread: some runners return when it is done."""

  def __init__(self, options: Sequence[str], folder: str, num_tasks: int):
    """Launches it; see `run_all`."""
    self._error: BaseException | None = None
    self._state = ''
    self.thread = threading.Thread(
      target=self._run, args=(options, folder, num_tasks), daemon=True
    )
    self.thread.start()

  def _run(self, options: Sequence[str], folder: str, num_tasks: int) -> None:
    import apache_beam as beam

    try:
      pipeline = beam.Pipeline(options=_parsed(options))
      numbers = pipeline | 'Tasks' >> beam.Create(range(num_tasks))
      # Otherwise a runner fuses both steps, and one worker does all tasks.
      spread = numbers | 'Spread' >> beam.Reshuffle()
      _ = spread | 'Work' >> beam.Map(functools.partial(_work, folder))
      self._state = pipeline.run().wait_until_finish()
    except BaseException as error:  # Raised in the thread that waits for it.
      self._error = error

  def check_alive(self, result: str) -> None:
    """Raises the error of the pipeline if it ended without this result."""
    if self.thread.is_alive() or _exists(result):
      return
    # Beam marks errors of our functions this way.
    if self._error is not None and '[while running' in str(self._error):
      raise self._error
    raise UserError(
      f'The pipeline of {_WHERE} ended without a result: '
      f'{self._error or self._state}. The log of its runner says more.'
    )


def _work(folder: str, number: int) -> None:
  """Does one task in a worker; only once, even if a runner repeats it."""
  result = _name(folder, 'result', number)
  if _exists(posixpath.join(folder, _STOP)) or _exists(result):
    return
  function, task = pickle.loads(files.read_bytes(_name(folder, 'task', number)))
  try:
    done = (function(task), None)
  except UserError as error:  # Another try would not fix it.
    done = (None, error)
  _dump(result, done)


def _name(folder: str, kind: str, number: int) -> str:
  return posixpath.join(folder, f'{kind}-{number:06d}')


def _dump(name: str, value: Any) -> None:
  files.write_file(name, lambda file: pickle.dump(value, file, protocol=5))


def _exists(name: str) -> bool:
  filesystem, path = filesystems.filesystem_of(name)
  # Object stores are listed once and remembered.
  filesystem.invalidate_cache()
  return filesystem.exists(path)
