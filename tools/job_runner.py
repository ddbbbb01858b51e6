"""Runs the commands of a graph of jobs, several at a time."""

import concurrent.futures
import shlex
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from typing import Any


def run(
  jobs: Sequence[Any],
  commands: Mapping[str, Sequence[str]],
  finished: set[str],
  parallel: int,
) -> int:
  """Runs the commands of jobs, each when those before it are done.

  Args:
    jobs: The graph.
    commands: By the name of the job; a command ends with code 0 if it is done.
    finished: The jobs that are done already.
    parallel: How many jobs on TPUs run at a time.

  Returns:
    0 if all are done, 1 if some failed: those that need them do not start.
  """
  done, waiting = {*finished}, [j for j in jobs if j.name not in finished]
  places = threading.Semaphore(parallel)
  failed: list[str] = []
  with concurrent.futures.ThreadPoolExecutor(len(jobs) or 1) as pool:
    running: dict[concurrent.futures.Future, str] = {}
    while waiting or running:
      ready = [job for job in waiting if {*job.after} <= done]
      waiting = [job for job in waiting if job not in ready]
      for job in ready:
        place = places if job.needs_tpu else threading.Semaphore()
        future = pool.submit(_run_one, job.name, commands[job.name], place)
        running[future] = job.name
      if not running:
        break
      ended, _ = concurrent.futures.wait(
        running, return_when=concurrent.futures.FIRST_COMPLETED
      )
      for future in ended:
        name = running.pop(future)
        if future.result():
          failed.append(name)
        else:
          done.add(name)
  if failed:
    print(
      f'launch: {", ".join(failed)} failed; not started: '
      f'{", ".join(job.name for job in waiting) or "none"}. The same command '
      'resumes: finished jobs are kept.',
      file=sys.stderr,
    )
  return 1 if failed else 0


def _run_one(
  name: str, command: Sequence[str], place: threading.Semaphore
) -> int:
  """Runs one command; its lines are printed behind the name of the job."""
  with place:
    print(f'[{name}] {shlex.join(command)}', flush=True)
    process = subprocess.Popen(
      command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert process.stdout
    for line in process.stdout:
      print(f'[{name}] {line}', end='', flush=True)
    return process.wait()
