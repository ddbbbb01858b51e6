"""Several processes of this machine, which meet as hosts do."""

import functools
import multiprocessing
import os
import pathlib
import signal
import socket
import tempfile
import time
from multiprocessing import forkserver

import host_process
import pytest

from infoprune_jax.runtime import peers

# Imports once, and then forks.
SERVER = multiprocessing.get_context('forkserver')
SERVER.set_forkserver_preload(['host_process'])
TESTS = pathlib.Path(__file__).parent
TIMEOUT = 4  # seconds without a sign of life


@functools.cache
def start_server() -> None:
  """Starts the process that forks the others.

  Python 3.11 does not give it our `sys.path`, and then imports nothing.
  """
  paths = [str(TESTS), str(TESTS.parent), os.environ.get('PYTHONPATH', '')]
  with pytest.MonkeyPatch.context() as patch:
    patch.setenv('PYTHONPATH', os.pathsep.join(filter(None, paths)))
    forkserver.ensure_running()


def command_line(*arguments: str, **environment: str) -> tuple[int, str]:
  """Runs the command line in a process; its exit code, and what it prints."""
  start_server()
  with tempfile.NamedTemporaryFile('r') as output:
    process = SERVER.Process(
      target=host_process.run,
      args=(['main', *arguments], output.name, 1, 0, None, environment),
    )
    process.start()
    process.join(120)
    process.kill()
    process.join()
    return process.exitcode, output.read()


class Job:
  """The processes of a job, which write to files."""

  def __init__(
    self,
    workdir: pathlib.Path,
    config: pathlib.Path,
    processes: int,
    *arguments: str,
    devices: int = 1,
    killed: tuple[int, int] | None = None,
    job: str = 'score',
    slurm: bool = False,
    signalled: tuple[int, int, int] | None = None,
  ):
    """Starts them.

    Args:
      workdir: Of the job.
      config: Its file.
      processes: How many; one alone is told of no others.
      *arguments: Further ones of the command line.
      devices: Of each process.
      killed: A process that kills itself, and at which shard that it writes.
      job: The stage.
      slurm: Whether they find each other as a job of SLURM.
      signalled: A process that sends itself a signal, at which batch of
        training or which shard that it writes, and which signal.
    """
    start_server()
    with socket.socket() as free:
      free.bind(('127.0.0.1', 0))
      port = free.getsockname()[1]
    self._processes, self._outputs = [], []
    for process in range(processes):
      argv = [
        'main',
        f'--config={config}',
        f'--workdir={workdir}',
        f'--job={job}',
        *arguments,
      ]
      environment = {}
      if slurm:
        argv += ['--multiprocess', f'--process_timeout={TIMEOUT}']
        # JAX takes the port from the number of the job.
        environment = {
          'SLURM_JOB_ID': str(port % 4096),
          'SLURM_STEP_NODELIST': '127.0.0.1',
          'SLURM_NTASKS': str(processes),
          'SLURM_PROCID': str(process),
          'SLURM_LOCALID': str(process),
        }
      elif processes > 1:
        argv += [
          f'--coordinator_address=127.0.0.1:{port}',
          f'--process_count={processes}',
          f'--process_index={process}',
          f'--process_timeout={TIMEOUT}',
        ]
      output = workdir / f'{time.monotonic_ns()}.log'
      at_shard = killed[1] if killed and killed[0] == process else 0
      told = signalled[1:] if signalled and signalled[0] == process else None
      self._outputs.append(output)
      self._processes.append(
        SERVER.Process(
          target=host_process.run,
          args=(argv, str(output), devices, at_shard, told, environment),
        )
      )
      self._processes[-1].start()

  def ended(self, frozen: int | None = None) -> tuple[list[int], list[str]]:
    """Exit codes and outputs, by process.

    Args:
      frozen: One that goes on only when all others have ended.
    """
    deadline = time.monotonic() + 240
    last = [] if frozen is None else [self._processes[frozen]]
    try:
      for process in [p for p in self._processes if p not in last] + last:
        if process in last:
          os.kill(process.pid, signal.SIGCONT)
        process.join(max(deadline - time.monotonic(), 0))
      codes = [process.exitcode for process in self._processes]
    finally:
      for process in self._processes:
        process.kill()
    outputs = [output.read_text() for output in self._outputs]
    assert None not in codes, '\n'.join(outputs)
    return codes, outputs

  def ended_without(self, lost: int, number: int, message: str) -> float:
    """Checks the ends of a job whose process `lost` sent itself a signal.

    Args:
      lost: The process.
      number: SIGSTOP, SIGKILL or SIGTERM.
      message: Is in the last line of the log of each other process.

    Returns:
      Seconds from the signal until the last of the others has logged that.
    """
    is_stopped = number == signal.SIGSTOP
    codes, outputs = self.ended(lost if is_stopped else None)
    told = 128 + signal.SIGTERM
    is_told = number == signal.SIGTERM
    own_code, own_output = codes.pop(lost), outputs.pop(lost)
    expected = told if is_told else peers.LOST_EXIT_CODE
    assert codes == [expected] * len(codes), outputs
    # A process that stood still went on when the others had ended.
    assert own_code == (-number if number == signal.SIGKILL else expected)
    assert not is_stopped or 'it stood still for' in own_output
    for output in outputs:
      assert message in output.splitlines()[-1], output
      assert 'Traceback' not in output
      # JAX aborts when process 0 is gone, and says so first.
      assert '***' not in output or (lost, number) == (0, signal.SIGKILL)
    logs = [log for at, log in enumerate(self._outputs) if at != lost]
    begin = pathlib.Path(f'{self._outputs[lost]}.signal').stat().st_mtime
    return max(log.stat().st_mtime for log in logs) - begin

  def wait_for(self, process: int) -> int:
    """The exit code of one process, when it has ended."""
    self._processes[process].join(60)
    return self._processes[process].exitcode

  def go_on(self, process: int) -> None:
    """Continues one that SIGSTOP has stopped."""
    os.kill(self._processes[process].pid, signal.SIGCONT)

  def finish(self) -> list[str]:
    codes, outputs = self.ended()
    assert not any(codes), '\n'.join(outputs)
    return outputs
