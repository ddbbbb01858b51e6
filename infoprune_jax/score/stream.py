"""Batches through a compiled program; the device never waits for the host.

One thread makes batches and puts them on the device, some ahead of it; one
waits for results and copies them back; the caller's thread starts the program
and gets the results while the device goes on.
"""

import collections
import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent import futures
from typing import Any

import jax
import numpy as np

from infoprune_jax.model import partitioning
from infoprune_jax.model.mesh import Mesh

AHEAD = 4  # batches made before the device asks for them
RUNNING = 4  # batches given to the device whose results are not read yet

# What to call with the results, the programs, each of a batch on the mesh, and
# the [sequences, T] arrays of this host's shard of it; without arrays nothing
# runs, and the call is made in its turn.
Program = Callable[[dict[str, jax.Array]], jax.Array]
Item = tuple[
  Callable[[Any], None], Sequence[Program], Mapping[str, np.ndarray] | None
]


@dataclasses.dataclass
class Times:
  """What the device did with its time, in seconds."""

  computing: float = 0.0
  waiting: float = 0.0  # for the host
  batches: int = 0
  free_since: float = dataclasses.field(default_factory=time.monotonic)

  def note(self, started: float, ready: float) -> None:
    """Counts one batch, started and ready at these times."""
    self.waiting += max(started - self.free_since, 0.0)
    self.computing += ready - max(started, self.free_since)
    self.free_since = ready
    self.batches += 1


def run(mesh: Mesh, items: Iterator[Item], times: Times) -> None:
  """Runs batches in order, and makes each item's call with its result.

  Args:
    mesh: Where the batches go.
    items: The batches. It is advanced in a thread of its own; the calls are
      made in the caller's, with this host's sequences of each result, or None.
    times: Is added to.
  """

  def advance() -> tuple[Callable[[Any], None], Any, Any] | None:
    item = next(items, None)
    if item is None or item[2] is None:
      return item
    return *item[:2], partitioning.global_batch(mesh, item[2])

  def read(results: list[jax.Array], started: float) -> list[np.ndarray]:
    jax.block_until_ready(results)
    times.note(started, time.monotonic())
    return [partitioning.local_sequences(result) for result in results]

  feeder = futures.ThreadPoolExecutor(1, 'feeder')
  reader = futures.ThreadPoolExecutor(1, 'reader')
  try:
    fed = collections.deque(feeder.submit(advance) for _ in range(AHEAD))
    running: collections.deque[tuple[Any, futures.Future | None]]
    running = collections.deque()
    while (item := fed.popleft().result()) is not None:
      fed.append(feeder.submit(advance))
      then, programs, batch = item
      if batch is None:
        running.append((then, None))
      else:
        started = time.monotonic()
        results = [program(batch) for program in programs]
        running.append((then, reader.submit(read, results, started)))
      if len(running) > RUNNING:
        _call(*running.popleft())
    while running:
      _call(*running.popleft())
  finally:
    feeder.shutdown(cancel_futures=True)
    reader.shutdown(cancel_futures=True)


def _call(then: Callable[[Any], None], result: futures.Future | None) -> None:
  then(None if result is None else result.result())
