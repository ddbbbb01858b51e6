"""The whole job with corpus and workdir in an object store that fails."""

import dataclasses
import json
import pathlib
import random
import signal
import socket
import time

from fault_proxy import FaultProxy, Plan
from host_job import SERVER, start_server
from host_process import run
from object_store import BUCKET, Emulator
from small_corpus import write_corpus

from infoprune_jax.stages import IN_ORDER

CONFIG = f"""
from configs import base
from small_corpus import only_arms, small_config

STORE = 'gs://{BUCKET}/corpus'


def get_config():
  config = small_config(f'{{STORE}}/*.jsonl')
  config.corpus.num_shards = 2
  config.train.seeds = (0,)
  arms = config.select.arms
  only_arms(config, 'full', 'top_nll')
  arms.deduplicated = base.arm('distinct', 'near_duplicate_group')
  arms.late = base.branch(
    'full',
    at=0.5,
    then=base.arm('top', base.INFORMATION, fraction=0.5),
    score_with='itself',
  )
  config.report.baseline = 'full'
  config.report.bootstrap_samples = 20
  config.select.decontaminate = base.benchmarks(f'{{STORE}}/a.jsonl')
  config.select.tables.given = base.table(
    f'{{STORE}}/table/*.jsonl', on='example_id'
  )
  config.classifiers.quality = base.classifier(
    good=base.jsonl(f'{{STORE}}/a.jsonl'),
    bad=base.jsonl(f'{{STORE}}/b.jsonl'),
    hash_bits=8,
  )
  config.train.training.update(num_steps=8, checkpoint_every=3)
  config.reference.training.update(num_steps=6, checkpoint_every=2)
  config.export.formats = ('jsonl', 'scores')
  return config
"""
# Each may run on several hosts.
ON_HOSTS = ('reference', 'score', 'train')
JOB, HOSTS = 'job', 'hosts'  # how a run goes: one process, or two in `ON_HOSTS`
LOST_PEER = 75  # the exit code of a process whose peer is lost


def put_corpus(emulator: Emulator, folder: pathlib.Path) -> None:
  """Puts a corpus of two files into the bucket, and a table of its examples."""
  write_corpus(folder / 'corpus.jsonl')
  lines = (folder / 'corpus.jsonl').read_text().splitlines(keepends=True)
  emulator.put('corpus/a.jsonl', ''.join(lines[::2]).encode())
  emulator.put('corpus/b.jsonl', ''.join(lines[1::2]).encode())
  rows = [
    {'example_id': json.loads(line)['id'], 'mark': number}
    for number, line in enumerate(lines)
  ]
  text = ''.join(json.dumps(row) + '\n' for row in rows)
  emulator.put('corpus/table/t.jsonl', text.encode())


@dataclasses.dataclass
class Result:
  """What one run met."""

  seed: int
  faults: dict[str, int]  # by what they do
  starts: int
  kills: int
  unforeseen: list[str]  # the end of what failed processes printed
  seconds: float
  requests: int


class Fire:
  """Runs a job through a proxy."""

  def __init__(
    self, emulator: Emulator, config: pathlib.Path, folder: pathlib.Path
  ):
    self._emulator, self._config, self._folder = emulator, config, folder

  def run(self, how: str, workdir: str, plan: Plan | None) -> Result:
    """Runs all stages, export and verify, with a kill in between if disturbed.

    Args:
      how: `JOB` or `HOSTS`; of hosts, one is killed.
      workdir: Its URL or folder.
      plan: None for no faults and no kill.
    """
    proxy = FaultProxy(self._emulator.url, plan)
    begin = time.monotonic()
    rng = random.Random(plan.seed if plan else 0)
    result = Result(plan.seed if plan else 0, {}, 0, 0, [], 0.0, 0)
    steps = [(1, []), (1, ['--job=export'])]
    if how == HOSTS:
      steps[:1] = [
        (1 + (name in ON_HOSTS), [f'--job={name}']) for name in IN_ORDER
      ]
    hosts = max(count for count, _ in steps)
    killed = rng.choice(
      [n for n, (c, _) in enumerate(steps[:-1]) if c == hosts]
    )
    try:
      for number, (processes, arguments) in enumerate(steps):
        told = None
        if plan and number == killed:
          told = rng.randrange(1, 50 if how == JOB else 3), signal.SIGKILL
        self._until_done(proxy, workdir, processes, arguments, told, result)
      self._until_done(proxy, workdir, 1, ['--job=verify'], None, result)
    finally:
      result.faults, result.requests = proxy.counts(), proxy.requests
      result.seconds = time.monotonic() - begin
      proxy.stop()
    return result

  def _until_done(self, proxy, workdir, processes, arguments, told, result):
    for _ in range(6):
      result.starts += 1
      codes, outputs = self._start(proxy, workdir, processes, arguments, told)
      if not any(codes):
        return
      if -signal.SIGKILL in codes:
        result.kills += 1
      else:
        result.unforeseen += [output[-3000:] for output in outputs]
      told = None
    raise AssertionError('\n'.join(outputs))

  def _start(self, proxy, workdir, processes, arguments, told):
    start_server()
    with socket.socket() as free:
      free.bind(('127.0.0.1', 0))
      port = free.getsockname()[1]
    started = []
    environment = {
      name: value.replace(self._emulator.url, proxy.url)
      for name, value in self._emulator.environment.items()
    }
    for index in range(processes):
      argv = ['main', f'--config={self._config}', f'--workdir={workdir}']
      argv += arguments
      if processes > 1:
        argv += [
          f'--coordinator_address=127.0.0.1:{port}',
          f'--process_count={processes}',
          f'--process_index={index}',
          '--process_timeout=20',
        ]
      output = self._folder / f'{time.monotonic_ns()}.log'
      signalled = told if index == processes - 1 else None
      process = SERVER.Process(
        target=run, args=(argv, str(output), 1, 0, signalled, environment)
      )
      process.start()
      started.append((process, output))
    deadline = time.monotonic() + 400
    for process, _ in started:
      process.join(max(deadline - time.monotonic(), 0))
    codes = [process.exitcode for process, _ in started]
    for process, _ in started:
      process.kill()
    return codes, [output.read_text() for _, output in started]
