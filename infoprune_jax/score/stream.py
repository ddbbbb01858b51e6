"""Runs batches through a compiled program, so that the device never waits.

One thread makes batches and puts them on the device, before it needs them. One
thread waits for results and copies them to the host. The caller's thread starts
the program, and takes the results while the device computes the next ones.
"""

import collections
import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent import futures

import jax
import numpy as np

from infoprune_jax.model import partitioning
from infoprune_jax.model.mesh import Mesh

AHEAD = 4  # batches made before the device asks for them
RUNNING = 4  # batches given to the device whose results are not read yet

# From a batch on the mesh to [B, T] arrays by name.
Program = Callable[[dict[str, jax.Array]], Mapping[str, jax.Array]]


@dataclasses.dataclass(frozen=True)
class Item:
  """A batch with a function for its results, or a function to call in its turn.

  Attributes:
    on_result: Called with the results of each program for this host's
      sequences, or with an empty list if there is no batch.
    programs: The programs that take the batch.
    batch: [sequences, T] arrays by name, this host's shard of the batch; None
      for a call without a batch.
  """

  on_result: Callable[[list[dict[str, np.ndarray]]], None]
  programs: Sequence[Program] = ()
  batch: Mapping[str, np.ndarray] | None = None


def ignore(results: list[dict[str, np.ndarray]]) -> None:
  """Does nothing with the results of a batch of padding."""


@dataclasses.dataclass
class Times:
  """The times that the device computed and waited, in seconds."""

  computing: float = 0.0
  waiting: float = 0.0  # for the host
  batches: int = 0
  free_since: float = dataclasses.field(default_factory=time.monotonic)

  def note(self, started: float, ready: float) -> None:
    """Counts one batch, by the times when it started and was ready."""
    self.waiting += max(started - self.free_since, 0.0)
    self.computing += ready - max(started, self.free_since)
    self.free_since = ready
    self.batches += 1


def run(mesh: Mesh, items: Iterator[Item], times: Times) -> None:
  """Runs batches in order, and calls `on_result` of each item with its results.

  Args:
    mesh: The devices of the batches.
    items: The batches. They are made in a thread of their own. `on_result` is
      called in the caller's thread.
    times: The times of these batches are added to it.
  """
  feeder = futures.ThreadPoolExecutor(1, 'feeder')
  reader = futures.ThreadPoolExecutor(1, 'reader')
  running: collections.deque[_Running] = collections.deque()
  try:
    fed = collections.deque(
      feeder.submit(_next_on_mesh, mesh, items) for _ in range(AHEAD)
    )
    while (fed_item := fed.popleft().result()) is not None:
      fed.append(feeder.submit(_next_on_mesh, mesh, items))
      running.append(_start(*fed_item, reader, times))
      if len(running) > RUNNING:
        _finish(running.popleft())
    while running:
      _finish(running.popleft())
  finally:
    feeder.shutdown(cancel_futures=True)
    reader.shutdown(cancel_futures=True)


_Batch = dict[str, jax.Array] | None
_Running = tuple[Item, futures.Future | None]


def _next_on_mesh(
  mesh: Mesh, items: Iterator[Item]
) -> tuple[Item, _Batch] | None:
  """The next item, and its batch on the mesh; None after the last item."""
  item = next(items, None)
  if item is None:
    return None
  if item.batch is None:
    return item, None
  return item, partitioning.global_batch(mesh, item.batch)


def _start(
  item: Item, batch: _Batch, reader: futures.Executor, times: Times
) -> _Running:
  """Starts the programs of a batch. The reader then waits for the results."""
  if batch is None:
    return item, None
  started = time.monotonic()
  results = [program(batch) for program in item.programs]
  return item, reader.submit(_read, results, started, times)


def _read(
  results: list[Mapping[str, jax.Array]], started: float, times: Times
) -> list[dict[str, np.ndarray]]:
  jax.block_until_ready(results)
  times.note(started, time.monotonic())
  return [
    {name: partitioning.local_sequences(x) for name, x in result.items()}
    for result in results
  ]


def _finish(running: _Running) -> None:
  item, results = running
  item.on_result(results.result() if results else [])
