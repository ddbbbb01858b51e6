"""The command line as one of several processes, forked with all imports done."""

import os
import pathlib
import signal
import sys
import time

import numpy as np
from absl import app

from infoprune_jax import (
  main,
  stages,  # noqa: F401
)
from infoprune_jax.batches import packing
from infoprune_jax.runtime import artifacts
from infoprune_jax.train import state

packing.pack(np.array([5, 3]), 8, 0, seed=0)  # Numba imports when it is used.


def run(
  argv: list[str],
  output: str,
  devices: int,
  killed_at_shard: int,
  signalled_at_batch: tuple[int, int] | None,
  environment: dict[str, str],
) -> None:
  """Runs `argv`, as if from a shell.

  Args:
    argv: Of the command line.
    output: A file, for standard output and error.
    devices: How many CPU devices the process has.
    killed_at_shard: It kills itself as it starts to write this part, from 1.
    signalled_at_batch: Which batch of training, or which shard that it writes,
      from 1, and the signal that it then sends itself, when it has made a
      file of `output`'s name and '.signal'.
    environment: Variables beside those there are.
  """
  os.environ.update(environment)
  file = os.open(output, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
  for standard in (1, 2):
    os.dup2(file, standard)
  os.environ['XLA_FLAGS'] += (
    f' --xla_force_host_platform_device_count={devices}'
  )
  finish_shard = artifacts.Artifact.finish_shard
  left = [killed_at_shard]

  def counted(*arguments, **counts):
    left[0] -= 1
    if left[0] == 0:
      os.kill(os.getpid(), signal.SIGKILL)
    return finish_shard(*arguments, **counts)

  artifacts.Artifact.finish_shard = counted
  if signalled_at_batch:
    _signal_at(*signalled_at_batch, pathlib.Path(f'{output}.signal'))
  sys.argv = argv
  app.run(main.main, argv=argv, flags_parser=main._parse)


def _signal_at(batch: int, number: int, mark: pathlib.Path) -> None:
  left = [batch]

  def counting(function, pause):
    def counted(*arguments, **counts):
      left[0] -= 1
      if left[0] == 0:
        mark.touch()
        os.kill(os.getpid(), number)
        time.sleep(pause)
      return function(*arguments, **counts)

    return counted

  state.Program.put = counting(state.Program.put, 0)
  # A job this small could end before the others are told.
  artifacts.Artifact.finish_shard = counting(artifacts.Artifact.finish_shard, 5)
