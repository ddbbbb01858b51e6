"""The processes of one job: their indices, and how they agree.

Messages between hosts are small, and go through the key-value store of JAX's
coordination service, never through the devices. Every process writes a
heartbeat there each second, and process 0 checks them. If a process is late or
has failed, all others name it and stop. The service runs in process 0: if it
does not answer, process 0 is the one that is late.

A thread writes the heartbeats, so they continue during a long compilation. A
process whose threads do not run for the whole timeout counts as lost. It ends
by itself when it continues: by then the others have ended.

Only this module uses `jax._src.distributed`. With one process it starts
nothing, and touches no JAX backend.
"""

import contextlib
import ctypes
import inspect
import json
import math
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from typing import Any, NoReturn

import jax
from jax._src import distributed

from infoprune_jax.config.validation import UserError
from infoprune_jax.runtime import preemption
from infoprune_jax.runtime.peers import (
  AGAIN,
  FOLDER,
  LOST,
  LOST_EXIT_CODE,
  Watch,
)
from infoprune_jax.runtime.progress import logger

PROCESS_TIMEOUT = 60  # seconds without a heartbeat
# For work that the other processes wait for, such as reading checksums.
BARRIER_TIMEOUT = 1800  # seconds
_START_TIMEOUT = 300  # seconds: hosts of a large job do not start at once
EXIT_CODE = 2


class ProcessLost(UserError):
  """Another process does not answer; the same command may succeed later."""


_stop = threading.Event()
_calls: dict[str, int] = {}
_watch: Watch | None = None


def count() -> int:
  """Number of processes of the job."""
  return distributed.global_state.num_processes or 1


def index() -> int:
  """Index of this process."""
  return distributed.global_state.process_id or 0


def initialize(
  coordinator_address: str | None = None,
  process_count: int | None = None,
  process_index: int | None = None,
  timeout: float = PROCESS_TIMEOUT,
) -> None:
  """Joins the job; call it before any other use of JAX.

  Without arguments the cluster gives them: a TPU pod, SLURM or Open MPI.

  Args:
    coordinator_address: HOST:PORT, where process 0 can be reached.
    process_count: Number of processes.
    process_index: Index of this process.
    timeout: Seconds without a heartbeat after which a process counts as lost.

  Raises:
    UserError: there is no such cluster, or the other processes do not join.
  """
  # Gloo is the only backend of collectives between CPUs that needs no launcher.
  jax.config.update('jax_cpu_collectives_implementation', 'gloo')
  # Its thread logs several lines when a process ends.
  with contextlib.suppress(AttributeError):  # Not every version has it.
    jax.config.update('jax_enable_preemption_service', False)
  if coordinator_address is not None:
    _on_abort(
      lambda: (
        f'did not meet the other {(process_count or 1) - 1} at '
        f'{coordinator_address} within {_START_TIMEOUT} s: start all of them, '
        'with the same address and count, and each index once.'
      )
    )
  try:
    jax.distributed.initialize(
      coordinator_address,
      process_count,
      process_index,
      initialization_timeout=_START_TIMEOUT,
      **_jax_timeout(timeout),
    )
  except (RuntimeError, ValueError) as error:
    reason = (str(error).splitlines() or [''])[0].rstrip('.')
    if coordinator_address is None:
      raise UserError(
        f'--multiprocess finds no TPU pod, SLURM or Open MPI to join ({reason})'
        ': give --coordinator_address, --process_count and --process_index.'
      ) from None
    raise UserError(
      f'Process {process_index} cannot join the others at '
      f'{coordinator_address}: {reason}.'
    ) from None
  _watch_others(timeout)


def _watch_others(timeout: float) -> None:
  """Starts the threads that write the heartbeat and find lost processes."""
  global _watch
  _stop.clear()
  client, error = _client(), jax.errors.JaxRuntimeError
  _watch = watch = Watch(client, index(), count(), timeout, stop_process, error)
  address = distributed.global_state.coordinator_address
  _on_abort(lambda: watch.blame(address or ''))
  for target in (watch.run, watch.guard):
    threading.Thread(target=target, args=(_stop,), daemon=True).start()
  preemption.at_exit(_tell)


def _jax_timeout(timeout: float) -> dict[str, Any]:
  """Raises the limit of JAX, if possible, so that it does not act before ours.

  JAX ends a process with a C++ stack trace that does not name the lost process.
  """
  known = inspect.signature(jax.distributed.initialize).parameters
  name = 'heartbeat_timeout_seconds'
  return {name: math.ceil(timeout) + 60} if name in known else {}


def _client() -> Any:
  return distributed.global_state.client


def barrier(name: str, timeout: float = BARRIER_TIMEOUT) -> None:
  """Waits until every process calls it.

  Args:
    name: For the message; a name may be used again.
    timeout: In seconds.

  Raises:
    ProcessLost: some processes do not call it; they are named.
  """
  if count() == 1:
    return
  try:
    _client().wait_at_barrier(_key('barrier', name), round(timeout * 1000))
  except jax.errors.JaxRuntimeError as error:
    if 'DEADLINE_EXCEEDED' not in str(error):
      raise
    names = str(error).partition('timed out task names:')[2].split('RPC:')[0]
    raise _late(names.split(), name, timeout) from None


def broadcast(name: str, value: Any, timeout: float = BARRIER_TIMEOUT) -> Any:
  """Returns the JSON value of process 0 on every process.

  Raises:
    ProcessLost: the value does not arrive in time.
  """
  if count() == 1:
    return value
  key = _key('broadcast', name)
  if index() == 0:
    _client().key_value_set(key, json.dumps(value))
    return value
  return _get(key, 0, name, timeout)


def on_first(
  name: str, function: Callable[[], Any], timeout: float = BARRIER_TIMEOUT
) -> Any:
  """Calls a function on process 0; returns its JSON value on every process.

  An error of the function ends the job.
  """
  return broadcast(name, function() if index() == 0 else None, timeout)


def all_gather(
  name: str, value: Any, timeout: float = BARRIER_TIMEOUT
) -> list[Any]:
  """The JSON values of all processes, in the order of processes.

  Raises:
    ProcessLost: some do not arrive in time; the first process is named.
  """
  if count() == 1:
    return [value]
  key = _key('gather', name)
  _client().key_value_set(f'{key}/{index()}', json.dumps(value))
  end = time.monotonic() + timeout
  return [
    _get(f'{key}/{other}', other, name, max(end - time.monotonic(), 0.001))
    for other in range(count())
  ]


def _key(kind: str, name: str) -> str:
  """A key that is new for each call; all processes make the same calls."""
  what = f'{kind}/{name}'
  _calls[what] = _calls.get(what, 0) + 1
  return f'{FOLDER}/{what}/{_calls[what]}'


def _get(key: str, owner: int, name: str, timeout: float) -> Any:
  try:
    return json.loads(
      _client().blocking_key_value_get(key, round(timeout * 1000) or 1)
    )
  except jax.errors.JaxRuntimeError as error:
    if 'DEADLINE_EXCEEDED' not in str(error):
      raise
    raise _late([str(owner)], name, timeout) from None


def _late(processes: list[str], name: str, timeout: float) -> ProcessLost:
  which = ', '.join(processes) or 'unknown'
  return ProcessLost(
    f'Process {which} of {count()} did not reach {name!r} within {timeout:.0f} '
    f's: look at its log. {AGAIN}'
  )


def leave() -> None:
  """Waits for the others at the end of the job, then stops watching them."""
  if count() > 1:
    barrier('the end')
    _stop.set()
    # Waits again: if process 0 leaves early, the others lose the store.
    jax.distributed.shutdown()


def abandon(reason: str | Exception) -> NoReturn:
  """Ends this process with a message, after telling the other processes.

  An error of the devices most often means that another process has ended: this
  process first waits to learn which one.
  """
  if isinstance(reason, jax.errors.JaxRuntimeError):
    watch = _watching()
    time.sleep(watch.timeout + 5 * watch.interval)
  _stop.set()
  is_defect = not isinstance(reason, str | UserError)
  message = f'{type(reason).__name__}: {reason}' if is_defect else str(reason)
  is_lost = isinstance(reason, ProcessLost)
  folder = LOST if is_lost else 'failed'
  _announce(folder, f'process {index()} stopped: {message}')
  if is_lost:
    stop_process(message, LOST_EXIT_CODE)
  if is_defect:
    traceback.print_exception(reason)
    sys.stderr.flush()
    os._exit(1)
  stop_process(message)


def _tell(number: int) -> None:
  """Tells the others that a signal ends this process."""
  if _stop.is_set():  # At the end of the job no process listens.
    return
  _stop.set()
  name = signal.Signals(number).name
  _announce('told', f'process {index()} was told to stop ({name}). {AGAIN}')


def _watching() -> Watch:
  assert _watch is not None  # `initialize` has set it.
  return _watch


def _announce(folder: str, message: str) -> None:
  """Tells the others why this process ends, and gives them time to read it."""

  def announce() -> None:
    # Another process was first, or process 0 is gone: all know by now.
    with contextlib.suppress(jax.errors.JaxRuntimeError):
      _client().key_value_set(f'{FOLDER}/{folder}/{index()}', message)
    if index() == 0:  # The store ends with process 0.
      time.sleep(3 * _watching().interval)

  # Does not wait for a frozen store.
  thread = threading.Thread(target=announce, daemon=True)
  thread.start()
  thread.join(5 * _watching().interval)


def stop_process(message: str, code: int = EXIT_CODE) -> NoReturn:
  """Ends this process at once, even if other threads are waiting."""
  text = f'infoprune_jax: process {index()}: {message}\n'
  os.write(sys.stderr.fileno(), text.encode())
  os._exit(code)


def _on_abort(blame: Callable[[], str]) -> None:
  """Names the missing process when JAX aborts this one because of it.

  The client of JAX aborts with a stack trace and takes no Python callback, so
  its signal is caught.

  Args:
    blame: Returns the message; '' if the cause is another one.
  """

  def handler(number: int) -> None:
    message = blame()
    if message:
      stop_process(message, LOST_EXIT_CODE)
    os._exit(128 + number)

  # Handlers of Python run in the main thread, which would be too late.
  _on_abort.handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(handler)
  ctypes.CDLL(None).signal(int(signal.SIGABRT), _on_abort.handler)


def check_devices() -> None:
  """Raises `UserError` if JAX sees a pod that the job has not joined."""
  if jax.process_count() != count():
    raise UserError(
      f'The devices here belong to {jax.process_count()} processes: start the '
      'job on all hosts with --multiprocess.'
    )
  if count() > 1:
    logger.info('%d processes, %d devices', count(), jax.device_count())
